"""Desired states for comparing judges: two hosts, two tenants with the same addresses, every kind of port and rule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from headrace.model import (
    AddressGroup,
    AddressPair,
    DhcpOption,
    Host,
    Network,
    Object,
    Port,
    Rule,
    SecurityGroup,
    Segment,
    State,
    Subnet,
)
from headrace.testing.choice import Chooser, some, weighted

HOST = "h1"
"""The host under test."""
PEER = "h2"

VIRTUAL_MACS = ("00:00:5e:00:01:07", "02:00:00:00:0f:01")
"""MACs of address pairs, some of them of two ports at once (VRRP)."""

STATEFUL = ("g1", "g2", "g3")
STATELESS = ("s1", "s2")
ADDRESS_GROUPS = ("l1", "l2")

VTEPS = (
    (("192.0.2.1",), ("192.0.2.2",)),
    (("2001:db8::1",), ("2001:db8::2",)),
    (("192.0.2.1", "2001:db8::1"), ("2001:db8::2", "192.0.2.2")),
    (("192.0.2.1", "2001:db8::1"), ("192.0.2.2",)),
    (("192.0.2.11",), ("192.0.2.22",)),
)
EVERYWHERE = tuple(
    Segment(**fields)
    for number in (101, 102, 103)
    for fields in (
        {"id": number},
        {"type": "geneve", "id": number},
        {"type": "gre", "id": number},
        {"type": "mpls", "id": number},
        {"type": "mpls", "id": number, "transport": "gre"},
        {"type": "nsh", "id": number},
        {"type": "nsh", "id": number, "transport": "ethernet"},
        {"type": "vlan", "id": number, "physical_network": "physnet1"},
        {"type": "vlan", "id": number, "physical_network": "physnet2"},
        {"type": "vlan", "id": number, "physical_network": "physnet1", "service_vlan": 102},
    )
)
SEGMENTS = (
    *EVERYWHERE,
    Segment(type="flat", physical_network="physnet1"),
    Segment(type="flat", physical_network="physnet2"),
    Segment(id=0xFFFFFF),
    Segment(type="gre", id=0xFFFFFFF),
    Segment(type="mpls", id=16),
)
"""Segments of every wire, with the same ids."""
TAGS = {"p3": 7, "p4": 4094, "p5": 101, "p6": 1, "q1": 8, "q2": 102, "q3": 4093}
"""VIDs of sub-ports, each another: by its tag a test knows what a frame was sent to."""
TOPOLOGY = 35
"""Percent of changes that move things."""

REMOTES = {
    "IPv4": ("10.0.0.0/24", "10.0.0.2/32", "0.0.0.0/0", "10.0.0.1/31", "10.0.0.77/26", "198.51.100.0/24"),
    "IPv6": ("fd00::/64", "fd00::2/128", "::/0", "fd00::1/127", "fe80::/10", "2001:db8:1::/48"),
}
PAIR_ADDRESSES = ("10.0.0.100", "10.0.0.0/24", "198.51.100.0/25", "fd00::100", "fd00::/64", "0.0.0.0/0", "::/0")
SUBNETS = {"d4": "10.0.0.0/24", "d6": "fd00::/64"}
PORTS = ((80, 80), (53, 53), (1000, 2000), (0, 65535), (0, 0), (65535, 65535), (79, 81), (8, 1024), (49152, 65535))
ICMP_SERVICES = {
    1: ((8, None), (8, 0), (0, None), (3, None), (13, 0)),
    58: ((128, None), (128, 0), (1, None), (200, 7)),
}


def draw_state(choose: Chooser) -> State:
    """A state whose ids are one to five letters."""
    own, peer = choose.pick(VTEPS)
    objects: list[Object] = [Host(id=HOST, vteps=own), Host(id=PEER, vteps=peer)]
    objects += [
        Network(id="n1", segment=draw_segment(choose, ()), mtu=choose.pick((1450, 1280, 9000))),
    ]
    objects.append(Network(id="n2", segment=draw_segment(choose, objects)))
    objects += [draw_subnet(choose, name, cidr) for name, cidr in SUBNETS.items() if choose.chance(60)]
    for name in ADDRESS_GROUPS:
        cidrs = some(choose, [*REMOTES["IPv4"], *REMOTES["IPv6"]], 30)
        objects.append(AddressGroup(id=name, addresses=cidrs))
    objects += [draw_group(choose, name, stateful=True) for name in STATEFUL]
    objects += [draw_group(choose, name, stateful=False) for name in STATELESS]
    for number in range(1, choose.number(3, 6) + 1):
        objects.append(draw_port(choose, f"p{number}", "n1", number))
    for number in range(1, choose.number(0, 3) + 1):
        objects.append(draw_port(choose, f"q{number}", "n2", number))
    return State.of(map(draw_trunk, [choose] * len(objects), objects))


def draw_segment(choose: Chooser, others: Iterable[Object]) -> Segment:
    """A segment that no other network has; VXLAN's most often."""
    taken = {one.segment.place for one in others if isinstance(one, Network)}
    free = [segment for segment in SEGMENTS if segment.place not in taken]
    plain = [segment for segment in free if segment.type == "vxlan"]
    return choose.pick(plain if choose.chance(30) else free)


