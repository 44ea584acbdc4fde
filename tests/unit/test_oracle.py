"""The oracle as a whole: forward, flood, encap, account, and what a decision tells. docs/pipeline.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import headrace
from headrace.abi import Reason
from headrace.datapath.decision import Arrival, Decision
from headrace.model import AddressPair, Host, Segment
from headrace.testing import packet
from headrace.testing.packet import Somewhere
from headrace.testing.world import ANY, OUT, World, group, network, port

VRRP = "00:00:5e:00:01:07"
A = Somewhere("02:00:00:00:00:01", ("10.0.0.1", "fd00::1"))
B = Somewhere("02:00:00:00:00:02", ("10.0.0.2", "fd00::2"))
FAR = Somewhere("02:00:00:00:00:03", ("10.0.0.3", "fd00::3"))
VIRTUAL = Somewhere(VRRP, ("10.0.0.100",))


@pytest.fixture
def world() -> World:
    pair = (AddressPair(address="10.0.0.100", mac=VRRP),)
    return World(
        network("blue"),
        network("red", 200),
        group("any", *ANY),
        port("a", "blue", 1, "any"),
        port("b", "blue", 2, "any", address_pairs=pair),
        port("far", "blue", 3, "any", host="h2", address_pairs=pair),
        port("off", "blue", 4, "any", admin_up=False),
        port("unbound", "blue", 5, "any", host=None),
        port("stray", "blue", 6, "any", host="h9"),
        port("red", "red", 7, "any"),
    )


def send(world: World, frame: bytes, name: str = "a") -> Decision:
    return world.send(name, frame).hops[0].decision


def to(mac: str) -> bytes:
    return packet.udp(A, B, 1, 2, dmac=mac)


@pytest.mark.parametrize(
    ("mac", "reason"),
    [
        ("02:00:00:00:00:02", Reason.NONE),
        ("02:00:00:00:00:03", Reason.NONE),
        ("02:00:00:00:00:04", Reason.PORT_DOWN),
        ("02:00:00:00:00:05", Reason.UNKNOWN_MAC),
        ("02:00:00:00:00:06", Reason.UNKNOWN_MAC),
        ("02:00:00:00:00:07", Reason.UNKNOWN_MAC),
        ("02:00:00:00:00:99", Reason.UNKNOWN_MAC),
        ("02:00:00:00:00:01", Reason.HAIRPIN),
    ],
    ids=["here", "there", "down", "unbound", "on an unknown host", "on another network", "nobody's", "own"],
)
def test_forward(world: World, mac: str, reason: Reason) -> None:
    assert send(world, to(mac)).reason == reason


def test_outputs_carry_the_frame_as_it_was_sent(world: World) -> None:
    near = send(world, packet.tcp(A, B, 1, 80))
    assert [(output.port, output.vtep, output.frame) for output in near.outputs] == [
        ("b", None, packet.tcp(A, B, 1, 80))
    ]
    there = send(world, packet.tcp(A, FAR, 1, 80, tos=0xB9))
    assert [(output.vtep, output.segment, output.tos) for output in there.outputs] == [
        ("192.0.2.2", Segment(id=100), 0xB9)
    ]
    six = send(world, packet.tcp(A, FAR, 1, 80, family=6, tc=0x2E))
    assert [output.tos for output in six.outputs] == [0x2E]


def test_a_vtep_of_a_family_that_both_have(world: World) -> None:
    world.put(Host(id="h2", vteps=("2001:db8::2", "192.0.2.2")))
    assert send(world, packet.tcp(A, FAR, 1, 80)).outputs[0].vtep == "2001:db8::2"
    world.put(Host(id="h1", vteps=("192.0.2.1",)))
    assert send(world, packet.tcp(A, FAR, 1, 80)).outputs[0].vtep == "192.0.2.2"
    world.put(Host(id="h1", vteps=()))
    assert send(world, packet.tcp(A, FAR, 2, 80)).reason == Reason.UNKNOWN_MAC


def test_from_tunnel_to_tunnel(world: World) -> None:
    frame = packet.udp(FAR, Somewhere("02:00:00:00:00:08", ("10.0.0.8",)), 1, 2)
    world.put(port("third", "blue", 8, "any", host="h3"), Host(id="h3", vteps=("192.0.2.3",)))
    assert (
        world.arrive("h1", Arrival(vtep="192.0.2.2", segment=Segment(id=100), frame=frame)).reason == Reason.TUNNEL_LOOP
    )
    known = Arrival(vtep="192.0.2.2", segment=Segment(id=100), frame=packet.udp(A, FAR, 1, 2))
    assert world.arrive("h1", known).reason == Reason.TUNNEL_LOOP


def test_learning(world: World) -> None:
    to_virtual = packet.udp(A, VIRTUAL, 1, 2)
    assert send(world, to_virtual).reason == Reason.UNKNOWN_MAC
    gratuitous = packet.arp(VIRTUAL, "10.0.0.100")
    assert world.send("far", gratuitous).receivers == ["a", "b"]
    assert send(world, to_virtual).outputs[0].vtep == "192.0.2.2"
    assert world.send("b", gratuitous).receivers == ["a", "far"]
    assert send(world, to_virtual).outputs[0].port == "b"
    assert world.memory["h1"].learnt == {(Segment(id=100), VRRP): ("port", "b on blue")}
    world.put(port("b", "blue", 2, "any", host="h2"))
    assert send(world, to_virtual).reason == Reason.UNKNOWN_MAC, "the port left"


def test_a_ports_own_mac_is_never_learnt(world: World) -> None:
    world.put(port("open", "blue", 9, port_security=False))
    world.send("open", packet.udp(Somewhere(B.mac, ("10.9.9.9",)), A, 1, 2))
    assert world.memory["h1"].learnt == {}
    assert send(world, to(B.mac)).outputs[0].port == "b"
    guest = Somewhere("02:00:00:00:99:99", ("10.9.9.9",))
    world.send("open", packet.udp(guest, A, 1, 2))
    assert send(world, to(guest.mac)).outputs[0].port == "open"
    unbound = Somewhere("02:00:00:00:00:05", ("10.0.0.5",))
    world.send("open", packet.udp(unbound, A, 1, 2))
    assert send(world, to(unbound.mac)).outputs[0].port == "open", "whose port is nowhere may be learnt"


def test_nothing_is_learnt_from_what_the_from_side_drops(world: World) -> None:
    world.put(group("any", *OUT), port("b", "blue", 2, address_pairs=(AddressPair(address="10.0.0.100", mac=VRRP),)))
    assert send(world, packet.udp(VIRTUAL, A, 1, 2), "b").reason == Reason.ACL_FROM_PORT
    assert world.memory["h1"].learnt == {}
    world.put(port("b", "blue", 2, "any", address_pairs=(AddressPair(address="10.0.0.100", mac=VRRP),)))
    assert send(world, packet.udp(VIRTUAL, A, 1, 2), "b").reason == Reason.ACL_TO_PORT
    assert world.memory["h1"].learnt == {(Segment(id=100), VRRP): ("port", "b on blue")}


def test_a_frame_to_its_own_learnt_mac(world: World) -> None:
    assert send(world, packet.udp(VIRTUAL, VIRTUAL, 1, 2), "b").reason == Reason.HAIRPIN


def test_flood(world: World) -> None:
    world.put(Host(id="h3", vteps=("192.0.2.3",)), port("third", "blue", 8, "any", host="h3"))
    journey = world.send("a", packet.arp(A, "10.0.0.77"))
    first = journey.hops[0].decision
    assert first.reason == Reason.FLOODED
    assert {output.port or output.vtep for output in first.outputs} == {"b", "192.0.2.2", "192.0.2.3"}
    assert [(refusal.port, refusal.reason) for refusal in first.refused] == [("off", Reason.PORT_DOWN)]
    assert sorted(journey.receivers) == ["b", "far", "third"]
    assert [hop.decision.reason for hop in journey.hops] == [Reason.FLOODED] * 3


def test_flooded_packets_are_judged_for_each_receiver(world: World) -> None:
    world.put(group("none"), port("b", "blue", 2, "none"), port("c", "blue", 8, "any"))
    frame = packet.udp(A, B, 5353, 5353, dst="224.0.0.251", dmac="01:00:5e:00:00:fb")
    decision = send(world, frame)
    assert {output.port: output.rule for output in decision.outputs if output.port} == {"c": "in4"}
    assert {refusal.port: refusal.reason for refusal in decision.refused} == {
        "b": Reason.ACL_TO_PORT,
        "off": Reason.PORT_DOWN,
    }
    assert (decision.rule_from, decision.rule_to) == ("out4", "NONE")
    assert not world.memory["h1"].flows


def test_flooded_packets_ask_the_rules_alone(world: World) -> None:
    broadcast = packet.BROADCAST
    assert send(world, packet.tcp(A, B, 80, 1000, "SA", dmac=broadcast)).reason == Reason.FLOODED
    quoted = packet.udp(B, A, 1, 2)
    assert send(world, packet.icmp_error(A, B, quoted, dmac=broadcast)).reason == Reason.FLOODED
    world.put(group("any", *ANY[2:]))
    assert send(world, packet.udp(A, B, 1, 2, dmac=broadcast)).reason == Reason.ACL_FROM_PORT


def test_a_flood_that_nobody_gets(world: World) -> None:
    decision = send(world, packet.arp(Somewhere(world.port("red").mac, ("10.0.0.7",)), "10.0.0.1"), "red")
    assert (decision.reason, decision.outputs, decision.dropped) == (Reason.FLOODED, (), True)


def test_what_came_by_tunnel_never_leaves_by_tunnel(world: World) -> None:
    world.put(Host(id="h3", vteps=("192.0.2.3",)), port("third", "blue", 8, "any", host="h3"))
    decision = world.arrive(
        "h1", Arrival(vtep="192.0.2.2", segment=Segment(id=100), frame=packet.arp(FAR, "10.0.0.77"))
    )
    assert {output.port for output in decision.outputs} == {"a", "b"}


def test_a_whole_frame_from_the_uplink(world: World) -> None:
    inner = packet.udp(FAR, A, 1, 2)
    decision = world.arrive("h1", Arrival(frame=packet.vxlan("192.0.2.2", "192.0.2.1", 100, inner)))
    assert [(output.port, output.frame) for output in decision.outputs] == [("a", inner)]
    assert decision.octets == len(inner)


def test_a_decision_tells_how_it_came_about(world: World) -> None:
    decision = send(world, packet.tcp(A, B, 1000, 80))
    assert [(step.stage, step.rule) for step in decision.steps] == [
        ("admit", None),
        ("anti_spoof", None),
        ("track", None),
        ("acl, from side", "out4"),
        ("forward", None),
        ("acl, to side", "in4"),
    ]
    assert "tcp 10.0.0.1:1000 > 10.0.0.2:80 syn" in decision.steps[0].text
    dropped = send(world, to("02:00:00:00:00:99"))
    assert dropped.steps[-1].stage == "forward"
    assert dropped.steps[-1].text.startswith("dropped, UNKNOWN_MAC: nobody on network blue has 02:00:00:00:00:99")


ENVIRONMENT = {
    "ECN",
    "GENEVE_OPTION",
    "NSH_EXHAUSTED",
    "NO_ROUTE",
    "NO_NEIGHBOUR",
    "TABLE_FULL",
    "QUOTA",
    "BUSY",
    "INTERNAL",
    "FROM_HOST",
    "NESTED_SUPERPACKET",
    "BUDGET",
}
"""Reasons that desired state and a packet cannot tell."""


def test_every_reason_is_tested() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_oracle*.py"))
    missing = {reason.name for reason in Reason if f"Reason.{reason.name}" not in tests}
    assert missing == ENVIRONMENT


SHARED = {"headrace.abi", "headrace.errors", "headrace.model", "headrace.model.segment", "headrace.datapath"}


def test_the_oracle_is_independent() -> None:
    """It must not share what it judges: no compilers, no tables, no driver."""
    folder = Path(headrace.__file__).parent / "datapath"
    names = ["connection", "decision", "frame", "journey", "notation", "oracle", "packet"]
    paths = [folder / f"{name}.py" for name in names] + sorted(folder.glob("oracle_*.py"))
    own = {f"headrace.datapath.{path.stem}" for path in paths} | {"headrace.datapath.wires"}
    paths += sorted((folder / "wires").glob("*.py"))
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headrace"):
                assert node.module in own | SHARED
