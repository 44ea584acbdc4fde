"""The oracle's too_big: docs/pipeline.md, by that heading. Answers are read back by scapy."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from headrace.abi import Reason
from headrace.datapath.decision import Arrival, Decision, Refusal
from headrace.datapath.oracle_too_big import answer
from headrace.datapath.oracle_view import Surroundings
from headrace.datapath.packet import parse
from headrace.model import Host, Segment
from headrace.testing import packet
from headrace.testing.packet import Somewhere
from headrace.testing.world import ANY, World, group, network, port

A = Somewhere("02:00:00:00:00:01", ("10.0.0.1", "fd00::1"))
B = Somewhere("02:00:00:00:00:02", ("10.0.0.2", "fd00::2"))
FAR = Somewhere("02:00:00:00:00:03", ("10.0.0.3", "fd00::3"))
MTU = 1450
WIRE = 1400
"""What an underlay of 1450 leaves over IPv4."""


@pytest.fixture
def world() -> World:
    return World(
        network("blue"),
        group("any", *ANY),
        port("a", "blue", 1, "any"),
        port("b", "blue", 2, "any"),
        port("far", "blue", 3, "any", host="h2"),
    )


def narrow(world: World, mtu: int = WIRE + 50) -> None:
    world.surroundings = Surroundings(underlay_mtu=mtu)


def send(world: World, frame: bytes, **fields: Any) -> Decision:
    return world.send("a", frame, **fields).hops[0].decision


def udp(length: int, to: Somewhere = B, *, family: int = 4, **fields: Any) -> bytes:
    """A UDP packet of so many octets from its IP header on, not to be fragmented."""
    headers = 28 if family == 4 else 48
    flags = {"flags": "DF"} if family == 4 else {}
    payload = bytes(number % 251 for number in range(length - headers))
    return packet.udp(A, to, 1000, 53, payload=payload, family=family, **flags | fields)


def told(decision: Decision) -> Packet:
    """The answer."""
    assert decision.reason == Reason.TOO_BIG
    assert [(output.port, output.vtep) for output in decision.outputs] == [("a", None)]
    return Ether(decision.outputs[0].frame)


def sound(frame: Packet) -> bool:
    """Whether scapy would fill in the same lengths and checksums."""
    again = frame.copy()
    if again.payload.version == 4:
        del again.payload.chksum, again.payload.len, again.payload.payload.chksum
    else:
        del again.payload.plen, again.payload.payload.cksum
    return bytes(again) == bytes(frame)


def test_an_ipv4_answer_octet_by_octet(world: World) -> None:
    frame = udp(MTU + 1, tos=0xB8)
    found = told(send(world, frame))
    assert (found.src, found.dst, found.type) == (B.mac, A.mac, 0x0800)
    header = found[IP]
    assert (header.src, header.dst, header.ttl, header.tos, header.id) == ("10.0.0.2", "10.0.0.1", 64, 0, 0)
    assert (str(header.flags), header.ihl, header.len) == ("DF", 5, 576)
    message = bytes(found[ICMP])
    assert message[:2] + message[4:8] == bytes([3, 4, 0, 0]) + MTU.to_bytes(2, "big")
    assert message[8:] == frame[14:][:548]
    assert len(found) == 14 + 576
    assert sound(found)


def test_an_ipv6_answer_octet_by_octet(world: World) -> None:
    frame = udp(MTU + 1, family=6, tc=0xB8, fl=7)
    found = told(send(world, frame))
    assert (found.src, found.dst, found.type) == (B.mac, A.mac, 0x86DD)
    header = found[IPv6]
    assert (header.src, header.dst, header.hlim, header.tc, header.fl) == ("fd00::2", "fd00::1", 64, 0, 0)
    assert header.plen == 1240
    message = bytes(header.payload)
    assert message[:2] + message[4:8] == bytes([2, 0]) + MTU.to_bytes(4, "big")
    assert message[8:] == frame[14:][:1232]
    assert found[ICMPv6PacketTooBig].mtu == MTU
    assert sound(found)


def test_a_short_packet_is_quoted_whole(world: World) -> None:
    world.put(network("blue", mtu=300))
    frame = udp(301) + bytes(20)
    assert bytes(told(send(world, frame))[ICMP])[8:] == frame[14 : 14 + 301], "without what pads the frame"


def test_no_ipv6_answer_tells_less_than_1280(world: World) -> None:
    world.put(network("blue", mtu=600))
    assert told(send(world, udp(700, family=6)))[ICMPv6PacketTooBig].mtu == 1280
    assert bytes(told(send(world, udp(700)))[ICMP])[6:8] == (600).to_bytes(2, "big")


@pytest.mark.parametrize("family", [4, 6])
def test_what_just_fits(world: World, family: int) -> None:
    assert send(world, udp(MTU, family=family)).reason == Reason.NONE
    assert send(world, udp(MTU, family=family) + bytes(100)).reason == Reason.NONE, "padding is not the packet"
    assert send(world, udp(MTU, FAR, family=family)).reason == Reason.NONE
    narrow(world)
    assert send(world, udp(WIRE, FAR, family=family)).reason == Reason.NONE
    assert send(world, udp(MTU, family=family)).reason == Reason.NONE, "to a local port the underlay is nothing"


def test_the_way_to_a_vtep_is_narrower(world: World) -> None:
    narrow(world)
    decision = send(world, udp(WIRE + 1, FAR))
    assert bytes(told(decision)[ICMP])[6:8] == WIRE.to_bytes(2, "big")
    assert decision.connection is None
    assert not world.memory["h1"].flows
    assert bytes(told(send(world, udp(MTU + 1, FAR)))[ICMP])[6:8] == MTU.to_bytes(2, "big"), "known before its way"
    narrow(world, 9000)
    assert send(world, udp(MTU, FAR)).reason == Reason.NONE


def test_outer_ipv6_takes_more(world: World) -> None:
    world.put(*(host_of_ipv6(name) for name in ("h1", "h2")))
    narrow(world, 1470)
    assert send(world, udp(1400, FAR)).reason == Reason.NONE
    assert bytes(told(send(world, udp(1401, FAR)))[ICMP])[6:8] == (1400).to_bytes(2, "big")


def host_of_ipv6(name: str) -> Host:
    return Host(id=name, vteps=(f"2001:db8::{name[1]}",))


def test_denied_is_denied_first(world: World) -> None:
    narrow(world)
    world.put(group("any"))
    assert send(world, udp(WIRE + 1, FAR)).reason == Reason.ACL_FROM_PORT
    assert send(world, udp(MTU + 1, FAR)).reason == Reason.TOO_BIG


def test_only_its_owner_hears_of_it(world: World) -> None:
    assert send(world, udp(MTU + 1, src="10.0.0.99")).reason == Reason.SPOOFED_ADDRESS


@pytest.mark.parametrize(
    "frame",
    [
        udp(MTU + 1, flags=0),
        udp(MTU + 1, dmac=packet.BROADCAST),
        udp(MTU + 1, dst="224.0.0.9"),
        udp(MTU + 1, dst="255.255.255.255"),
        udp(MTU + 1, dst="250.1.2.3"),
        udp(MTU + 1, dst="0.0.0.0"),
        udp(MTU + 1, family=6, dst="ff02::9"),
        udp(MTU + 1, family=6, dst="::"),
        packet.fragments(udp(5000, family=6), 2000)[1],
        packet.icmp_error(A, B, udp(1500), 3, 1, room=1500, flags="DF"),
        packet.icmp_error(A, B, udp(1500), 5, 1, room=1500, flags="DF"),
        packet.icmp_error(A, B, udp(1500, family=6), 1, 1, room=1500, family=6),
    ],
)
def test_no_answer(world: World, frame: bytes) -> None:
    decision = send(world, frame)
    assert (decision.reason, decision.outputs) == (Reason.TOO_BIG, ())


def test_a_redirect_is_not_answered() -> None:
    redirect = packet.icmp_error(A, B, udp(1500, family=6), 137, 0, room=1500, family=6)
    assert answer(parse(redirect), MTU) is None
    assert answer(parse(redirect[:54] + bytes([128]) + redirect[55:]), MTU) is not None


def test_a_query_and_a_first_fragment_are_answered(world: World) -> None:
    assert told(send(world, packet.icmp_error(A, B, udp(1500), 8, 0, room=1500, flags="DF")))
    assert told(send(world, packet.icmp_error(A, B, udp(1500, family=6), 128, 0, room=1500, family=6)))
    assert told(send(world, packet.fragments(udp(5000, family=6), 2000)[0]))


def test_super_packets_are_judged_by_their_segments(world: World) -> None:
    frame = bytes(packet.over_ip(A, B, TCP(sport=1000, dport=80, flags="A") / Raw(bytes(4000)), flags="DF"))
    assert send(world, frame, gso_size=1410).reason == Reason.NONE
    assert send(world, frame[:1000], gso_size=1411).reason == Reason.MALFORMED_IPV4
    short = packet.tcp(A, B, 1000, 80, "A", payload=bytes(1000))
    assert send(world, short, gso_size=9000).reason == Reason.NONE, "no longer than the packet"
    found = told(send(world, frame, gso_size=1411))
    assert bytes(found[ICMP])[8:] == frame[14:][:548], "as it was sent"


def test_copies_of_a_flood(world: World) -> None:
    narrow(world)
    decision = send(world, udp(WIRE + 1, dmac=packet.BROADCAST))
    assert {output.port for output in decision.outputs} == {"b"}
    assert (decision.reason, decision.refused) == (Reason.FLOODED, (Refusal(port="a", reason=Reason.TOO_BIG),))
    assert send(world, packet.arp(A, "10.0.0.77") + bytes(1500)).refused == (), "only IP packets"


def test_what_came_by_tunnel_is_not_judged(world: World) -> None:
    world.put(network("blue", mtu=1280))
    frame = packet.udp(FAR, A, 1, 2, payload=bytes(1400))
    assert world.arrive("h1", Arrival(vtep="192.0.2.2", segment=Segment(id=100), frame=frame)).reason == Reason.NONE


def syn(options: list[Any], flags: str = "S", to: Somewhere = B, family: int = 4, **fields: Any) -> bytes:
    header = TCP(sport=1000, dport=80, flags=flags, options=options)
    return bytes(packet.over_ip(A, to, header, family=family, **fields))


def clamped(world: World, frame: bytes) -> bytes:
    decision = send(world, frame)
    assert decision.reason == Reason.NONE
    return decision.outputs[0].frame


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("options", [0, 1, 2, 3])
def test_mss_is_lowered(world: World, family: int, options: int) -> None:
    """At every alignment, and the checksum is right again."""
    before = [("NOP", None)] * options
    least = MTU - (40 if family == 4 else 60)
    frame = syn([*before, ("MSS", 9000), ("WScale", 7)], family=family)
    assert clamped(world, frame) == frame, "off by default"
    world.surroundings = Surroundings(mss_clamp=True)
    assert clamped(world, frame) == syn([*before, ("MSS", least), ("WScale", 7)], family=family)
    for kept in (least, 536):
        low = syn([*before, ("MSS", kept)], family=family)
        assert clamped(world, low) == low


def test_mss_on_the_way_to_a_vtep(world: World) -> None:
    world.surroundings = Surroundings(underlay_mtu=WIRE + 50, mss_clamp=True)
    assert clamped(world, syn([("MSS", 1460)], to=FAR)) == syn([("MSS", WIRE - 40)], to=FAR)
    assert clamped(world, syn([("MSS", 1460)])) == syn([("MSS", MTU - 40)])


@pytest.mark.parametrize(
    "frame",
    [
        syn([]),
        syn([("WScale", 7)]),
        syn([("MSS", 1460)], "A"),
        syn([("EOL", None), ("MSS", 1460)]),
        syn([(2, b"\x05"), ("NOP", None)]),
        packet.udp(A, B, 1, 2),
    ],
    ids=["none", "others", "no SYN", "behind the end", "of another length", "no TCP"],
)
def test_what_is_not_clamped(world: World, frame: bytes) -> None:
    world.surroundings = Surroundings(mss_clamp=True)
    assert clamped(world, frame) == frame


def test_a_syn_ack_and_the_first_mss_option(world: World) -> None:
    world.surroundings = Surroundings(mss_clamp=True)
    clamped(world, syn([("MSS", 9000)]))
    two = syn([("MSS", 9000), ("MSS", 8000)])
    assert clamped(world, two) == syn([("MSS", 1410), ("MSS", 8000)])
    answer = bytes(packet.over_ip(B, A, TCP(sport=80, dport=1000, flags="SA", ack=1, options=[("MSS", 9000)])))
    (output,) = world.send("b", answer).hops[0].decision.outputs
    assert Ether(output.frame)[TCP].options == [("MSS", 1410)]
