"""encap, VXLAN: every octet of the outer headers, and the next hop they go to. docs/pipeline.md, "encap"."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from headrace.abi import Reason
from headrace.model import Host, Segment
from headrace.testing import packet
from headrace.testing.observation import TC_ACT_REDIRECT
from headrace.testing.outer import take_off
from headrace.testing.packet import BROADCAST
from headrace.testing.stand import underlay_mac
from headrace.testing.twin import Twin, sent
from headrace.testing.world import ANY, HOSTS, group, network, port

MakeTwin = Callable[..., Twin]

A, C = port("a", "blue", 1, "any"), port("c", "blue", 3, "any", host="h2")
OPEN, FAR = port("open", "blue", 5, port_security=False), port("far", "blue", 6, port_security=False, host="h2")
STATE = (network("blue", 0xABCDE), group("any", *ANY), A, C, OPEN, FAR)
FOUR = (Host(id="h1", vteps=("192.0.2.1",)), Host(id="h2", vteps=("192.0.2.2",)))
SIX = (Host(id="h1", vteps=("2001:db8::1",)), Host(id="h2", vteps=("2001:db8::2",)))
UNDERLAYS = {"ipv4": FOUR, "ipv6": SIX}
FRAMES = {
    "tcp": ("a", packet.tcp(A, C, 1000, 80)),
    "udp over IPv6": ("a", packet.udp(A, C, 1000, 53, payload=b"x" * 100, family=6)),
    "odd length": ("a", packet.udp(A, C, 1000, 53, payload=b"x")),
    "padding": ("a", packet.udp(A, C, 1000, 53) + bytes(18)),
    "the longest": ("a", packet.udp(A, C, 1000, 53, payload=bytes(1402))),
    "ARP": ("open", packet.arp(OPEN, "10.0.0.99", dmac=FAR.mac)),
    "another ethertype": ("open", packet.raw(OPEN, 0x88CC, bytes(46), dmac=FAR.mac)),
    "an Ethernet header alone": ("open", packet.raw(OPEN, 0x88CC, dmac=FAR.mac)),
    "a fragment": ("a", packet.fragments(packet.udp(A, C, 1000, 53, payload=bytes(64)), 32)[0]),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_every_octet_of_the_outer_headers(twin: MakeTwin, underlay: str, name: str, whole: bool) -> None:  # noqa: FBT001
    hosts = UNDERLAYS[underlay]
    asked = twin(*STATE, hosts=hosts, whole=whole)
    sender, frame = FRAMES[name]
    outer = asked.thrice(sent(sender, frame)).outer
    (source,), (destination,) = (host.vteps for host in hosts)
    header = IPv6(hlim=64) if underlay == "ipv6" else IP(id=0, flags="DF", ttl=64)
    header.src, header.dst = source, destination
    sport = take_off(outer).sport
    if underlay == "ipv6":
        header.fl = IPv6(outer[14:]).fl
        assert header.fl >> 16 == sport - 49152 & 0xF, (
            "the flow label is the low 20 bits of the hash that the port has above"
        )
    vxlan = VXLAN(flags="Instance", vni=0xABCDE)
    ether = Ether(src=asked.host.stand.own_mac, dst=underlay_mac(destination))
    udp = UDP(sport=sport, dport=4789, chksum=0)
    assert outer == bytes(ether / header / udp / vxlan / Raw(frame))


@pytest.mark.parametrize("tos", [0x00, 0xB8, 0xFC, 0x01, 0x02, 0x03, 0xBB])
@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_dscp_and_ecn_are_copied(twin: MakeTwin, underlay: str, tos: int) -> None:
    asked = twin(*STATE, hosts=UNDERLAYS[underlay])
    for frame in (packet.udp(A, C, 1, 2, tos=tos), packet.udp(A, C, 1, 2, family=6, tc=tos)):
        observed = asked.thrice(sent("a", frame))
        assert observed.outputs[0].tos == tos
        assert observed.outputs[0].frame == frame, "what is inside keeps its marks"


def test_a_flow_keeps_its_source_port_and_flows_spread(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    ports = set()
    for sport in range(64):
        outer = take_off(asked.thrice(sent("a", packet.udp(A, C, sport, 53))).outer)
        assert 49152 <= outer.sport < 65536
        assert take_off(asked.run(sent("a", packet.udp(A, C, sport, 53, payload=b"more"))).outer).sport == outer.sport
        ports.add(outer.sport)
    assert len(ports) > 48


def test_the_largest_and_the_smallest_vni(twin: MakeTwin) -> None:
    for vni in (1, 0xFFFFFF):
        asked = twin(*STATE, network("blue", vni))
        assert take_off(asked.thrice(sent("a", packet.udp(A, C, 1, 2))).outer).segment == Segment(id=vni)


# The next hop


def test_without_a_route(twin: MakeTwin) -> None:
    asked = twin(*STATE, hosts=(HOSTS[0], Host(id="h2", vteps=("203.0.113.9",))))
    for _ in range(2):
        observed = asked.host.run(sent("a", packet.udp(A, C, 1, 2)))
        assert (observed.reason, observed.outputs) == (Reason.NO_ROUTE, ())
        assert observed.counts.reasons == {("a", Reason.NO_ROUTE): 1}
    assert not asked.host.memory.connections(), "it makes no connection"
    flooded = asked.host.run(sent("a", packet.arp(A, "10.0.0.99")))
    assert flooded.reason == Reason.FLOODED
    assert flooded.counts.reasons == {("a", Reason.FLOODED): 1, ("a", Reason.NO_ROUTE): 1}


@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_a_next_hop_that_has_not_answered_yet(twin: MakeTwin, underlay: str) -> None:
    """The kernel is to ask for it and keeps the packet; once it answers, its MAC is used."""
    asked = twin(*STATE, hosts=UNDERLAYS[underlay])
    (vtep,) = UNDERLAYS[underlay][1].vteps
    stand, arrival = asked.host.stand, sent("a", packet.udp(A, C, 1, 2))
    stand.neighbour(vtep, None)
    for _ in range(2):
        observed = asked.run(arrival)
        assert (observed.verdict, observed.replayed) == (TC_ACT_REDIRECT, False)
        assert asked.host.run(sent("a", packet.arp(A, "10.0.0.99"))).counts.reasons["a", Reason.NO_NEIGHBOUR] == 1
    stand.neighbour(vtep, underlay_mac(vtep))
    assert not asked.run(arrival).replayed
    assert asked.thrice(arrival).replayed


def test_a_next_hop_that_changes_its_mac_heals_by_the_walks(twin: MakeTwin) -> None:
    """Some of them ask the kernel again; for this many not to would be a wonder (15/16 to the 500th)."""
    asked = twin(*STATE)
    host, arrival, moved = asked.host, sent("a", packet.udp(A, C, 1, 2)), "02:00:00:00:aa:aa"
    assert asked.thrice(arrival).replayed
    host.stand.neighbour("192.0.2.2", moved)
    for _ in range(500):
        host.datapath.raise_epochs(host.ports.values())
        if take_off(host.run(arrival).outer).mac == moved:
            break
    replay = host.run(arrival)
    assert (replay.replayed, take_off(replay.outer).mac) == (True, moved)
    host.stand.neighbour("192.0.2.2", underlay_mac("192.0.2.2"))


def test_a_known_next_hop_that_is_lost_stays_in_use(twin: MakeTwin) -> None:
    """A walk that finds no neighbour leaves the last known one to the flows that have it."""
    asked = twin(*STATE)
    stand, arrival = asked.host.stand, sent("a", packet.udp(A, C, 1, 2))
    first = asked.thrice(arrival)
    stand.neighbour("192.0.2.2", None)
    for number in range(16):
        asked.host.run(sent("a", packet.udp(A, C, 100 + number, 2)))
    observed = asked.host.run(arrival)
    assert (observed.replayed, observed.outer) == (True, first.outer)
    stand.neighbour("192.0.2.2", underlay_mac("192.0.2.2"))


def test_a_flow_whose_adjacency_is_gone_takes_the_walk(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.udp(A, C, 1, 2))
    asked.thrice(arrival)
    table = asked.host.datapath.maps["hr_adjacencies"]
    for key, value in list(table.items()):
        if any(value):
            table.update(key, b"\1" + value[1:])  # unresolved
    assert not asked.run(arrival).replayed
    assert asked.thrice(arrival).replayed


def test_a_broadcast_has_one_copy_for_each_host(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    frame = packet.udp(A, C, 1, 2, dmac=BROADCAST)
    copies = [output for output in asked.thrice(sent("a", frame)).outputs if output.vtep]
    assert [(copy.vtep, copy.frame) for copy in copies] == [("192.0.2.2", frame)]
