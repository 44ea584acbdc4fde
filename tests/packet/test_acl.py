"""acl: what rules allow, by which rule, and what outlives them. docs/pipeline.md, "acl"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headrace.abi import Reason, State
from headrace.datapath.bpf import Datapath
from headrace.model import AddressGroup, AddressPair, Object, Port, Rule
from headrace.model import State as Desired
from headrace.testing import packet
from headrace.testing.packet import BROADCAST, Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, OUT, group, network, port, rule

MakeTwin = Callable[..., Twin]

BLUE = network("blue")
A, B, C = port("a", "blue", 1, "any"), port("b", "blue", 2, "any"), port("c", "blue", 3, "any", host="h2")
LAST = {"from": "ACL_FROM_PORT", "to": "ACL_TO_PORT"}


def change(asked: Twin, *objects: Object) -> None:
    asked.apply(Desired.of((*asked.state.all(), *objects)))


def judged(twin: MakeTwin, rules: tuple[Rule, ...], frame: bytes, *more: Object) -> bool:
    """Whether a port with these ingress rules gets a frame from afar; asked three times over."""
    asked = twin(BLUE, group("g", *rules), group("any", *ANY), port("a", "blue", 1, "g"), C, *more)
    observed = asked.thrice(tunnelled(frame))
    assert observed.reason in {Reason.NONE, Reason.ACL_TO_PORT}
    if observed.reason == Reason.NONE:
        assert observed.rule_to in {one.id for one in rules}
    return observed.reason == Reason.NONE


def ingress(protocol: int | None = None, *ports: int | None, **fields: Any) -> Rule:
    return rule("r", "ingress", protocol, *ports, **fields)


def tcp(port_: int = 80, family: int = 4, source: str | None = None, flags: str = "S") -> bytes:
    return packet.tcp(C, A, 1000, port_, flags, family=family, src=source)


def udp(port_: int = 80, **fields: Any) -> bytes:
    return packet.udp(C, A, 1000, port_, **fields)


def icmp(kind: int, code: int = 0, family: int = 4) -> bytes:
    return packet.icmp(C, A, kind, code, family=family)


def icmp_rule(protocol: int, kind: int | None, code: int | None) -> Rule:
    ethertype = "IPv4" if protocol == 1 else "IPv6"
    return Rule(id="r", direction="ingress", ethertype=ethertype, protocol=protocol, port_min=kind, port_max=code)  # type: ignore[arg-type]


def test_nothing_is_allowed_by_itself(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("any", *ANY), port("bare", "blue", 9), A, C)
    for frame in (packet.udp(A, port("bare", "blue", 9), 1, 2), packet.tcp(A, port("bare", "blue", 9), 1, 2)):
        assert asked.thrice(sent("a", frame)).reason == Reason.ACL_TO_PORT
    assert asked.thrice(sent("bare", packet.udp(port("bare", "blue", 9), A, 1, 2))).reason == Reason.ACL_FROM_PORT
    assert not asked.memory.flows


@pytest.mark.parametrize(
    ("rules", "frame", "allowed"),
    [
        # Family, direction and protocol.
        ([ingress()], tcp(), True),
        ([ingress()], tcp(family=6), False),
        ([ingress(ethertype="IPv6")], tcp(family=6), True),
        ([ingress(ethertype="IPv6")], tcp(), False),
        ([rule("r", "egress")], tcp(), False),
        ([ingress(6)], tcp(), True),
        ([ingress(6)], udp(), False),
        ([ingress(17)], udp(), True),
        ([ingress(47)], packet.other(C, A, 47), True),
        ([ingress(47)], packet.other(C, A, 50), False),
        ([ingress(0)], packet.other(C, A, 0), True),
        ([ingress(255)], packet.other(C, A, 255), True),
        ([ingress()], packet.other(C, A, 253), True),
        ([ingress(58)], packet.other(C, A, 58), True),
        ([ingress(1)], icmp(8), True),
        ([ingress(58, ethertype="IPv6")], icmp(128, family=6), True),
        ([ingress(1, ethertype="IPv6")], icmp(128, family=6), False),
        # Ports.
        ([ingress(6, 80)], tcp(80), True),
        ([ingress(6, 80)], tcp(79), False),
        ([ingress(6, 80)], tcp(81), False),
        ([ingress(6, 80)], udp(80), False),
        ([ingress(6, 80, 443)], tcp(79), False),
        ([ingress(6, 80, 443)], tcp(80), True),
        ([ingress(6, 80, 443)], tcp(443), True),
        ([ingress(6, 80, 443)], tcp(444), False),
        ([ingress(6, 0, 0)], tcp(0), True),
        ([ingress(6, 0, 0)], tcp(1), False),
        ([ingress(6, 0, 65535)], tcp(0), True),
        ([ingress(6, 0, 65535)], tcp(65535), True),
        ([ingress(6, 65535, 65535)], tcp(65535), True),
        ([ingress(6, 65535, 65535)], tcp(65534), False),
        ([ingress(6, 1, 65534)], tcp(0), False),
        ([ingress(6, 1, 65534)], tcp(65535), False),
        ([ingress(6, 1, 65534)], tcp(32768), True),
        ([ingress(6, None, 100)], tcp(0), True),
        ([ingress(6, None, 100)], tcp(101), False),
        ([ingress(6, 100, None)], tcp(65535), True),
        ([ingress(6, 100, None)], tcp(99), False),
        ([ingress(132, 80)], packet.sctp(C, A, 1000, 80), True),
        ([ingress(132, 80)], packet.sctp(C, A, 1000, 81), False),
        # Ranges where they mean nothing.
        ([ingress(None, 80, 80)], tcp(80), False),
        ([ingress(47, 80, 80)], packet.other(C, A, 47), False),
        # Two rules add up.
        ([ingress(6, 80), rule("s", "ingress", 6, 443)], tcp(443), True),
        ([ingress(6, 80, 100), rule("s", "ingress", 6, 90, 200)], tcp(200), True),
        ([ingress(6, 80, 100), rule("s", "ingress", 6, 90, 200)], tcp(201), False),
        ([ingress(6, 80), rule("s", "ingress", 17)], udp(9), True),
    ],
)
def test_families_protocols_and_ports(twin: MakeTwin, rules: list[Rule], frame: bytes, allowed: bool) -> None:  # noqa: FBT001
    assert judged(twin, tuple(rules), frame) is allowed


@pytest.mark.parametrize(
    ("protocol", "kind", "code", "asked", "allowed"),
    [
        (1, None, None, (8, 0), True),
        (1, 8, None, (8, 0), True),
        (1, 8, None, (8, 7), True),
        (1, 8, None, (13, 0), False),
        (1, 8, 0, (8, 0), True),
        (1, 8, 0, (8, 1), False),
        (1, 13, 2, (13, 2), True),
        (1, 0, 0, (0, 0), True),
        (1, 0, None, (0, 9), True),
        (1, None, 0, (8, 0), False),
        (58, 128, None, (128, 0), True),
        (58, 128, 0, (128, 1), False),
        (58, 200, 7, (200, 7), True),
        (58, 255, 255, (255, 255), True),
    ],
)
def test_icmp_rules_name_type_and_code(
    twin: MakeTwin,
    protocol: int,
    kind: int | None,
    code: int | None,
    asked: tuple[int, int],
    allowed: bool,  # noqa: FBT001
) -> None:
    frame = icmp(*asked, family=4 if protocol == 1 else 6)
    assert judged(twin, (icmp_rule(protocol, kind, code),), frame) is allowed


@pytest.mark.parametrize(
    ("fields", "source", "allowed"),
    [
        ({"remote_cidr": "10.0.0.3/32"}, "10.0.0.3", True),
        ({"remote_cidr": "10.0.0.2/32"}, "10.0.0.3", False),
        ({"remote_cidr": "10.0.0.77/26"}, "10.0.0.64", True),
        ({"remote_cidr": "10.0.0.77/26"}, "10.0.0.63", False),
        ({"remote_cidr": "0.0.0.0/0"}, "203.0.113.9", True),
        ({"remote_cidr": "128.0.0.0/1"}, "127.255.255.255", False),
        ({"remote_cidr": "128.0.0.0/1"}, "128.0.0.0", True),
        ({"remote_group": "peers"}, "10.0.0.7", True),
        ({"remote_group": "peers"}, "10.0.0.8", False),
        ({"remote_group": "peers"}, "198.51.100.200", True),
        ({"remote_group": "nobody"}, "10.0.0.7", False),
        ({"remote_address_group": "office"}, "203.0.113.1", True),
        ({"remote_address_group": "office"}, "10.0.0.3", False),
        ({"remote_address_group": "gone"}, "203.0.113.1", False),
    ],
)
@pytest.mark.parametrize("ports", [(), (6,), (6, 80)])
def test_remotes(
    twin: MakeTwin,
    fields: dict[str, Any],
    source: str,
    allowed: bool,  # noqa: FBT001
    ports: tuple[int, ...],
) -> None:
    pair = AddressPair(address="198.51.100.128/25")
    peer = port("peer", "red", 7, "peers", host="h9", address_pairs=(pair,))
    office = AddressGroup(id="office", addresses=("203.0.113.0/24", "fd00:1::/32"))
    more = (peer, office, group("peers"), group("nobody"))
    assert judged(twin, (ingress(*ports, **fields),), tcp(source=source), *more) is allowed


@pytest.mark.parametrize(
    ("fields", "source", "allowed"),
    [
        ({"remote_cidr": "fd00::/64"}, "fd00::3", True),
        ({"remote_cidr": "fd00:0:0:1::/64"}, "fd00::3", False),
        ({"remote_cidr": "::/0"}, "2001:db8::9", True),
        ({"remote_group": "peers"}, "fd00::7", True),
        ({"remote_group": "peers"}, "fd00::8", False),
        ({"remote_address_group": "office"}, "fd00:1:2::9", True),
    ],
)
def test_remotes_of_ipv6(twin: MakeTwin, fields: dict[str, Any], source: str, allowed: bool) -> None:  # noqa: FBT001
    peer = port("peer", "red", 7, "peers", host="h9")
    office = AddressGroup(id="office", addresses=("203.0.113.0/24", "fd00:1::/32"))
    rules = (ingress(6, 80, ethertype="IPv6", **fields),)
    assert judged(twin, rules, tcp(family=6, source=source), peer, office, group("peers")) is allowed


def test_remotes_of_one_family_do_not_reach_the_other(twin: MakeTwin) -> None:
    mapped = (ingress(ethertype="IPv6", remote_cidr="::/0"), rule("s", "ingress", ethertype="IPv6"))
    assert not judged(twin, mapped, tcp())
    group_of_both = AddressGroup(id="all", addresses=("::/0",))
    assert not judged(twin, (ingress(remote_address_group="all"),), tcp(), group_of_both)


def test_nested_remotes_and_ranges_meet(twin: MakeTwin) -> None:
    """Every combination of prefixes within prefixes and ranges within ranges, against the oracle."""
    rules = [
        rule("wide-web", "ingress", 6, 80, remote_cidr="10.0.0.0/8"),
        rule("narrow-all", "ingress", 6, 1, 1023, remote_cidr="10.0.0.0/30"),
        rule("host-high", "ingress", 6, 1024, 65535, remote_cidr="10.0.0.3/32"),
        rule("peers-any", "ingress", remote_group="peers"),
        rule("office-udp", "ingress", 17, 53, remote_address_group="office"),
        rule("anyone-ssh", "ingress", 6, 22),
        rule("anyone-icmp", "ingress", 1),
    ]
    peer = port("peer", "red", 5, "peers", host="h9")
    office = AddressGroup(id="office", addresses=("10.0.0.3/32", "10.0.0.4/31"))
    asked = twin(BLUE, group("g", *rules), group("peers"), peer, office, port("a", "blue", 1, "g"), C)
    seen = set()
    for source in ("10.0.0.3", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.9.9.9", "203.0.113.5"):
        for dport in (0, 1, 22, 53, 80, 81, 1023, 1024, 65535):
            for frame in (tcp(dport, source=source), udp(dport, src=source)):
                seen.add(asked.run(tunnelled(frame)).rule_to)
        seen.add(asked.run(tunnelled(packet.icmp(C, A, src=source))).rule_to)
    assert seen == {one.id for one in rules} | {"NONE"}


def test_egress_rules_look_at_the_destination(twin: MakeTwin) -> None:
    rules = (rule("web", "egress", 6, 80, remote_cidr="10.0.0.3/32"),)
    asked = twin(BLUE, group("g", *rules), port("a", "blue", 1, "g"), C)
    assert asked.thrice(sent("a", packet.tcp(A, C, 1000, 80))).rule_from == "web"
    assert asked.thrice(sent("a", packet.tcp(A, C, 80, 1000))).reason == Reason.ACL_FROM_PORT
    elsewhere = Somewhere(C.mac, ("10.0.0.4",))
    assert asked.thrice(sent("a", packet.tcp(A, elsewhere, 1000, 80))).reason == Reason.ACL_FROM_PORT


def test_both_sides_of_one_host_are_asked(twin: MakeTwin) -> None:
    out, into = group("out", rule("o", "egress", 6, 80)), group("into", rule("i", "ingress", 6, 80))
    asked = twin(BLUE, out, into, port("a", "blue", 1, "out"), port("b", "blue", 2, "into"))
    observed = asked.thrice(sent("a", packet.tcp(A, B, 1000, 80)))
    assert (observed.rule_from, observed.rule_to) == ("o", "i")
    back = asked.thrice(sent("b", packet.tcp(B, A, 80, 1000, "SA")))
    assert (back.rule_from, back.rule_to) == ("ESTABLISHED", "ESTABLISHED")
    assert asked.thrice(sent("b", packet.tcp(B, A, 1000, 80))).reason == Reason.ACL_FROM_PORT


def test_the_groups_of_a_port_add_up(twin: MakeTwin) -> None:
    web, dns = group("web", rule("w", "ingress", 6, 80)), group("dns", rule("d", "ingress", 17, 53))
    asked = twin(BLUE, web, dns, port("a", "blue", 1, "web", "dns", "missing"), C)
    assert asked.thrice(tunnelled(tcp(80))).rule_to == "w"
    assert asked.thrice(tunnelled(udp(53))).rule_to == "d"
    assert asked.thrice(tunnelled(udp(80))).reason == Reason.ACL_TO_PORT


# Without rules


@pytest.mark.parametrize(
    ("frame", "way"),
    [
        (packet.udp(A, C, 68, 67), "from"),
        (packet.udp(A, C, 546, 547, family=6), "from"),
        *((packet.icmp(A, C, kind, family=6, hlim=255), "from") for kind in (130, 131, 132, 133, 143)),
        (packet.udp(C, A, 67, 68), "to"),
        (packet.udp(C, A, 547, 546, family=6), "to"),
        *((packet.icmp(C, A, kind, family=6, hlim=255), "to") for kind in (130, 131, 132, 134, 135, 136, 143)),
    ],
)
def test_implicit_rules(twin: MakeTwin, frame: bytes, way: str) -> None:
    asked = twin(BLUE, port("a", "blue", 1), C)
    observed = asked.thrice(sent("a", frame) if way == "from" else tunnelled(frame))
    assert observed.reason == Reason.NONE
    assert "IMPLICIT" in {observed.rule_from, observed.rule_to}


@pytest.mark.parametrize(
    ("frame", "way"),
    [
        (packet.udp(A, C, 67, 67), "from"),
        (packet.udp(A, C, 546, 547), "from"),
        (packet.udp(A, C, 68, 67, family=6), "from"),
        (packet.tcp(A, C, 68, 67), "from"),
        (packet.icmp(A, C, 143), "from"),
        (packet.icmp(A, C, 128, family=6), "from"),
        (packet.udp(C, A, 68, 67), "to"),
        (packet.udp(C, A, 547, 546), "to"),
        (packet.icmp(C, A, 133, family=6), "to"),
        (packet.icmp(C, A, 137, family=6), "to"),
        (packet.icmp(C, A, 134), "to"),
    ],
)
def test_what_implicit_rules_leave_to_the_groups(twin: MakeTwin, frame: bytes, way: str) -> None:
    asked = twin(BLUE, port("a", "blue", 1), C)
    observed = asked.thrice(sent("a", frame) if way == "from" else tunnelled(frame))
    assert observed.reason.name == LAST[way]


def test_arp_and_other_ethertypes(twin: MakeTwin) -> None:
    asked = twin(BLUE, port("a", "blue", 1), port("open", "blue", 2, port_security=False), C)
    observed = asked.thrice(tunnelled(packet.arp(C, "10.0.0.1", operation=2, to=A)))
    assert (observed.reason, observed.rule_to) == (Reason.NONE, "IMPLICIT")
    assert asked.thrice(tunnelled(packet.raw(C, 0x88CC, bytes(46), dmac=A.mac))).reason == Reason.ETHERTYPE
    observed = asked.thrice(tunnelled(packet.raw(C, 0x88CC, bytes(46), dmac=port("open", "blue", 2).mac)))
    assert (observed.reason, observed.rule_to) == (Reason.NONE, "OPEN")


def test_port_security_off_asks_no_rule(twin: MakeTwin) -> None:
    off: dict[str, Any] = {"port_security": False}
    asked = twin(BLUE, group("g"), port("a", "blue", 1, "g", **off), port("b", "blue", 2, "g", **off))
    observed = asked.thrice(sent("a", packet.udp(A, B, 1, 2)))
    assert (observed.rule_from, observed.rule_to, observed.connection) == ("OPEN", "OPEN", State.STATELESS)
    assert asked.thrice(sent("b", packet.udp(B, A, 2, 1))).rule_to == "OPEN"


def test_stateless_groups_judge_each_direction_by_itself(twin: MakeTwin) -> None:
    free = group("free", rule("o", "egress", 6, 80), stateful=False)
    asked = twin(BLUE, free, port("a", "blue", 1, "free"), C)
    assert asked.thrice(sent("a", packet.tcp(A, C, 1000, 80))).connection == State.STATELESS
    assert asked.thrice(tunnelled(packet.tcp(C, A, 80, 1000, "SA"))).reason == Reason.ACL_TO_PORT
    change(asked, group("free", rule("o", "egress", 6, 80), rule("i", "ingress", 6, 1000), stateful=False))
    observed = asked.thrice(tunnelled(packet.tcp(C, A, 80, 1000, "SA")))
    assert (observed.rule_to, observed.connection) == ("i", State.STATELESS)


def test_sides_that_track_and_sides_that_do_not(twin: MakeTwin) -> None:
    keen, free = group("keen", rule("o", "egress", 6, 80)), group("free", rule("i", "ingress", 6, 80), stateful=False)
    asked = twin(BLUE, keen, free, port("a", "blue", 1, "keen"), port("b", "blue", 2, "free"))
    assert asked.thrice(sent("a", packet.tcp(A, B, 1000, 80))).connection == State.SYN_SENT
    assert asked.thrice(sent("b", packet.tcp(B, A, 80, 1000, "SA"))).reason == Reason.ACL_FROM_PORT
    change(asked, group("free", rule("i", "ingress", 6, 80), rule("e", "egress", 6, 1000), stateful=False))
    back = asked.thrice(sent("b", packet.tcp(B, A, 80, 1000, "SA")))
    assert (back.rule_from, back.rule_to, back.connection) == ("e", "ESTABLISHED", State.SYN_RECEIVED)


def test_replies_to_another_mac_find_no_way_past_his_rules(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("out", *OUT), port("a", "blue", 1, "out"), port("b", "blue", 2, "out"), C)
    asked.run(sent("a", packet.udp(A, C, 1000, 53)))
    answer = packet.udp(C, A, 53, 1000)
    assert asked.thrice(tunnelled(packet.udp(C, A, 53, 1000, dmac=B.mac))).reason == Reason.ACL_TO_PORT
    assert asked.thrice(tunnelled(answer)).reason == Reason.NONE
    assert asked.thrice(tunnelled(packet.udp(C, A, 53, 1000, dmac=BROADCAST))).refused


# Changes


def made(twin: MakeTwin, **more: Any) -> tuple[Twin, list[tuple[str, Port, Port]]]:
    """A connection from a to b that both sides' rules allow, used in both directions."""
    asked = twin(
        BLUE,
        group("out", rule("o", "egress", 6, 80), rule("x", "egress", 17)),
        group("into", rule("i", "ingress", 6, 80), rule("y", "ingress", 17)),
        port("a", "blue", 1, "out"),
        port("b", "blue", 2, "into", **more),
        C,
    )
    asked.run(sent("a", packet.tcp(A, B, 1000, 80)))
    asked.run(sent("b", packet.tcp(B, A, 80, 1000, "SA")))
    assert asked.thrice(sent("a", packet.tcp(A, B, 1000, 80, "A"))).connection == State.ESTABLISHED
    assert asked.thrice(sent("b", packet.tcp(B, A, 80, 1000, "A"))).replayed
    return asked, [("a", A, B), ("b", B, A)]


