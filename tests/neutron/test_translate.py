"""Neutron's dictionaries into our model, case by case; no server."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.model import Network, Segment
from headrace.neutron import translate
from headrace.neutron.translate import NotCarried, Place

VXLAN = {"id": "s1", "network_type": "vxlan", "segmentation_id": 77}
VLAN = {"id": "s2", "network_type": "vlan", "segmentation_id": 7, "physical_network": "p"}
CARRIERS = {"mpls": "udp", "nsh": "gpe"}
NET = {"id": "n1", "name": "", "project_id": "t", "mtu": 1450}


def rule(**changes: Any) -> Any:
    return {
        "id": "r1",
        "direction": "ingress",
        "ethertype": "IPv4",
        "protocol": None,
        "port_range_min": None,
        "port_range_max": None,
        "remote_ip_prefix": None,
        "remote_group_id": None,
        "remote_address_group_id": None,
    } | changes


def port(**changes: Any) -> Any:
    return {
        "id": "p1",
        "name": "",
        "project_id": "t",
        "network_id": "n1",
        "mac_address": "FA:16:3E:00:00:01",
        "fixed_ips": [{"ip_address": "10.0.0.9", "subnet_id": "x"}, {"ip_address": "10.0.0.10", "subnet_id": "x"}],
        "admin_state_up": True,
        "device_owner": "compute:nova",
        "binding:host_id": "h1",
    } | changes


@pytest.mark.parametrize(
    ("protocol", "ethertype", "number"),
    [
        (None, "IPv4", None),
        ("any", "IPv4", None),
        ("0", "IPv4", None),
        (0, "IPv6", None),
        ("ip", "IPv4", None),
        ("tcp", "IPv4", 6),
        ("TCP", "IPv4", 6),
        ("6", "IPv6", 6),
        (17, "IPv4", 17),
        ("icmp", "IPv4", 1),
        ("icmp", "IPv6", 58),
        ("1", "IPv6", 58),
        ("icmpv6", "IPv6", 58),
        ("ipv6-icmp", "IPv6", 58),
        ("58", "IPv6", 58),
        ("udplite", "IPv4", 136),
        ("ipip", "IPv4", 4),
        ("255", "IPv4", 255),
    ],
)
def test_protocols_become_numbers(protocol: Any, ethertype: str, number: int | None) -> None:
    assert translate.rule(rule(protocol=protocol, ethertype=ethertype)).protocol == number


def test_every_protocol_name_of_neutron_has_a_number() -> None:
    from neutron_lib import constants

    for name, number in constants.IP_PROTOCOL_MAP.items():
        ethertype = "IPv6" if name.startswith("ipv6") else "IPv4"
        assert translate.protocol(name, ethertype) == (number or None)


def test_an_unknown_protocol_is_no_rule_that_allows_everything() -> None:
    with pytest.raises(NotCarried, match="quic"):
        translate.rule(rule(protocol="quic"))


def test_a_subnet_says_what_workloads_are_told() -> None:
    source = {
        "id": "s1", "name": "", "project_id": "t", "network_id": "n1", "cidr": "fd00::/64", "gateway_ip": "fd00::1",
        "enable_dhcp": True, "dns_nameservers": ["fd00::53", "fd00::9"], "ipv6_ra_mode": "slaac",
        "ipv6_address_mode": "slaac",
        "host_routes": [
            {"destination": "fd02::/64", "nexthop": "fd00::3"}, {"destination": "fd01::/64", "nexthop": "fd00::2"},
        ],
    }  # fmt: skip
    made = translate.subnet(source)
    assert (made.enable_dhcp, made.dns_nameservers) == (True, ("fd00::53", "fd00::9"))
    assert (made.ipv6_ra_mode, made.ipv6_address_mode) == ("slaac", "slaac")
    assert [route.nexthop for route in made.host_routes] == ["fd00::2", "fd00::3"]


@pytest.mark.parametrize(
    ("own", "general", "expected"),
    [
        ("a.org.", "b.org", "a.org"),
        ("", "b.org", "b.org"),
        (None, "", ""),
        ("", "no domain", ""),
        (None, "a." * 200, ""),
    ],
)
def test_a_domain_is_the_network_s_or_everyone_s(own: Any, general: str, expected: str) -> None:
    assert translate.network(NET | {"dns_domain": own}, [VXLAN], CARRIERS, general).dns_domain == expected


def test_extra_dhcp_options_keep_their_names() -> None:
    given = [
        {"opt_name": "tag:ipxe,67", "opt_value": "x", "ip_version": 4},
        {"opt_name": "59", "opt_value": "y", "ip_version": 6},
        {"opt_name": "26", "opt_value": "", "ip_version": "4"},
    ]
    made = translate.port(port(extra_dhcp_opts=given), ours=False).dhcp_options
    assert [(each.name, each.value, each.ip_version) for each in made] == [
        *(("26", "", 4), ("tag:ipxe,67", "x", 4)),
        ("59", "y", 6),
    ]


def of(kind: str, number: int | None, physical: str | None = None) -> dict[str, Any]:
    return {"id": "s", "network_type": kind, "segmentation_id": number, "physical_network": physical}


@pytest.mark.parametrize(
    ("given", "carriers", "segment"),
    [
        (VXLAN, CARRIERS, Segment(id=77)),
        (of("geneve", 0xFFFFFF), CARRIERS, Segment(type="geneve", id=0xFFFFFF)),
        (of("gre", (1 << 28) - 1), CARRIERS, Segment(type="gre", id=(1 << 28) - 1)),
        (of("mpls", 16), CARRIERS, Segment(type="mpls", id=16, transport="udp")),
        (of("mpls", 16), {"mpls": "gre"}, Segment(type="mpls", id=16, transport="gre")),
        (of("nsh", 1), CARRIERS, Segment(type="nsh", id=1, transport="gpe")),
        (of("nsh", 1), {"nsh": "ethernet"}, Segment(type="nsh", id=1, transport="ethernet")),
        (VLAN, CARRIERS, Segment(type="vlan", id=7, physical_network="p")),
        (of("flat", None, "p"), CARRIERS, Segment(type="flat", physical_network="p")),
        (of("flat", 0, "p"), CARRIERS, Segment(type="flat", physical_network="p")),
    ],
)
def test_a_segment_of_every_type_is_one_of_ours(given: Any, carriers: Any, segment: Segment) -> None:
    assert translate.network(NET, [given], carriers) == Network(id="n1", project="t", segment=segment)


@pytest.mark.parametrize(
    ("changes", "segments", "reason"),
    [
        ({}, [VLAN, VXLAN], "network n1 has 2 segments; Headrace carries networks of exactly one"),
        ({}, [VXLAN, of("vxlan", 78)], "network n1 has 2 segments"),
        ({}, [], "network n1 has 0 segments"),
        ({}, [of("local", None)], "network n1: network type local is not one that Headrace carries .flat, vlan"),
        ({}, [of("gre", 1 << 28)], "network n1: .*key.* 268435456 is out of range; give one from 1 to 268435455"),
        ({}, [of("mpls", 3)], "network n1: .*label.* 3 is out of range; give one from 16"),
        ({"qinq": True}, [VLAN], "network n1 is qinq; .* trunk ports"),
        ({"vlan_transparent": True}, [VLAN], "network n1 is vlan_transparent"),
    ],
)
def test_a_network_is_carried_whole_or_not_at_all(changes: Any, segments: Any, reason: str) -> None:
    with pytest.raises(NotCarried, match=reason):
        translate.network(NET | changes, segments, CARRIERS)


def test_a_sub_port_has_its_parent_and_tag() -> None:
    made = translate.port(port(), ours=True, place=Place("p0", "vlan", 12))
    assert (made.parent, made.vlan, made.host) == ("p0", 12, "h1")
    with pytest.raises(NotCarried, match="port p1: sub-ports are told apart by vlan, not by mpls"):
        translate.port(port(), ours=True, place=Place("p0", "mpls", 12))


def test_a_port_is_wanted_where_we_bound_it_and_nowhere_else() -> None:
    assert translate.port(port(), ours=True).host == "h1"
    assert translate.port(port(), ours=False).host is None


def test_a_port_without_the_port_security_extension_is_secured() -> None:
    made = translate.port(port(), ours=False)
    assert made.port_security
    assert made.mac == "fa:16:3e:00:00:01"
    assert made.addresses == ("10.0.0.10", "10.0.0.9")


def test_address_pairs_keep_the_mac_that_neutron_wrote_down() -> None:
    pairs = [{"ip_address": "10.0.0.0/24", "mac_address": "FA:16:3E:00:00:02"}]
    (pair,) = translate.port(port(allowed_address_pairs=pairs), ours=False).address_pairs
    assert (pair.address, pair.mac) == ("10.0.0.0/24", "fa:16:3e:00:00:02")


@pytest.mark.parametrize(
    "changes", [{"mac_address": "01:00:5e:00:00:01"}, {"fixed_ips": [{"ip_address": "somewhere"}]}]
)
def test_what_cannot_be_expressed_names_its_object(changes: Any) -> None:
    with pytest.raises(NotCarried, match="p1"):
        translate.port(port(**changes), ours=False)


def test_bodies_are_what_the_controller_decodes() -> None:
    from headrace.model import decode

    group = translate.security_group(
        {
            "id": "g1",
            "name": "default",
            "project_id": "t",
            "stateful": False,
            "security_group_rules": [
                rule(id="r2", remote_group_id="g1"),
                rule(protocol="tcp", port_range_min=1, port_range_max=2),
            ],
        }
    )
    assert decode("security_group", translate.body(group)) == group
    assert [each.id for each in group.rules] == ["r1", "r2"]
