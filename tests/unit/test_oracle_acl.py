"""The oracle's acl: docs/pipeline.md, by that heading."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.abi import Reason
from headrace.datapath.decision import Arrival, Decision
from headrace.model import AddressGroup, AddressPair, Rule, Segment
from headrace.testing import packet
from headrace.testing.packet import Somewhere
from headrace.testing.world import ANY, OUT, World, group, network, port, rule

A = Somewhere("02:00:00:00:00:01", ("10.0.0.1", "fd00::1"))
B = Somewhere("02:00:00:00:00:02", ("10.0.0.2", "fd00::2"))


def between(sender: tuple[Rule, ...], receiver: tuple[Rule, ...], *, stateful: bool = True) -> World:
    """Port a, whose groups hold the sender's rules, and b on the same host with the receiver's."""
    return World(
        network("blue"),
        group("sender", *sender, stateful=stateful),
        group("receiver", *receiver, stateful=stateful),
        port("a", "blue", 1, "sender"),
        port("b", "blue", 2, "receiver"),
    )


def send(world: World, frame: bytes, name: str = "a") -> Decision:
    return world.send(name, frame).hops[0].decision


def test_no_port_security_is_open() -> None:
    world = between((), ())
    world.put(port("a", "blue", 1, port_security=False), port("b", "blue", 2, port_security=False))
    decision = send(world, packet.tcp(A, B, 1, 80))
    assert (decision.reason, decision.rule_from, decision.rule_to) == (Reason.NONE, "OPEN", "OPEN")
    assert send(world, packet.raw(A, 0x88CC, dmac=B.mac)).reason == Reason.NONE


def test_other_ethertypes_stay_out() -> None:
    world = between((), ())
    world.put(port("a", "blue", 1, port_security=False))
    assert send(world, packet.raw(A, 0x88CC, dmac=B.mac)).reason == Reason.ETHERTYPE
    decision = send(world, packet.raw(A, 0x88CC))
    assert (decision.reason, [(r.port, r.reason) for r in decision.refused]) == (
        Reason.FLOODED,
        [("b", Reason.ETHERTYPE)],
    )


def test_without_rules_nothing_passes_but_what_is_implicit() -> None:
    world = between((), ())
    assert send(world, packet.tcp(A, B, 1, 80)).reason == Reason.ACL_FROM_PORT
    world.put(group("sender", *OUT))
    assert send(world, packet.tcp(A, B, 1, 80)).reason == Reason.ACL_TO_PORT
    gratuitous = send(world, packet.arp(A, "10.0.0.1"))
    assert (gratuitous.rule_from, [output.rule for output in gratuitous.outputs]) == ("IMPLICIT", ["IMPLICIT"])


@pytest.mark.parametrize(
    ("frame", "sent", "received"),
    [
        (packet.udp(A, B, 68, 67), True, False),
        (packet.udp(A, B, 546, 547, family=6), True, False),
        (packet.udp(A, B, 67, 68), False, True),
        (packet.udp(A, B, 547, 546, family=6), False, True),
        (packet.udp(A, B, 68, 67, family=6), False, False),
        (packet.tcp(A, B, 68, 67), False, False),
        *[
            (packet.icmp(A, B, kind, family=6, hlim=255), kind in {130, 131, 132, 133, 143}, kind not in {128, 133})
            for kind in (128, 130, 131, 132, 133, 134, 143)
        ],
        (packet.na(A, B, "fd00::1"), True, True),
        (packet.icmp(A, B, 130), False, False),
    ],
)
def test_implicit(frame: bytes, *, sent: bool, received: bool) -> None:
    """Asked of each side alone: the other port is open."""
    world = between((), ())
    world.put(port("b", "blue", 2, port_security=False))
    guarded = {Reason.ROGUE_RA, Reason.ROGUE_DHCP}
    decision = send(world, frame)
    assert (decision.rule_from == "IMPLICIT") == sent
    assert sent or decision.reason in guarded | {Reason.ACL_FROM_PORT}
    world = between((), ())
    world.put(port("a", "blue", 1, port_security=False))
    decision = send(world, frame)
    assert (decision.rule_to == "IMPLICIT") == received
    assert received or decision.reason == Reason.ACL_TO_PORT
    assert not world.memory["h1"].flows


EGRESS = {"direction": "egress"}


@pytest.mark.parametrize(
    ("fields", "frame", "allowed"),
    [
        ({}, packet.tcp(A, B, 1, 80), True),
        ({}, packet.tcp(A, B, 1, 80, family=6), False),
        ({"ethertype": "IPv6"}, packet.tcp(A, B, 1, 80, family=6), True),
        ({"protocol": 6}, packet.tcp(A, B, 1, 80), True),
        ({"protocol": 6}, packet.udp(A, B, 1, 80), False),
        ({"protocol": 47}, packet.other(A, B, 47), True),
        ({"protocol": 6, "port_min": 80, "port_max": 90}, packet.tcp(A, B, 1, 79), False),
        ({"protocol": 6, "port_min": 80, "port_max": 90}, packet.tcp(A, B, 1, 80), True),
        ({"protocol": 6, "port_min": 80, "port_max": 90}, packet.tcp(A, B, 1, 90), True),
        ({"protocol": 6, "port_min": 80, "port_max": 90}, packet.tcp(A, B, 80, 91), False),
        ({"protocol": 17, "port_min": 0, "port_max": 65535}, packet.udp(A, B, 1, 0), True),
        ({"protocol": 132, "port_min": 9, "port_max": 9}, packet.sctp(A, B, 1, 9), True),
        ({"protocol": 6, "port_min": 80}, packet.tcp(A, B, 1, 65535), True),
        ({"protocol": 6, "port_max": 80}, packet.tcp(A, B, 1, 0), True),
        ({"protocol": 6, "port_max": 80}, packet.tcp(A, B, 1, 81), False),
        ({"protocol": 47, "port_min": 0, "port_max": 65535}, packet.other(A, B, 47), False),
        ({"port_min": 0, "port_max": 65535}, packet.tcp(A, B, 1, 80), False),
        ({"protocol": 1}, packet.icmp(A, B, 8), True),
        ({"protocol": 1, "port_min": 8}, packet.icmp(A, B, 8, 3), True),
        ({"protocol": 1, "port_min": 8}, packet.icmp(A, B, 13), False),
        ({"protocol": 1, "port_min": 0}, packet.icmp(A, B, 8), False),
        ({"protocol": 1, "port_min": 8, "port_max": 0}, packet.icmp(A, B, 8, 0), True),
        ({"protocol": 1, "port_min": 8, "port_max": 0}, packet.icmp(A, B, 8, 3), False),
        ({"protocol": 1, "port_max": 0}, packet.icmp(A, B, 8, 0), False),
        ({"protocol": 58, "port_min": 128, "ethertype": "IPv6"}, packet.icmp(A, B, 128, family=6), True),
        ({"protocol": 1, "ethertype": "IPv6"}, packet.other(A, B, 1, payload=bytes(8), family=6), True),
        ({"protocol": 1, "port_min": 0, "ethertype": "IPv6"}, packet.other(A, B, 1, payload=bytes(8), family=6), False),
        ({"protocol": 1, "ethertype": "IPv6"}, packet.icmp(A, B, 128, family=6), False),
        ({"remote_cidr": "10.0.0.2/32"}, packet.tcp(A, B, 1, 80), True),
        ({"remote_cidr": "10.0.0.7/24"}, packet.tcp(A, B, 1, 80), True),
        ({"remote_cidr": "0.0.0.0/0"}, packet.tcp(A, B, 1, 80), True),
        ({"remote_cidr": "10.0.0.1/32"}, packet.tcp(A, B, 1, 80), False),
        ({"remote_address_group": "list"}, packet.tcp(A, B, 1, 80), True),
        ({"remote_address_group": "list", "ethertype": "IPv6"}, packet.tcp(A, B, 1, 80, family=6), False),
        ({"remote_address_group": "gone"}, packet.tcp(A, B, 1, 80), False),
        ({"remote_group": "receiver"}, packet.tcp(A, B, 1, 80), True),
        ({"remote_group": "receiver", "ethertype": "IPv6"}, packet.tcp(A, B, 1, 80, family=6), True),
        ({"remote_group": "sender"}, packet.tcp(A, B, 1, 80), False),
        ({"remote_group": "gone"}, packet.tcp(A, B, 1, 80), False),
        ({"direction": "ingress"}, packet.tcp(A, B, 1, 80), False),
    ],
)
def test_one_rule(fields: dict[str, Any], frame: bytes, *, allowed: bool) -> None:
    world = between((Rule(id="r", **EGRESS | fields),), ANY)
    world.put(AddressGroup(id="list", addresses=("10.0.0.2/31", "fd00::8/125")))
    decision = send(world, frame)
    assert (decision.reason == Reason.NONE) == allowed
    assert decision.rule_from == ("r" if allowed else "NONE")
    if not allowed:
        assert decision.reason == Reason.ACL_FROM_PORT


def test_the_remote_of_the_receiving_side_is_the_source() -> None:
    world = between(OUT, (rule("r", "ingress", 6, 80, remote_cidr="10.0.0.1/32"),))
    assert send(world, packet.tcp(A, B, 1, 80)).rule_to == "r"
    world.put(group("receiver", rule("r", "ingress", 6, 80, remote_cidr="10.0.0.2/32")))
    assert send(world, packet.tcp(A, B, 2, 80)).reason == Reason.ACL_TO_PORT


def test_members_are_counted_wherever_they_are() -> None:
    world = between(OUT, (rule("r", "ingress", remote_group="members"),))
    assert send(world, packet.tcp(A, B, 1, 80)).reason == Reason.ACL_TO_PORT
    other = port("x", "red", 1, "members", host=None, port_security=False)
    world.put(network("red", 200), group("members"), other)
    assert send(world, packet.tcp(A, B, 1, 80)).rule_to == "r"
    pairs = (AddressPair(address="10.0.0.0/30", mac="02:00:00:00:00:99"),)
    world.put(port("x", "red", 9, "members", address_pairs=pairs))
    assert send(world, packet.tcp(A, B, 2, 80)).rule_to == "r"


def test_all_rules_that_allow_are_told_in_the_groups_order() -> None:
    world = between(OUT, ())
    world.put(
        group("one", rule("r1", "ingress", 6, 80), rule("r2", "ingress", 17)),
        group("two", rule("r3", "ingress")),
        port("b", "blue", 2, "two", "one", "missing"),
    )
    decision = send(world, packet.tcp(A, B, 1, 80))
    assert (decision.rule_to, decision.allowed_to) == ("r3", ("r3", "r1"))


def test_replies_pass_on_a_stateful_side() -> None:
    world = between(OUT, (rule("r", "ingress", 6, 80),))
    assert send(world, packet.tcp(A, B, 1000, 80)).reason == Reason.NONE
    reply = send(world, packet.tcp(B, A, 80, 1000, "SA"), "b")
    assert (reply.reason, reply.rule_from, reply.rule_to) == (Reason.NONE, "ESTABLISHED", "ESTABLISHED")
    again = send(world, packet.tcp(A, B, 1000, 80, "A"))
    assert (again.rule_from, again.rule_to) == ("out4", "r")
    assert send(world, packet.tcp(B, A, 80, 1001, "A"), "b").reason == Reason.ACL_FROM_PORT


def test_replies_need_rules_on_a_stateless_side() -> None:
    world = between(OUT, (rule("r", "ingress", 6, 80),), stateful=False)
    assert send(world, packet.tcp(A, B, 1000, 80)).reason == Reason.NONE
    assert send(world, packet.tcp(B, A, 80, 1000, "SA"), "b").reason == Reason.ACL_FROM_PORT
    world.put(group("receiver", *ANY, stateful=False))
    assert send(world, packet.tcp(B, A, 80, 1000, "SA"), "b").reason == Reason.ACL_TO_PORT
    world.put(group("sender", *ANY, stateful=False))
    decision = send(world, packet.tcp(B, A, 80, 1000, "SA"), "b")
    assert (decision.reason, decision.rule_from, decision.rule_to) == (Reason.NONE, "out4", "in4")


def test_the_two_sides_may_differ() -> None:
    world = between(OUT, (rule("r", "ingress", 17, 53), *OUT))
    world.put(group("receiver", rule("r", "ingress", 17, 53), *OUT, stateful=False))
    assert send(world, packet.udp(A, B, 1000, 53)).reason == Reason.NONE
    reply = send(world, packet.udp(B, A, 53, 1000), "b")
    assert (reply.reason, reply.rule_from, reply.rule_to) == (Reason.NONE, "out4", "ESTABLISHED")


@pytest.mark.parametrize("side", ["sender", "receiver"])
@pytest.mark.parametrize("reply", [False, True])
def test_a_rule_removed_cuts_at_once_and_both_ways(side: str, *, reply: bool) -> None:
    world = between(OUT, (rule("r", "ingress", 6, 80), *OUT))
    send(world, packet.tcp(A, B, 1000, 80))
    send(world, packet.tcp(B, A, 80, 1000, "SA"), "b")
    world.put(group(side, *(() if side == "sender" else OUT)))
    there, back = (packet.tcp(A, B, 1000, 80, "A"), "a"), (packet.tcp(B, A, 80, 1000, "A"), "b")
    for frame, name in (back, there) if reply else (there, back):
        assert send(world, frame, name).reason == Reason.CONNECTION_CUT
    world.put(group("sender", *OUT), group("receiver", rule("r", "ingress", 6, 80)))
    assert send(world, *there).reason == Reason.NONE, "it goes on where it is allowed again"
    assert send(world, *back).reason == Reason.NONE


def test_what_was_cut_is_forgotten_after_a_silence() -> None:
    """TCP's; another protocol's is gone at once, and its other side may begin anew."""
    world = between(OUT, (rule("r", "ingress"), *OUT))
    for frame in (packet.tcp(A, B, 1000, 80, "A"), packet.udp(A, B, 1000, 80)):
        assert send(world, frame).reason == Reason.NONE
    world.put(group("receiver", *OUT))
    there, back = packet.tcp(A, B, 1000, 80, "A"), packet.tcp(B, A, 80, 1000, "A")
    for _ in range(3):
        assert send(world, there).reason == Reason.CONNECTION_CUT
        world.now += 300_000
    assert send(world, there).reason == Reason.CONNECTION_CUT
    assert send(world, packet.udp(A, B, 1000, 80)).reason == Reason.ACL_TO_PORT, "expired long ago"
    world.now += 300_001
    assert send(world, back, "b").reason == Reason.ACL_TO_PORT, "adopted, and the sender lets nothing in"


def test_a_rule_added_for_something_else_cuts_nothing() -> None:
    world = between(OUT, (rule("r", "ingress", 6, 80),))
    send(world, packet.tcp(A, B, 1000, 80))
    world.put(group("receiver", rule("other", "ingress", 6, remote_cidr="10.0.0.0/8")))
    assert send(world, packet.tcp(B, A, 80, 1000, "SA"), "b").reason == Reason.NONE
    assert send(world, packet.tcp(A, B, 1000, 80, "A")).rule_to == "other"


def test_a_member_that_left_is_cut() -> None:
    world = between(OUT, (rule("r", "ingress", remote_group="sender"),))
    send(world, packet.tcp(A, B, 1000, 80))
    world.put(group("elsewhere", *OUT), port("a", "blue", 1, "elsewhere"))
    assert send(world, packet.tcp(B, A, 80, 1000, "SA"), "b").reason == Reason.CONNECTION_CUT


def test_replies_to_somebody_elses_mac_find_no_way_past_his_rules() -> None:
    world = between(OUT, (rule("r", "ingress", 6, 80),))
    world.put(port("c", "blue", 3, "sender"))
    send(world, packet.tcp(A, B, 1000, 80))
    diverted = packet.tcp(B, A, 80, 1000, "SA", dmac=world.port("c").mac)
    assert send(world, diverted, "b").reason == Reason.ACL_TO_PORT
    assert send(world, packet.tcp(B, A, 80, 1000, "SA"), "b").reason == Reason.NONE


def test_syn_ack_without_syn() -> None:
    frame = packet.tcp(A, B, 80, 1000, "SA")
    world = between(ANY, ANY)
    assert send(world, frame).reason == Reason.TCP_INVALID
    world.put(port("a", "blue", 1, port_security=False))
    assert send(world, frame).reason == Reason.TCP_INVALID, "the receiver tracks"
    world.put(group("receiver", *ANY, stateful=False))
    assert send(world, frame).reason == Reason.NONE


def test_a_port_with_a_stateless_group_does_not_track() -> None:
    world = between(ANY, ANY)
    world.put(group("loose", stateful=False), port("a", "blue", 1, "sender", "loose"), port("b", "blue", 2, "loose"))
    assert send(world, packet.tcp(A, B, 80, 1000, "SA")).reason == Reason.ACL_TO_PORT
    world.put(port("b", "blue", 2))
    assert send(world, packet.tcp(A, B, 80, 1000, "SA")).reason == Reason.TCP_INVALID, "no group: it tracks"


def test_each_side_by_its_own_host() -> None:
    world = between(OUT, (rule("r", "ingress", 6, 80),))
    world.put(port("b", "blue", 2, "receiver", host="h2"))
    journey = world.send("a", packet.tcp(A, B, 1000, 80))
    assert [(hop.host, hop.decision.rule_from, hop.decision.rule_to) for hop in journey.hops] == [
        ("h1", "out4", "REMOTE"),
        ("h2", "REMOTE", "r"),
    ]
    assert world.send("a", packet.tcp(A, B, 1000, 81)).reason == Reason.ACL_TO_PORT
    back = world.send("b", packet.tcp(B, A, 80, 1000, "SA"))
    assert (back.receivers, back.hops[0].decision.rule_from, back.hops[1].decision.rule_to) == (
        ["a"],
        "ESTABLISHED",
        "ESTABLISHED",
    )


def test_tenants_with_the_same_addresses_do_not_meet() -> None:
    world = between(OUT, (rule("r", "ingress", 6, 80),))
    world.put(network("red", 200), port("ra", "red", 1, "sender"), port("rb", "red", 2, "receiver"))
    send(world, packet.tcp(A, B, 1000, 80))
    assert send(world, packet.tcp(B, A, 80, 1000, "SA"), "rb").reason == Reason.TCP_INVALID
    by_red = Arrival(vtep="192.0.2.2", segment=Segment(id=200), frame=packet.tcp(B, A, 80, 1000, "A"))
    assert world.arrive("h1", by_red).reason == Reason.ACL_TO_PORT