def draw_trunk(choose: Chooser, item: Object) -> Object:
    """What is a port is a sub-port of the first one now and then; most of these are where that is."""
    if not isinstance(item, Port) or item.id in {"p1", "p2"} or not choose.chance(25):
        return item
    host = item.host if choose.chance(10) else HOST
    return msgspec.structs.replace(item, parent="p1", vlan=TAGS[item.id], host=host)


def draw_subnet(choose: Chooser, name: str, cidr: str) -> Subnet:
    """A subnet of the first network, configured from here or not."""
    fields: dict[str, Any] = {"enable_dhcp": not choose.chance(20)}
    if ":" in cidr:
        modes = ("slaac", "dhcpv6-stateful", "dhcpv6-stateless", None)
        fields |= {"ipv6_ra_mode": choose.pick(modes), "ipv6_address_mode": choose.pick(modes)}
    return Subnet(id=name, network="n1", cidr=cidr, **fields)


def draw_group(choose: Chooser, name: str, *, stateful: bool) -> SecurityGroup:
    """A group; most let everything out, as Neutron's default group does."""
    rules = []
    if not choose.chance(30):
        rules += [
            Rule(id=f"{name}.out4", direction="egress", ethertype="IPv4"),
            Rule(id=f"{name}.out6", direction="egress", ethertype="IPv6"),
        ]
    if choose.chance(50):
        rules.append(Rule(id=f"{name}.in4", direction="ingress", protocol=choose.pick((None, 6, 17))))
        rules.append(Rule(id=f"{name}.in6", direction="ingress", ethertype="IPv6", remote_group=choose.pick(STATEFUL)))
    if choose.chance(35):
        rules.append(Rule(id=f"{name}.any4", direction="ingress"))
        rules.append(Rule(id=f"{name}.any6", direction="ingress", ethertype="IPv6"))
    rules += [draw_rule(choose, f"{name}.{number}") for number in range(choose.number(0, 5))]
    return SecurityGroup(id=name, stateful=stateful, rules=tuple(rules))


def draw_rule(choose: Chooser, name: str) -> Rule:
    """Any rule that Neutron would take."""
    ethertype = choose.pick(("IPv4", "IPv6"))
    icmp = 1 if ethertype == "IPv4" else 58
    fields: dict[str, Any] = {"protocol": choose.pick((None, 6, 17, icmp, 132, 47))}
    if fields["protocol"] in {6, 17, 132} and choose.chance(70):
        fields["port_min"], fields["port_max"] = choose.pick(PORTS)
    if fields["protocol"] == icmp and choose.chance(60):
        fields["port_min"], fields["port_max"] = choose.pick(ICMP_SERVICES[icmp])
    remote = weighted(choose, [(3, None), (3, "remote_cidr"), (3, "remote_group"), (1, "remote_address_group")])
    if remote == "remote_cidr":
        fields[remote] = choose.pick(REMOTES[ethertype])
    if remote == "remote_group":
        fields[remote] = choose.pick((*STATEFUL, *STATELESS))
    if remote == "remote_address_group":
        fields[remote] = choose.pick(ADDRESS_GROUPS)
    direction = choose.pick(("ingress", "ingress", "egress"))
    return Rule(id=name, direction=direction, ethertype=ethertype, **fields)  # type: ignore[arg-type]


def draw_port(choose: Chooser, name: str, network: str, number: int) -> Port:
    """A port; the first two of the first network are where most happens."""
    addresses = weighted(
        choose,
        [
            (6, (f"10.0.0.{number}", f"fd00::{number:x}")),
            (2, (f"10.0.0.{number}",)),
            (1, (f"fd00::{number:x}",)),
            (1, (f"10.0.0.{number}", f"10.0.0.{number + 64}")),
            (1, ()),
        ],
    )
    groups = weighted(choose, [(5, STATEFUL), (1, STATELESS)])
    main = name in {"p1", "p2"}
    return Port(
        id=name,
        network=network,
        mac=f"02:00:00:00:{network[1]:0>2}:{number:02x}",
        addresses=addresses,
        address_pairs=draw_pairs(choose),
        security_groups=some(choose, groups, 70),
        port_security=not choose.chance(10),
        admin_up=not choose.chance(0 if main else 8),
        host=HOST if main else choose.pick((HOST, PEER, PEER, None) if choose.chance(10) else (HOST, PEER, PEER)),
        device_owner=choose.pick(("network:router_interface", "network:dhcp")) if choose.chance(8) else "",
        dhcp_options=(DhcpOption(name="dhcp_disabled", value="true"),) if choose.chance(5) else (),
    )