CUTS = {
    "the sender's rule": group("out", rule("x", "egress", 17)),
    "the receiver's rule": group("into", rule("y", "ingress", 17)),
    "the sender's rule, for another": group("out", rule("o", "egress", 6, 80, remote_cidr="10.0.0.9/32")),
    "the receiver's rule, for another": group("into", rule("i", "ingress", 6, 80, remote_cidr="10.0.0.9/32")),
    "the sender's group": port("a", "blue", 1, "into"),
    "the receiver's group": port("b", "blue", 2, "out"),
    "all groups of the receiver": port("b", "blue", 2),
}


@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize("name", CUTS)
def test_a_rule_that_goes_cuts_its_connections(twin: MakeTwin, name: str, first: str) -> None:
    """Whoever speaks first afterwards finds it cut, both ways, and however often; allowed again it goes on."""
    asked, ways = made(twin)
    before = asked.state
    change(asked, CUTS[name])
    for sender, one, other in 2 * sorted(ways, key=lambda way: way[0] != first):
        ports = (1000, 80) if sender == "a" else (80, 1000)
        observed = asked.run(sent(sender, packet.tcp(one, other, *ports, "A")))
        assert (observed.reason, observed.outputs) == (Reason.CONNECTION_CUT, ())
    change(asked, *before.all())
    for sender, one, other in ways:
        ports = (1000, 80) if sender == "a" else (80, 1000)
        assert asked.thrice(sent(sender, packet.tcp(one, other, *ports, "A"))).replayed


