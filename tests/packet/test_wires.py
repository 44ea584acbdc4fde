"""encap and admit, every wire: its headers octet by octet as scapy has them, and back. docs/pipeline.md, "encap"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scapy.contrib.geneve import GENEVE
from scapy.contrib.mpls import MPLS
from scapy.contrib.nsh import NSH
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from headrace.abi import Reason
from headrace.datapath.decision import Arrival
from headrace.model import Host, Object, Port, Segment
from headrace.testing import packet
from headrace.testing.outer import put_on, take_off
from headrace.testing.packet import BROADCAST, Somewhere
from headrace.testing.stand import underlay_mac
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, HOSTS, group, network, port

MakeTwin = Callable[..., Twin]

A, B, C = port("a", "blue", 1, "any"), port("b", "blue", 2, "any"), port("c", "blue", 3, "any", host="h2")
OPEN, FAR = port("open", "blue", 5, port_security=False), port("far", "blue", 6, port_security=False, host="h2")
PORTS = (group("any", *ANY), A, B, C, OPEN, FAR)
GUEST = Somewhere("02:00:00:00:99:99", ("10.0.0.99", "fd00::99"))
FOUR = (Host(id="h1", vteps=("192.0.2.1",)), Host(id="h2", vteps=("192.0.2.2",)))
SIX = (Host(id="h1", vteps=("2001:db8::1",)), Host(id="h2", vteps=("2001:db8::2",)))
UNDERLAYS = {"ipv4": FOUR, "ipv6": SIX}
SEGMENTS: dict[str, Segment] = {
    segment.wire: segment
    for segment in (
        Segment(id=0xABCDE),
        Segment(type="geneve", id=0xABCDE),
        Segment(type="gre", id=0xABCDEF1),
        Segment(type="mpls", id=0xABCDE),
        Segment(type="mpls", id=0xABCDE, transport="gre"),
        Segment(type="nsh", id=0xABCDE),
        Segment(type="nsh", id=0xABCDE, transport="ethernet"),
    )
}
LARGEST = {"vxlan": 0xFFFFFF, "geneve": 0xFFFFFF, "gre": (1 << 28) - 1, "mpls": 0xFFFFF, "nsh": 0xFFFFFF}
SMALLEST = {"vxlan": 1, "geneve": 1, "gre": 1, "mpls": 16, "nsh": 1}
CHECKED = {"geneve", "mpls-udp"}
"""Wires whose UDP header has a checksum over IPv6."""
FRAMES = {
    "tcp": ("a", packet.tcp(A, C, 1000, 80)),
    "udp over IPv6": ("a", packet.udp(A, C, 1000, 53, payload=b"x" * 100, family=6)),
    "odd length": ("a", packet.udp(A, C, 1000, 53, payload=b"x")),
    "the longest": ("a", packet.udp(A, C, 1000, 53, payload=bytes(1352))),
    "a fragment": ("a", packet.fragments(packet.udp(A, C, 1000, 53, payload=bytes(64)), 32)[0]),
    "ARP": ("open", packet.arp(OPEN, "10.0.0.99", dmac=FAR.mac)),
    "another ethertype": ("open", packet.raw(OPEN, 0x88CC, bytes(46), dmac=FAR.mac)),
}
ANSWERS = {
    "tcp": packet.tcp(C, A, 1000, 80),
    "udp over IPv6": packet.udp(C, A, 1000, 53, payload=b"x" * 100, family=6),
    "a fragment": packet.fragments(packet.udp(C, A, 1000, 53, payload=bytes(64)), 32)[0],
    "ARP": packet.arp(FAR, "10.0.0.99", dmac=OPEN.mac),
    "another ethertype": packet.raw(FAR, 0x88CC, bytes(46), dmac=OPEN.mac),
    "an Ethernet header alone": packet.raw(FAR, 0x88CC, dmac=OPEN.mac),
}


def on(segment: Segment, mtu: int = 1400) -> tuple[Object, ...]:
    return (network("blue", segment=segment, mtu=mtu), *PORTS)


def udp_marked(source: Port, destination: Port, family: int, mark: int) -> bytes:
    """A datagram with DSCP and ECN."""
    field: dict[str, Any] = {"tos" if family == 4 else "tc": mark}
    return packet.udp(source, destination, 1, 2, family=family, **field)


def headers(segment: Segment, sport: int, *, six: bool) -> Packet:
    """What scapy puts behind the outer IP or Ethernet header."""
    number = segment.number
    nsh = NSH(mdtype=2, length=2, ttl=63, nextproto=3, spi=number, si=255)
    udp: dict[str, Any] = {"sport": sport, "chksum": None if six and segment.wire in CHECKED else 0}
    label = MPLS(label=number, s=1, ttl=64)
    made: dict[str, Packet] = {
        "vxlan": UDP(dport=4789, **udp) / VXLAN(flags="Instance", vni=number),
        "geneve": UDP(dport=6081, **udp) / GENEVE(vni=number, proto=0x6558),
        "gre": GRE(key_present=1, key=number, proto=0x6558),
        "mpls-udp": UDP(dport=6635, **udp) / label,
        "mpls-gre": GRE(proto=0x8847) / label,
        "nsh-gpe": UDP(dport=4790, **udp) / VXLAN(flags=0x0C, NextProtocol=4, vni=number & 0xFFFFFF) / nsh,
        "nsh-ethernet": nsh,
    }
    return made[segment.wire]


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("underlay", UNDERLAYS)
@pytest.mark.parametrize("wire", SEGMENTS)
def test_every_octet_of_the_outer_headers(twin: MakeTwin, wire: str, underlay: str, name: str) -> None:
    hosts, segment = UNDERLAYS[underlay], SEGMENTS[wire]
    asked = twin(*on(segment), hosts=hosts)
    sender, frame = FRAMES[name]
    observed = asked.thrice(sent(sender, frame))
    assert observed.reason == Reason.NONE
    left, six = take_off(observed.outer), underlay == "ipv6"
    (source,), (destination,) = (host.vteps for host in hosts)
    ether = Ether(src=asked.host.stand.own_mac, dst=underlay_mac(destination))
    carried = headers(segment, left.sport, six=six) / Raw(frame)
    if wire == "nsh-ethernet":
        expected = bytes(ether)[:12] + b"\x89\x4f" + bytes(carried)
    elif six:
        expected = bytes(ether / IPv6(src=source, dst=destination, hlim=64, fl=left.label) / carried)
    else:
        expected = bytes(ether / IP(src=source, dst=destination, id=0, flags="DF", ttl=64) / carried)
    assert observed.outer.hex() == expected.hex()


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("underlay", UNDERLAYS)
@pytest.mark.parametrize("wire", SEGMENTS)
def test_and_back(twin: MakeTwin, wire: str, underlay: str, name: str) -> None:
    hosts, segment = UNDERLAYS[underlay], SEGMENTS[wire]
    asked = twin(*on(segment), hosts=hosts)
    frame = ANSWERS[name]
    observed = asked.thrice(tunnelled(frame, hosts[1].vteps[0], segment=segment))
    assert [(output.port, output.frame) for output in observed.outputs] == [
        ("open" if frame[:6].hex(":") == OPEN.mac else "a", frame)
    ]


@pytest.mark.parametrize("underlay", UNDERLAYS)
@pytest.mark.parametrize("wire", SEGMENTS)
def test_a_connection_both_ways(twin: MakeTwin, wire: str, underlay: str) -> None:
    """Original and reply directions replay, whichever end began it."""
    hosts, segment = UNDERLAYS[underlay], SEGMENTS[wire]
    asked = twin(*on(segment), hosts=hosts)
    vtep = hosts[1].vteps[0]
    assert asked.thrice(sent("a", packet.udp(A, C, 7, 53))).replayed
    back = asked.thrice(tunnelled(packet.udp(C, A, 53, 7), vtep, segment=segment))
    assert (back.replayed, back.rule_to) == (True, "ESTABLISHED")
    assert asked.thrice(tunnelled(packet.udp(C, A, 9, 80, family=6), vtep, segment=segment)).replayed
    assert asked.thrice(sent("a", packet.udp(A, C, 80, 9, family=6))).replayed


@pytest.mark.parametrize("bound", [SMALLEST, LARGEST], ids=["smallest", "largest"])
@pytest.mark.parametrize("wire", SEGMENTS)
def test_the_first_and_the_last_id(twin: MakeTwin, wire: str, bound: dict[str, int]) -> None:
    segment = Segment(type=SEGMENTS[wire].type, id=bound[SEGMENTS[wire].type], transport=SEGMENTS[wire].transport)
    asked = twin(*on(segment))
    assert take_off(asked.thrice(sent("a", packet.udp(A, C, 1, 2))).outer).segment == segment.plain
    assert asked.thrice(tunnelled(packet.udp(C, A, 1, 2), segment=segment)).outputs[0].port == "a"


@pytest.mark.parametrize("wire", SEGMENTS)
def test_a_flood_goes_to_each_host_once_and_comes_in(twin: MakeTwin, wire: str) -> None:
    hosts = (*HOSTS, Host(id="h3", vteps=("2001:db8::3",)))
    asked = twin(*on(SEGMENTS[wire]), port("third", "blue", 7, host="h3"), hosts=hosts)
    for frame in (packet.udp(A, C, 1, 2, dmac=BROADCAST), packet.arp(A, "10.0.0.99")):
        outputs = asked.thrice(sent("a", frame)).outputs
        assert sorted(output.vtep for output in outputs if output.vtep) == ["192.0.2.2", "2001:db8::3"]
    frame = packet.arp(FAR, "10.0.0.99")
    assert sorted(output.port or "" for output in asked.thrice(tunnelled(frame, segment=SEGMENTS[wire])).outputs) == [
        "a",
        "b",
        "open",
    ]


@pytest.mark.parametrize("wire", SEGMENTS)
def test_what_is_learnt_behind_a_vtep(twin: MakeTwin, wire: str) -> None:
    asked = twin(*on(SEGMENTS[wire]))
    to_guest = sent("a", packet.udp(A, GUEST, 1, 2))
    assert asked.run(to_guest).reason == Reason.UNKNOWN_MAC
    asked.thrice(tunnelled(packet.arp(GUEST, "10.0.0.99"), segment=SEGMENTS[wire]))
    assert asked.thrice(to_guest).outputs[0].vtep == "192.0.2.2"


@pytest.mark.parametrize("underlay", UNDERLAYS)
@pytest.mark.parametrize("wire", sorted(SEGMENTS.keys() - {"nsh-ethernet"}))
def test_marks_go_out_with_the_packet(twin: MakeTwin, wire: str, underlay: str) -> None:
    """DSCP and ECN are copied (RFC 6040 section 4.1, normal mode), also by a replay of a flow with another mark."""
    asked = twin(*on(SEGMENTS[wire]), hosts=UNDERLAYS[underlay])
    for tos in (0x00, 0xB8, 0x01, 0x02, 0x03, 0xBB):
        for frame in (packet.udp(A, C, 1, 2, tos=tos), packet.udp(A, C, 1, 2, family=6, tc=tos)):
            assert asked.thrice(sent("a", frame)).outputs[0].tos == tos


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("underlay", UNDERLAYS)
@pytest.mark.parametrize("wire", sorted(SEGMENTS.keys() - {"nsh-ethernet"}))
def test_marks_come_in_with_it(twin: MakeTwin, wire: str, underlay: str, family: int) -> None:
    """RFC 6040 section 4.2, all of its table, twice over: walked and replayed."""
    segment, hosts = SEGMENTS[wire], UNDERLAYS[underlay]
    asked = twin(*on(segment), hosts=hosts)
    for outer in range(4):
        for inner in range(4):
            frame, *known = (udp_marked(C, A, family, 0xB8 | mark) for mark in (inner, 0, 1, 2, 3))
            observed = asked.thrice(tunnelled(frame, hosts[1].vteps[0], segment=segment, tos=0x20 | outer))
            if outer == 3 and inner == 0:
                assert (observed.reason, observed.outputs) == (Reason.ECN, ())
                continue
            expected = 3 if outer == 3 else 1 if (outer, inner) == (1, 2) else inner
            (output,) = observed.outputs
            assert output.frame == known[expected]
    arp = packet.arp(FAR, "10.0.0.99", dmac=OPEN.mac)
    assert asked.thrice(tunnelled(arp, hosts[1].vteps[0], segment=segment, tos=3)).outputs[0].frame == arp


@pytest.mark.parametrize("underlay", UNDERLAYS)
@pytest.mark.parametrize("wire", sorted(SEGMENTS.keys() - {"nsh-ethernet"}))
def test_flows_spread_over_the_underlay(twin: MakeTwin, wire: str, underlay: str) -> None:
    """By the source port of UDP, by the flow label of IPv6: the same for all of a flow, others for other flows."""
    asked = twin(*on(SEGMENTS[wire]), hosts=UNDERLAYS[underlay])
    ports, labels = set(), set()
    for sport in range(32):
        first = take_off(asked.run(sent("a", packet.udp(A, C, sport, 53))).outer)
        again = take_off(asked.run(sent("a", packet.udp(A, C, sport, 53, payload=b"more"))).outer)
        assert (first.sport, first.label) == (again.sport, again.label)
        ports.add(first.sport)
        labels.add(first.label)
    assert len(ports) > 24 or SEGMENTS[wire].wire in {"gre", "mpls-gre"}
    assert len(labels) > 24 or underlay == "ipv4"


@pytest.mark.parametrize("underlay", UNDERLAYS)
@pytest.mark.parametrize("wire", SEGMENTS)
def test_the_paths_mtu(twin: MakeTwin, wire: str, underlay: str) -> None:
    """The longest packet that the underlay takes with this wire's headers around it, and one octet more."""
    hosts, segment = UNDERLAYS[underlay], SEGMENTS[wire]
    asked = twin(*on(segment, mtu=1500), hosts=hosts)
    fits = 1500 - segment.overhead(4 if underlay == "ipv4" else 6)
    assert asked.thrice(sent("a", packet.udp(A, C, 1, 2, payload=bytes(fits - 28), df=True))).reason == Reason.NONE
    longer = asked.thrice(sent("a", packet.udp(A, C, 1, 2, payload=bytes(fits - 27), df=True)))
    assert longer.reason == Reason.TOO_BIG
    (answer,) = longer.outputs
    assert int.from_bytes(answer.frame[40:42], "big") == fits
    near = packet.udp(A, B, 1, 2, payload=bytes(fits - 27), df=True)
    assert asked.thrice(sent("a", near)).reason == Reason.NONE, "ports of this host are told nothing"