def draw_pairs(choose: Chooser) -> tuple[AddressPair, ...]:
    if not choose.chance(25):
        return ()
    count = choose.number(1, 2)
    macs = (None, *VIRTUAL_MACS)
    return tuple(AddressPair(address=choose.pick(PAIR_ADDRESSES), mac=choose.pick(macs)) for _ in range(count))


def draw_change(choose: Chooser, state: State) -> State:
    """The state after one change of policy or topology that Neutron allows."""
    if choose.chance(TOPOLOGY):
        return State.of((*state.all(), *draw_topology(choose, state)))
    return draw_policy(choose, state)


def draw_policy(choose: Chooser, state: State) -> State:
    """The state after one change of what ports may do."""
    ports = sorted(state.ports.values(), key=lambda port: port.id)
    port = ports[min(choose.number(0, len(ports) - 1), choose.number(0, len(ports) - 1))]
    busy = [state.security_groups[name] for name in state.ports["p1"].security_groups]
    group = choose.pick(busy or sorted(state.security_groups.values(), key=lambda group: group.id))
    kind = choose.pick(
        (
            *("drop rule", "drop rule", "no groups", "add rule", "groups", "security", "admin", "addresses", "list"),
            "subnet",
        )
    )
    changed: Object
    if kind == "drop rule":
        gone = choose.number(0, max(len(group.rules) - 1, 0))
        changed = msgspec.structs.replace(group, rules=group.rules[:gone] + group.rules[gone + 1 :])
    elif kind == "add rule":
        new = draw_rule(choose, f"{group.id}.{choose.number(10, 99)}")
        kept = tuple(rule for rule in group.rules if rule.id != new.id)
        changed = msgspec.structs.replace(group, rules=(*kept, new))
    elif kind == "groups":
        changed = msgspec.structs.replace(port, security_groups=some(choose, choose.pick((STATEFUL, STATELESS)), 70))
    elif kind == "no groups":
        changed = msgspec.structs.replace(port, security_groups=())
    elif kind == "security":
        changed = msgspec.structs.replace(port, port_security=not port.port_security)
    elif kind == "admin":
        changed = msgspec.structs.replace(port, admin_up=not port.admin_up)
    elif kind == "addresses":
        changed = msgspec.structs.replace(port, address_pairs=draw_pairs(choose))
    elif kind == "subnet":
        name = choose.pick(tuple(SUBNETS))
        changed = draw_subnet(choose, name, SUBNETS[name])
    else:
        found = state.address_groups[choose.pick(ADDRESS_GROUPS)]
        changed = msgspec.structs.replace(found, addresses=found.addresses[1:])
    return State.of((*state.all(), changed))


def draw_topology(choose: Chooser, state: State) -> list[Object]:
    """What becomes of objects when things move."""
    port = choose.pick(sorted(state.ports.values(), key=lambda port: port.id))
    network = state.networks[port.network]
    kind = choose.pick(("host", "host", "mac", "vteps", "mtu", "segment", "router", "trunk"))
    if kind == "host":
        return [msgspec.structs.replace(port, host=choose.pick((PEER, HOST, None)))]
    if kind == "mac":
        other = choose.pick([one for one in state.ports.values() if one.network == port.network])
        return [msgspec.structs.replace(port, mac=other.mac), msgspec.structs.replace(other, mac=port.mac)]
    if kind == "vteps":
        own, peer = choose.pick(VTEPS)
        return [Host(id=HOST, vteps=own), Host(id=PEER, vteps=peer)]
    if kind == "mtu":
        return [msgspec.structs.replace(network, mtu=choose.pick((1450, 1280, 9000)))]
    if kind == "segment":
        return [msgspec.structs.replace(network, segment=draw_segment(choose, state.networks.values()))]
    if kind == "trunk":
        sub_ports = [port for port in state.ports.values() if port.parent is not None]
        if port.parent is None and sub_ports:
            port = choose.pick(sorted(sub_ports, key=lambda port: port.id))
        if port.parent is not None:
            return [msgspec.structs.replace(port, vlan=choose.pick((TAGS[port.id], TAGS[port.id] ^ 0x200)))]
    owner = "" if port.device_owner else "network:router_interface"
    return [msgspec.structs.replace(port, device_owner=owner)]