def test_the_other_sides_next_try_does_not_revive_what_was_cut(twin: MakeTwin) -> None:
    """The receiver may open connections of its own; its retransmission is none."""
    asked = twin(
        BLUE, group("out", *OUT), group("into", rule("i", "ingress", 6, 80), *OUT),
        port("a", "blue", 1, "out"), port("b", "blue", 2, "into"), C,
    )  # fmt: skip
    asked.thrice(sent("a", packet.tcp(A, B, 1000, 80)))
    asked.thrice(sent("b", packet.tcp(B, A, 80, 1000, "SA")))
    change(asked, group("into", *OUT))
    for sender, frame in 2 * (("b", packet.tcp(B, A, 80, 1000, "PA")), ("a", packet.tcp(A, B, 1000, 80, "A"))):
        assert asked.run(sent(sender, frame)).reason == Reason.CONNECTION_CUT
    asked.age(300_001)
    observed = asked.run(sent("b", packet.tcp(B, A, 80, 1000, "PA")))
    assert observed.reason == Reason.ACL_TO_PORT, "after so long a silence it is new, and out lets nothing in"


def test_udp_that_was_cut_is_gone(twin: MakeTwin) -> None:
    asked = twin(
        BLUE, group("g", rule("i", "ingress", 17), *OUT), port("a", "blue", 1, "g"), port("b", "blue", 2, "g"), C
    )
    asked.thrice(sent("a", packet.udp(A, B, 1000, 53)))
    change(asked, group("g", *OUT))
    assert asked.run(sent("a", packet.udp(A, B, 1000, 53))).reason == Reason.CONNECTION_CUT
    assert not asked.host.memory.connections()
    assert asked.run(sent("a", packet.udp(A, B, 1000, 53))).reason == Reason.ACL_TO_PORT


