"""The oracle's way of every wire, over several hosts and without a kernel. docs/pipeline.md, "admit" and "encap"."""

from __future__ import annotations

import ipaddress

import pytest

from headrace.abi import Reason
from headrace.datapath.decision import Arrival, Dropped
from headrace.datapath.frame import tunnel
from headrace.datapath.oracle import Surroundings
from headrace.datapath.wires import TUNNELS, room, vlan
from headrace.model import Segment
from headrace.testing import outer, packet
from headrace.testing.strategy_state import SEGMENTS
from headrace.testing.world import ANY, World, group, network, port

TUNNELLED = [segment for segment in SEGMENTS if not segment.is_physical]
PHYSICAL = [segment for segment in SEGMENTS if segment.is_physical]
A, B = port("a", "blue", 1, "any"), port("b", "blue", 2, "any", host="h2")
NAME = lambda segment: segment.text  # noqa: E731


def world(segment: Segment) -> World:
    return World(network("blue", segment=segment), group("any", *ANY), A, B, port("near", "blue", 4, "any"))


@pytest.mark.parametrize("segment", TUNNELLED, ids=NAME)
def test_what_is_put_is_taken(segment: Segment) -> None:
    wire = TUNNELS[segment.wire]
    assert wire.put(segment.number) == outer.header_of(segment)
    assert wire.take(wire.put(segment.number) + b"inner") == (segment.number, b"inner")
    for length in range(len(wire.put(segment.number))):
        with pytest.raises(Dropped) as dropped:
            wire.take(wire.put(segment.number)[:length])
        assert dropped.value.reason == Reason.MALFORMED_TUNNEL
    assert [room(segment.wire, version) for version in (4, 6)] == [segment.overhead(version) for version in (4, 6)]


@pytest.mark.parametrize("segment", TUNNELLED, ids=NAME)
@pytest.mark.parametrize("ends", [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")], ids=["ipv4", "ipv6"])
def test_what_trace_sends_is_what_comes(segment: Segment, ends: tuple[str, str]) -> None:
    """The frames that `headrace trace` gives to the programs, read by hand and by the oracle."""
    inner = packet.udp(B, A, 1, 2)
    frame = tunnel(ends[0], ipaddress.ip_address(ends[1]).packed, segment, inner)
    found = outer.take_off(frame)
    assert (found.segment, found.inner) == (segment, inner)
    if segment.wire != "nsh-ethernet":
        assert (found.source, found.destination) == ends
        assert world(segment).arrive("h1", Arrival(frame=frame)).outputs[0].port == "a"


@pytest.mark.parametrize("segment", SEGMENTS, ids=NAME)
def test_over_two_hosts_and_back(segment: Segment) -> None:
    asked = world(segment)
    for family in (4, 6):
        assert asked.send("a", packet.udp(A, B, 1, 2, family=family)).receivers == ["b"]
        assert asked.send("b", packet.udp(B, A, 2, 1, family=family)).receivers == ["a"]
    flooded = asked.send("a", packet.udp(A, B, 1, 2, dmac=packet.BROADCAST))
    assert sorted(flooded.receivers) == ["b", "near"]
    assert flooded.wires == []


@pytest.mark.parametrize("segment", PHYSICAL, ids=NAME)
def test_what_leaves_for_nobody_known(segment: Segment) -> None:
    stranger = packet.Somewhere("02:00:00:00:99:99", ("10.0.0.99",))
    journey = world(segment).send("a", packet.udp(A, stranger, 1, 2))
    assert (journey.arrives, journey.wires, journey.receivers) == (True, [segment], [])


@pytest.mark.parametrize("segment", PHYSICAL, ids=NAME)
def test_tags(segment: Segment) -> None:
    frame = packet.udp(A, B, 1, 2)
    tagged = vlan.put(frame, segment.id, segment.service_vlan)
    assert tagged == outer.put_tags(frame, segment)
    assert vlan.take(tagged) == (segment.service_vlan or 0, segment.number, frame)
    cut = vlan.take(tagged[:17])
    assert cut is None or segment.id is None, "it ends inside its tags"


@pytest.mark.parametrize("segment", PHYSICAL, ids=NAME)
def test_a_host_without_the_device(segment: Segment) -> None:
    asked = world(segment)
    asked.surroundings = Surroundings(physical={"elsewhere": 1500})
    assert asked.send("a", packet.udp(A, B, 1, 2)).reason == Reason.NO_PORT


@pytest.mark.parametrize("segment", SEGMENTS, ids=NAME)
def test_a_sub_port_sends_by_its_trunk(segment: Segment) -> None:
    """Whoever traces what a sub-port sends names the sub-port, and gives no tag."""
    asked = world(segment)
    asked.put(network("trunked", 7), port("t", "trunked", 9, "any"), port("s", "blue", 8, "any", parent="t", vlan=5))
    frame = packet.udp(port("s", "blue", 8), B, 1, 2)
    journey = asked.send("s", frame)
    assert (journey.receivers, journey.hops[0].decision.port) == (["b"], "s")
    back = packet.udp(B, port("s", "blue", 8), 2, 1)
    assert asked.send("b", back).hops[-1].decision.outputs[0].frame == packet.tagged(back, 5)