def test_wires_side_by_side(twin: MakeTwin) -> None:
    """Networks on every wire with the same addresses and ids: what comes by one leaves by none of the others."""
    segments = [Segment(type=one.type, id=77, transport=one.transport) for one in SEGMENTS.values()]
    state: list[Object] = [group("any", *ANY)]
    for number, segment in enumerate(segments):
        name = f"n{number}"
        far = port(f"{name}c", name, 3, "any", host="h2")
        state += [network(name, segment=segment, mtu=1400), port(f"{name}a", name, 1, "any"), far]
    asked = twin(*state)
    for number, segment in enumerate(segments):
        assert asked.thrice(sent(f"n{number}a", packet.udp(A, C, 1, 2))).outputs[0].segment == segment.plain
        back = asked.thrice(tunnelled(packet.udp(C, A, 2, 1), segment=segment))
        assert (back.outputs[0].port, back.rule_to) == (f"n{number}a", "ESTABLISHED")
    assert len({where.id for _, _, _, _, _, where in asked.memory.flows}) == 2 * len(segments)


@pytest.mark.parametrize("wire", SEGMENTS)
def test_a_network_may_change_its_wire(twin: MakeTwin, wire: str) -> None:
    asked = twin(*on(Segment(id=5)))
    arrival = sent("a", packet.udp(A, C, 1, 2))
    assert asked.thrice(arrival).outputs[0].segment == Segment(id=5)
    changed = {"blue": network("blue", segment=SEGMENTS[wire], mtu=1400)}
    asked.apply(asked.state.of((*asked.state.all(), *changed.values())))
    assert asked.thrice(arrival).outputs[0].segment == SEGMENTS[wire].plain
    back = asked.thrice(tunnelled(packet.udp(C, A, 2, 1), segment=SEGMENTS[wire]))
    assert back.outputs[0].port == "a"


@pytest.mark.parametrize("wire", sorted(SEGMENTS.keys() - {"vxlan"}))
def test_a_wire_that_nobody_here_uses_is_the_kernels(twin: MakeTwin, wire: str) -> None:
    asked = twin(*on(Segment(id=5)))
    macs = bytes.fromhex((asked.host.stand.own_mac + underlay_mac("192.0.2.2")).replace(":", ""))
    frame = put_on("192.0.2.2", "192.0.2.1", SEGMENTS[wire], packet.udp(C, A, 1, 2), macs=macs)
    assert asked.run(Arrival(frame=frame)).passed
    assert asked.run(Arrival(frame=frame), "xdp").passed