@pytest.mark.parametrize(
    "changed",
    [
        group("out", rule("other", "egress", 6), rule("x", "egress", 17)),
        group("out", rule("o", "egress", 6, 80), rule("more", "egress", 1), rule("x", "egress", 17)),
        group("out", rule("o", "egress", 6, 80)),
        port("a", "blue", 1, "out", "into"),
        port("a", "blue", 1, "out", addresses=("10.0.0.1", "fd00::1", "10.0.0.99")),
    ],
)
def test_a_change_that_leaves_it_allowed_leaves_it(twin: MakeTwin, changed: Object) -> None:
    asked, ways = made(twin)
    change(asked, changed)
    for sender, one, other in ways:
        ports = (1000, 80) if sender == "a" else (80, 1000)
        assert asked.thrice(sent(sender, packet.tcp(one, other, *ports, "A"))).connection == State.ESTABLISHED


def test_what_is_allowed_anew_passes_at_once(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("g"), port("a", "blue", 1, "g"), C)
    assert asked.thrice(tunnelled(tcp(flags="A"))).reason == Reason.ACL_TO_PORT
    change(asked, group("g", ingress(6, 80)))
    assert asked.thrice(tunnelled(tcp(flags="A"))).replayed


def epochs(datapath: Datapath) -> dict[int, int]:
    items = datapath.maps["hr_epochs"].items()
    return {int.from_bytes(key, "little"): int.from_bytes(value, "little") for key, value in items}


