"""What the controller should hold, computed from API answers alone: a second opinion on headrace.neutron.translate."""

from __future__ import annotations

from typing import Any

from tests.neutron.lab import Controller

NUMBERS = {
    "tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "ipv6-icmp": 58, "icmpv6": 58, "vrrp": 112, "esp": 50, "gre": 47,
}  # fmt: skip


def expected(admin: Any) -> dict[tuple[str, str], tuple[int, dict[str, Any]]]:
    """(type, id) -> (revision, body) of everything that Neutron's API shows and Headrace carries."""
    found: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
    carried = set()
    for net in admin.networks():
        if not net.segments:
            carried.add(net.id)
            body: dict[str, Any] = {"segment": segment_of(net)}
            if net.mtu != 1450:
                body["mtu"] = net.mtu
            found["network", net.id] = (net.revision_number, named(net, body))
    for sub in admin.subnets():
        if sub.network_id in carried:
            body = {"network": sub.network_id, "cidr": sub.cidr}
            if sub.gateway_ip:
                body["gateway"] = sub.gateway_ip
            if sub.is_dhcp_enabled:
                body["enable_dhcp"] = True
            if sub.dns_nameservers:
                body["dns_nameservers"] = list(sub.dns_nameservers)
            if sub.host_routes:
                body["host_routes"] = sorted(
                    sub.host_routes, key=lambda route: (route["destination"], route["nexthop"])
                )
            modes = {"ipv6_ra_mode": sub.ipv6_ra_mode, "ipv6_address_mode": sub.ipv6_address_mode}
            body |= {name: mode for name, mode in modes.items() if mode}
            found["subnet", sub.id] = (sub.revision_number, named(sub, body))
    for group in admin.security_groups():
        rules = sorted((rule(each) for each in group.security_group_rules), key=lambda each: each["id"])
        body = {"rules": rules} if rules else {}
        if not group.stateful:
            body["stateful"] = False
        found["security_group", group.id] = (group.revision_number, named(group, body))
    for group in admin.address_groups():
        body = {"addresses": sorted(group.addresses)} if group.addresses else {}
        found["address_group", group.id] = (group_revision(admin, group), named(group, body))
    places = {
        subport["port_id"]: {"parent": trunk.port_id, "vlan": subport["segmentation_id"]}
        for trunk in admin.trunks()
        for subport in trunk.sub_ports
    }
    for port in admin.ports():
        found["port", port.id] = (port.revision_number, named(port, port_body(port) | places.get(port.id, {})))
    return found


def segment_of(net: Any) -> dict[str, Any]:
    segment = {} if net.provider_network_type == "vxlan" else {"type": net.provider_network_type}
    if net.provider_segmentation_id is not None:
        segment["id"] = net.provider_segmentation_id
    if net.provider_physical_network:
        segment["physical_network"] = net.provider_physical_network
    transport = {"mpls": "udp", "nsh": "gpe"}.get(net.provider_network_type)
    return segment | ({"transport": transport} if transport else {})


def group_revision(admin: Any, group: Any) -> int:
    """The SDK knows no revision of an address group; the API does."""
    answer = admin.get(f"/address-groups/{group.id}").json()
    return int(answer.get("address_group", {}).get("revision_number", -1))


def named(source: Any, body: dict[str, Any]) -> dict[str, Any]:
    """What every body has; the model leaves out what is empty."""
    start = {"id": source.id}
    if source.name:
        start["name"] = source.name
    if source.project_id:
        start["project"] = source.project_id
    return start | body


def rule(source: dict[str, Any]) -> dict[str, Any]:
    body = {"id": source["id"], "direction": source["direction"]}
    if source["ethertype"] != "IPv4":
        body["ethertype"] = source["ethertype"]
    if source["protocol"] not in {None, "any", "0"}:
        number = NUMBERS.get(source["protocol"]) or int(source["protocol"])
        body["protocol"] = 58 if number == 1 and source["ethertype"] == "IPv6" else number
    names = {
        "port_range_min": "port_min",
        "port_range_max": "port_max",
        "remote_ip_prefix": "remote_cidr",
        "remote_group_id": "remote_group",
        "remote_address_group_id": "remote_address_group",
    }
    return body | {ours: source[theirs] for theirs, ours in names.items() if source[theirs] is not None}


def port_body(port: Any) -> dict[str, Any]:
    pairs = [{"address": pair["ip_address"], "mac": pair["mac_address"]} for pair in port.allowed_address_pairs]
    body: dict[str, Any] = {
        "network": port.network_id,
        "mac": port.mac_address,
        "addresses": sorted(fixed["ip_address"] for fixed in port.fixed_ips),
        "address_pairs": sorted(pairs, key=lambda pair: (pair["address"], pair["mac"])),
        "security_groups": sorted(port.security_group_ids),
        "device_owner": port.device_owner,
    }
    options = [dhcp_option(option) for option in port.extra_dhcp_opts]
    body["dhcp_options"] = sorted(options, key=lambda option: (option.get("ip_version", 4), option["name"]))
    body = {key: value for key, value in body.items() if value}
    if not port.is_port_security_enabled:
        body["port_security"] = False
    if not port.is_admin_state_up:
        body["admin_up"] = False
    if port.binding_vif_type == "tap":
        body["host"] = port.binding_host_id
    return body


def dhcp_option(source: dict[str, Any]) -> dict[str, Any]:
    body = {"name": source["opt_name"], "value": source["opt_value"]}
    return body | ({"ip_version": 6} if source["ip_version"] == 6 else {})


def differences(admin: Any, controller: Controller) -> list[str]:
    """Where the controller's objects are not Neutron's, object by object."""
    wanted = expected(admin)
    held = {key: (item.revision, item.body) for key, item in controller.records().items()}
    return [
        f"{key[0]} {key[1]}: Neutron {wanted.get(key)}, controller {held.get(key)}"
        for key in sorted(wanted.keys() | held.keys())
        if wanted.get(key) != held.get(key)
    ]
