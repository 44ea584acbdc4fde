"""account: what is counted, how a super-packet counts, and where. docs/pipeline.md, "account".

Every run of every test of this folder compares all counters with the oracle's; here are the numbers by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import TCP, UDP

from headrace.abi import Reason
from headrace.model import State as Desired
from headrace.testing import packet
from headrace.testing.packet import BROADCAST
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, OUT, group, network, port

MakeTwin = Callable[..., Twin]

A, B, C = port("a", "blue", 1, "any"), port("b", "blue", 2, "any"), port("c", "blue", 3, "any", host="h2")
STATE = (network("blue", mtu=9000), group("any", *ANY), A, B, C)
OPTIONS = [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]

# Header octets from Ethernet on, and a frame of 1,000 octets of payload behind them.
SUPER = {
    "tcp": (54, packet.tcp(A, B, 1, 2, "A", payload=bytes(1000))),
    "tcp with options": (66, bytes(packet.over_ip(A, B, TCP(flags="A", options=OPTIONS) / bytes(1000)))),
    "tcp over IPv6": (74, packet.tcp(A, B, 1, 2, "A", payload=bytes(1000), family=6)),
    "udp": (42, bytes(packet.over_ip(A, B, UDP() / bytes(1000)))),
    "sctp": (46, packet.sctp(A, B, 1, 2) + bytes(1000)),
    "icmp": (42, packet.icmp(A, B) + bytes(1000)),
    "gre": (34, packet.other(A, B, 47, payload=bytes(1000))),
    "gre over IPv6": (54, packet.other(A, B, 47, payload=bytes(1000), family=6)),
    "udp behind extensions": (70, packet.padded(packet.udp(A, B, 1, 2, payload=bytes(1000), family=6))),
}

SEGMENTS = [(0, 1), (1, 1000), (100, 10), (300, 4), (999, 2), (1000, 1), (9000, 1)]
"""gso_size, and how many segments that makes of 1,000 octets."""


@pytest.mark.parametrize("name", SUPER)
@pytest.mark.parametrize(
    ("gso_size", "segments"), [(0, 1), (1, 1000), (100, 10), (300, 4), (999, 2), (1000, 1), (9000, 1)]
)
def test_a_super_packet_counts_as_its_segments(twin: MakeTwin, name: str, gso_size: int, segments: int) -> None:
    header, frame = SUPER[name]
    assert len(frame) == header + 1000
    asked = twin(*STATE)
    octets = 1000 + segments * header
    for walked in (segments, 0):
        observed = asked.run(sent("a", frame, gso_size=gso_size))
        for port_, which, packets in (
            ("a", "from_port", segments),
            ("b", "to_port", segments),
            ("a", "walked", walked),
        ):
            assert observed.counts.traffic[port_, which, "packets"] == packets
            assert observed.counts.traffic[port_, which, "octets"] == (octets if packets else 0)
    (conn,) = asked.host.memory.connections().values()
    assert (conn.counter[0].packets, conn.counter[0].octets) == (2 * segments, 2 * octets)


def test_a_super_packet_to_a_tunnel_counts_the_same(twin: MakeTwin) -> None:
    """On an underlay of veths; test runs cannot give the others what they need to segment."""
    asked = twin(*STATE, whole=True)
    frame = packet.tcp(A, C, 1, 2, "A", payload=bytes(3000))
    for _ in range(2):
        observed = asked.run(sent("a", frame, gso_size=1000))
        assert observed.counts.traffic["a", "from_port", "packets"] == 3
        assert observed.counts.traffic["a", "from_port", "octets"] == 3000 + 3 * 54
        assert observed.outputs[0].frame == frame


def test_octets_are_the_workloads_own(twin: MakeTwin) -> None:
    """No outer header counts, padding does, and both hosts of a tunnel count alike."""
    asked = twin(*STATE)
    for number, frame in enumerate((packet.udp(A, C, 1, 2), packet.udp(A, C, 1, 2) + bytes(18))):
        observed = asked.thrice(sent("a", frame))
        assert observed.counts.traffic["a", "from_port", "octets"] == 42 + 18 * number
        back = tunnelled(packet.udp(C, A, 2, 1) + bytes(18 * number))
        assert asked.thrice(back).counts.traffic["a", "to_port", "octets"] == 42 + 18 * number
    ((_, conn),) = asked.host.memory.connections().items()
    assert [counter.packets for counter in conn.counter] == [6, 6]
    assert [counter.octets for counter in conn.counter] == [3 * 102, 3 * 102]


def test_a_drop_counts_once_with_its_reason_where_it_entered(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("deaf", "blue", 9, "out"), group("out", *OUT))
    observed = asked.thrice(sent("a", packet.udp(A, port("deaf", "blue", 9), 1, 2)))
    assert observed.counts.reasons == {("a", Reason.ACL_TO_PORT): 1}
    assert not any(which != "walked" for _, which, _ in observed.counts.traffic)
    observed = asked.thrice(tunnelled(packet.udp(C, port("deaf", "blue", 9), 1, 2)))
    assert observed.counts.reasons == {("", Reason.ACL_TO_PORT): 1}


def test_a_super_packet_that_is_dropped_is_one(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("deaf", "blue", 9, "out"), group("out", *OUT))
    frame = packet.tcp(A, port("deaf", "blue", 9), 1, 2, "A", payload=bytes(1000))
    assert asked.run(sent("a", frame, gso_size=100)).counts.reasons == {("a", Reason.ACL_TO_PORT): 1}


def test_a_flood_counts_at_its_sender_once_and_at_each_receiver(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("deaf", "blue", 9, "out"), group("out", *OUT))
    observed = asked.thrice(sent("a", packet.udp(A, A, 1, 2, dmac=BROADCAST)))
    assert observed.counts.reasons == {("a", Reason.FLOODED): 1, ("deaf", Reason.ACL_TO_PORT): 1}
    packets = {
        (port_, which): number for (port_, which, unit), number in observed.counts.traffic.items() if unit == "packets"
    }
    assert packets == {("a", "from_port"): 1, ("a", "walked"): 1, ("b", "to_port"): 1}


def test_an_answer_is_no_traffic_of_its_port(twin: MakeTwin) -> None:
    observed = twin(*STATE).thrice(sent("a", packet.arp(A, "10.0.0.2")))
    assert observed.counts.reasons == {("a", Reason.ANSWERED): 1}
    assert {which for _, which, _ in observed.counts.traffic} == {"walked"}


def test_counters_outlive_changes(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(sent("a", packet.udp(A, B, 1, 2)))
    before = asked.host.counts()
    asked.apply(Desired.of((*asked.state.all(), port("a", "blue", 1, "any", admin_up=False))))
    asked.apply(Desired.of((*asked.state.all(), A)))
    assert asked.host.counts() == before
    assert asked.run(sent("a", packet.udp(A, B, 1, 2))).connection is not None
    ((_, conn),) = asked.host.memory.connections().items()
    assert conn.counter[0].packets == 2