@pytest.mark.parametrize("remote", ["remote_group", "remote_address_group"])
def test_a_member_that_leaves_is_cut_and_nobody_else_is(twin: MakeTwin, remote: str) -> None:
    c, d = port("c", "blue", 3, "peers", host="h2"), port("d", "blue", 4, "peers", host="h2")
    list_ = AddressGroup(id="peers", addresses=("10.0.0.3", "10.0.0.4"))
    rules = (rule("r", "ingress", 6, **{remote: "peers"}),)
    asked = twin(BLUE, group("g", *rules), group("peers"), list_, port("a", "blue", 1, "g"), c, d)
    for sender in (c, d):
        assert asked.thrice(tunnelled(packet.tcp(sender, A, 1000, 80, "A"))).replayed
    before = epochs(asked.host.datapath)
    change(asked, port("c", "blue", 3, host="h2"), AddressGroup(id="peers", addresses=("10.0.0.4",)))
    assert asked.run(tunnelled(packet.tcp(c, A, 1000, 80, "A"))).reason == Reason.CONNECTION_CUT
    assert asked.run(tunnelled(packet.tcp(d, A, 1000, 80, "A"))).reason == Reason.NONE
    assert asked.run(tunnelled(packet.tcp(d, A, 1000, 80, "A"))).replayed
    raised = [index for index, epoch in epochs(asked.host.datapath).items() if epoch != before[index]]
    assert len(raised) == 1, "the port whose policy names the group: who left may speak through another MAC"


def test_a_cidr_that_shrinks_cuts_what_it_held(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("g", ingress(6, remote_cidr="10.0.0.0/24")), port("a", "blue", 1, "g"), C)
    assert asked.thrice(tunnelled(tcp(flags="A"))).replayed
    change(asked, group("g", ingress(6, remote_cidr="10.0.0.0/30")))
    assert asked.thrice(tunnelled(tcp(flags="A"))).reason == Reason.NONE
    change(asked, group("g", ingress(6, remote_cidr="10.0.0.0/31")))
    assert asked.run(tunnelled(tcp(flags="A"))).reason == Reason.CONNECTION_CUT


def test_an_address_that_moves_to_another_port_takes_its_permission_along(twin: MakeTwin) -> None:
    c, d = port("c", "blue", 3, "peers", host="h2"), port("d", "blue", 4, host="h2")
    asked = twin(BLUE, group("g", ingress(6, remote_group="peers")), group("peers"), port("a", "blue", 1, "g"), c, d)
    frame = packet.tcp(c, A, 1000, 80, "A")
    assert asked.thrice(tunnelled(frame)).replayed
    change(asked, port("c", "blue", 3, host="h2"), port("d", "blue", 4, "peers", host="h2", addresses=("10.0.0.3",)))
    assert asked.thrice(tunnelled(packet.tcp(d, A, 1000, 80, "A", src="10.0.0.3"))).reason == Reason.NONE


def test_security_switched_on_judges_what_ran_without(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("none"), port("a", "blue", 1, port_security=False), C)
    for arrival in (sent("a", packet.udp(A, C, 1, 2)), tunnelled(packet.udp(C, A, 2, 1))):
        assert asked.thrice(arrival).reason == Reason.NONE
    change(asked, port("a", "blue", 1, "none"))
    assert asked.thrice(sent("a", packet.udp(A, C, 1, 2))).reason == Reason.ACL_FROM_PORT
    assert asked.thrice(tunnelled(packet.udp(C, A, 2, 1))).reason == Reason.ACL_TO_PORT


def test_a_reply_whose_rules_went_is_cut_even_before_its_first(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("g", rule("o", "egress", 17)), port("a", "blue", 1, "g"), C)
    asked.run(sent("a", packet.udp(A, C, 1000, 53)))
    change(asked, group("g"))
    assert asked.run(tunnelled(packet.udp(C, A, 53, 1000))).reason == Reason.CONNECTION_CUT
    assert asked.run(tunnelled(packet.udp(C, A, 53, 1000))).reason == Reason.ACL_TO_PORT


def test_an_error_about_a_connection_whose_rules_went_cuts_it(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("g", rule("o", "egress", 17)), port("a", "blue", 1, "g"), C)
    quoted = packet.udp(A, C, 1000, 53)
    asked.run(sent("a", quoted))
    change(asked, group("g"))
    assert asked.run(tunnelled(packet.icmp_error(C, A, quoted))).reason == Reason.CONNECTION_CUT
    assert not asked.host.memory.connections()
