"""admit: what is malformed, misplaced or too big, from a port and by tunnel. docs/pipeline.md, "admit"."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from scapy.layers.inet import TCP

from headrace.abi import Reason
from headrace.datapath.decision import Arrival
from headrace.model import Host
from headrace.testing import packet
from headrace.testing.observation import TC_ACT_SHOT
from headrace.testing.outer import put_on
from headrace.testing.packet import Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, group, network, port

A, B, C = port("a", "blue", 1, "any"), port("b", "blue", 2, "any"), port("c", "blue", 3, "any", host="h2")
STATE = (network("blue", mtu=1450), group("any", *ANY), A, B, C)
MakeTwin = Callable[..., Twin]

HOST_4 = Host(id="h1", vteps=("192.0.2.1",))
HOST_BOTH = Host(id="h1", vteps=("192.0.2.1", "2001:db8::1"))
HOST_BOTH_6_FIRST = Host(id="h2", vteps=("2001:db8::2", "192.0.2.2"))

TCP4, TCP6 = packet.tcp(A, B, 1000, 80), packet.tcp(A, B, 1000, 80, family=6)
UDP4, UDP6 = packet.udp(A, B, 1000, 53, payload=b"x" * 8), packet.udp(A, B, 1000, 53, payload=b"x" * 8, family=6)
SCTP4, SCTP6 = packet.sctp(A, B, 1000, 80), packet.sctp(A, B, 1000, 80, family=6)
PING4, PING6 = packet.icmp(A, B), packet.icmp(A, B, 128, family=6)
ARP = packet.arp(A, "10.0.0.77")
VALID = {"tcp4": TCP4, "tcp6": TCP6, "udp4": UDP4, "udp6": UDP6, "sctp4": SCTP4, "sctp6": SCTP6}
VALID |= {"ping4": PING4, "ping6": PING6}


def changed(frame: bytes, offset: int, octets: bytes) -> bytes:
    return frame[:offset] + octets + frame[offset + len(octets) :]


def ip4(frame: bytes, *, length: int | None = None, ihl: int | None = None, place: int | None = None) -> bytes:
    """An IPv4 frame with other header fields."""
    if length is not None:
        frame = changed(frame, 16, struct.pack("!H", length))
    if ihl is not None:
        frame = changed(frame, 14, bytes([0x40 | ihl]))
    return frame if place is None else changed(frame, 20, struct.pack("!H", place))


def cut4(frame: bytes, payload: int) -> bytes:
    """An IPv4 frame whose length says so many octets of payload; the octets themselves stay."""
    return ip4(frame, length=20 + payload)


def cut6(frame: bytes, payload: int) -> bytes:
    return changed(frame, 18, struct.pack("!H", payload))


def first4(frame: bytes, payload: int) -> bytes:
    """A first fragment of an IPv4 frame, of so many octets."""
    return ip4(frame, length=20 + payload, place=0x2000)


def chain(*headers: tuple[int, bytes]) -> bytes:
    """An IPv6 frame with extension headers: (number, octets behind the next header's number)."""
    numbers = [*(number for number, _ in headers), 6]
    extensions = b"".join(bytes([following]) + body for (_, body), following in zip(headers, numbers[1:], strict=True))
    frame = changed(TCP6, 20, bytes([numbers[0]]))
    frame = frame[:54] + extensions + frame[54:]
    return changed(frame, 18, struct.pack("!H", len(frame) - 54))


HOPS, ROUTING, OPTIONS = (0, bytes(7)), (43, bytes(7)), (60, b"\x01" + bytes(14))
ATOMIC, AUTHENTICATION = (44, b"\0" * 6 + b"\x07"), (51, b"\x04" + bytes(22))
MORE = 0x2000
MALFORMED = {
    "multicast source MAC": (changed(TCP4, 6, b"\x03"), Reason.MULTICAST_SOURCE),
    "VLAN tag": (packet.tagged(TCP4), Reason.VLAN_TAGGED),
    "service VLAN tag": (packet.tagged(TCP4, ethertype=0x88A8), Reason.VLAN_TAGGED),
    "VLAN tag alone": (bytes(6) + TCP4[6:12] + b"\x81\x00", Reason.VLAN_TAGGED),
    "ARP of 27 octets": (ARP[:41], Reason.MALFORMED_ARP),
    "ARP of no octets": (ARP[:14], Reason.MALFORMED_ARP),
    "ARP hardware": (changed(ARP, 14, b"\x00\x06"), Reason.MALFORMED_ARP),
    "ARP protocol": (changed(ARP, 16, b"\x86\xdd"), Reason.MALFORMED_ARP),
    "ARP hardware length": (changed(ARP, 18, b"\x08"), Reason.MALFORMED_ARP),
    "ARP protocol length": (changed(ARP, 19, b"\x10"), Reason.MALFORMED_ARP),
    "ARP operation 0": (changed(ARP, 20, b"\x00\x00"), Reason.MALFORMED_ARP),
    "ARP operation 3": (changed(ARP, 20, b"\x00\x03"), Reason.MALFORMED_ARP),
    "IPv4 of no octets": (TCP4[:14], Reason.MALFORMED_IPV4),
    "IPv4 of 19 octets": (TCP4[:33], Reason.MALFORMED_IPV4),
    "IPv4 version": (changed(TCP4, 14, b"\x65"), Reason.MALFORMED_IPV4),
    "IPv4 header length 4": (ip4(TCP4, ihl=4), Reason.MALFORMED_IPV4),
    "IPv4 length below header": (ip4(TCP4, length=19), Reason.MALFORMED_IPV4),
    "IPv4 length below long header": (ip4(TCP4, ihl=11), Reason.MALFORMED_IPV4),
    "IPv4 length beyond frame": (ip4(TCP4, length=41), Reason.MALFORMED_IPV4),
    "IPv4 from multicast": (changed(TCP4, 26, b"\xe0\x00\x00\x01"), Reason.MULTICAST_SOURCE),
    "IPv4 from reserved": (changed(TCP4, 26, b"\xf0\x00\x00\x01"), Reason.MULTICAST_SOURCE),
    "IPv4 from broadcast": (changed(TCP4, 26, b"\xff\xff\xff\xff"), Reason.MULTICAST_SOURCE),
    "IPv6 of no octets": (TCP6[:14], Reason.MALFORMED_IPV6),
    "IPv6 of 39 octets": (TCP6[:53], Reason.MALFORMED_IPV6),
    "IPv6 version": (changed(TCP6, 14, b"\x40"), Reason.MALFORMED_IPV6),
    "IPv6 length beyond frame": (cut6(TCP6, 21), Reason.MALFORMED_IPV6),
    "IPv6 from mapped": (changed(TCP6, 22, bytes(10) + b"\xff\xff\x0a\x00\x00\x01"), Reason.MALFORMED_IPV6),
    "IPv6 to mapped": (changed(TCP6, 38, bytes(10) + b"\xff\xff\x0a\x00\x00\x02"), Reason.MALFORMED_IPV6),
    "IPv6 from multicast": (changed(TCP6, 22, b"\xff\x02"), Reason.MULTICAST_SOURCE),
    "IPv6 with seven extensions": (packet.padded(TCP6, 7), Reason.MALFORMED_IPV6),
    "IPv6 with two fragment headers": (chain(ATOMIC, ATOMIC), Reason.MALFORMED_IPV6),
    "IPv6 extension of 7 octets": (cut6(packet.padded(TCP6), 7), Reason.MALFORMED_IPV6),
    "IPv6 extension beyond packet": (changed(packet.padded(TCP6), 55, b"\x07"), Reason.MALFORMED_IPV6),
    "TCP of 19 octets": (cut4(TCP4, 19), Reason.MALFORMED_L4),
    "TCP data offset 4": (changed(TCP4, 46, b"\x40"), Reason.MALFORMED_L4),
    "TCP data offset beyond packet": (changed(TCP4, 46, b"\x60"), Reason.MALFORMED_L4),
    "UDP of 7 octets": (cut4(UDP4, 7), Reason.MALFORMED_L4),
    "UDP length 7": (changed(UDP4, 38, b"\x00\x07"), Reason.MALFORMED_L4),
    "UDP length beyond packet": (changed(UDP4, 38, b"\x00\x11"), Reason.MALFORMED_L4),
    "SCTP of 11 octets": (cut4(SCTP4, 11), Reason.MALFORMED_L4),
    "ICMP of 7 octets": (cut4(PING4, 7), Reason.MALFORMED_L4),
    "TCP over IPv6 of 19 octets": (cut6(TCP6, 19), Reason.MALFORMED_L4),
    "UDP over IPv6 of 7 octets": (cut6(UDP6, 7), Reason.MALFORMED_L4),
    "SCTP over IPv6 of 11 octets": (cut6(SCTP6, 11), Reason.MALFORMED_L4),
    "ICMPv6 of 7 octets": (cut6(PING6, 7), Reason.MALFORMED_L4),
    "no transport at all": (cut4(TCP4, 0), Reason.MALFORMED_L4),
    "TCP first fragment of 16 octets": (first4(TCP4, 16), Reason.FRAGMENT_TINY),
    "TCP first fragment without its options": (first4(changed(TCP4, 46, b"\x60"), 20), Reason.FRAGMENT_TINY),
    "UDP first fragment of 7 octets": (first4(UDP4, 7), Reason.FRAGMENT_TINY),
    "UDP first fragment, length 7": (first4(changed(UDP4, 38, b"\x00\x07"), 8), Reason.FRAGMENT_TINY),
    "SCTP first fragment of 8 octets": (first4(SCTP4, 8), Reason.FRAGMENT_TINY),
    "ICMP first fragment of 0 octets": (first4(PING4, 0), Reason.FRAGMENT_TINY),
    "IPv6 first fragment of 16 octets": (packet.fragments(TCP6, 16)[0], Reason.FRAGMENT_TINY),
}
MALFORMED |= {
    f"TCP flags {flags or 'none'}": (packet.tcp(A, B, 1000, 80, flags), Reason.TCP_INVALID)
    for flags in ("", "P", "U", "SF", "SR", "FR", "SFA", "SRA", "FRA", "SFR", "SFRPAU")
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_dropped_with_its_reason_from_a_port_and_by_tunnel(twin: MakeTwin, name: str) -> None:
    frame, reason = MALFORMED[name]
    asked = twin(*STATE)
    for arrival in (sent("a", frame), tunnelled(frame)):
        assert asked.thrice(arrival).reason == reason
        assert not asked.memory.flows


WELL_FORMED = {
    "padding behind the packet": TCP4 + bytes(6),
    "a wrong IPv4 checksum": changed(TCP4, 24, b"\xde\xad"),
    "UDP length below the packet's": changed(UDP4, 38, b"\x00\x08"),
    "TCP options": bytes(packet.over_ip(A, B, TCP(sport=1, dport=2, flags="S", options=[("MSS", 1400)]))),
    "IPv4 options": ip4(TCP4[:34] + bytes(40) + TCP4[34:], ihl=15, length=80),
    "an atomic fragment": chain(ATOMIC),
    "six extensions": chain(HOPS, OPTIONS, ROUTING, ATOMIC, AUTHENTICATION, OPTIONS),
    "an authentication header of 8 octets": chain((51, bytes(7))),
    "TCP flags of ECN": packet.tcp(A, B, 1000, 80, "SEC"),
    "TCP flags but the opening ones": packet.tcp(A, B, 1000, 80, "FPUAEC"),
    "ICMPv6 in IPv4, a protocol like any other": packet.other(A, B, 58),
    "ICMP in IPv6, a protocol like any other": packet.other(A, B, 1, family=6),
    "an unknown protocol without payload": packet.other(A, B, 253),
    "no next header": packet.other(A, B, 59, family=6),
}
WELL_FORMED |= VALID


@pytest.mark.parametrize("name", WELL_FORMED)
def test_what_is_odd_but_legal_passes(twin: MakeTwin, name: str) -> None:
    observed = twin(*STATE).thrice(sent("a", WELL_FORMED[name]))
    assert observed.reason == Reason.NONE
    assert observed.outputs[0].frame == WELL_FORMED[name]


@pytest.mark.parametrize("name", VALID)
def test_a_first_fragment_that_holds_its_header_passes(twin: MakeTwin, name: str) -> None:
    frame = VALID[name] + bytes(16)
    frame = cut6(frame, len(frame) - 54) if name.endswith("6") else ip4(frame, length=len(frame) - 14)
    parts = packet.fragments(frame, 24)
    asked = twin(*STATE)
    for part in parts:
        assert asked.thrice(sent("a", part)).reason == Reason.NONE


def test_udp_of_a_first_fragment_may_say_more_than_is_there(twin: MakeTwin) -> None:
    frame = packet.udp(A, B, 1000, 53, payload=bytes(1000))
    assert twin(*STATE).thrice(sent("a", packet.fragments(frame, 8)[0])).reason == Reason.NONE


def test_a_tag_beside_the_frame_is_a_tag(twin: MakeTwin) -> None:
    assert twin(*STATE).run(sent("a", TCP4, vlan=5)).reason == Reason.VLAN_TAGGED


@pytest.mark.parametrize("length", [0, 1, 13])
def test_an_inner_frame_shorter_than_its_ethernet_header(twin: MakeTwin, length: int) -> None:
    assert twin(*STATE).thrice(tunnelled(TCP4[:length])).reason == Reason.MALFORMED_ETHERNET


def test_another_ethertype_has_no_key(twin: MakeTwin) -> None:
    open_, other = port("a", "blue", 1, port_security=False), port("b", "blue", 2, port_security=False)
    observed = twin(network("blue"), open_, other).thrice(sent("a", packet.raw(A, 0x88CC, bytes(46), dmac=B.mac)))
    assert (observed.reason, observed.key, observed.replayed) == (Reason.NONE, None, False)


def test_the_order_of_checks(twin: MakeTwin) -> None:
    down = port("down", "blue", 4, "any", admin_up=False)
    asked = twin(*STATE, down)
    # A port that is down hides what is malformed; a multicast source hides a tag; a tag hides the rest.
    assert asked.thrice(sent("down", MALFORMED["IPv4 version"][0])).reason == Reason.PORT_DOWN
    assert asked.thrice(sent("down", packet.udp(down, A, 1, 2))).reason == Reason.PORT_DOWN
    tagged = packet.tagged(MALFORMED["IPv4 version"][0])
    assert asked.thrice(sent("a", tagged)).reason == Reason.VLAN_TAGGED
    assert asked.thrice(sent("a", changed(tagged, 6, b"\x01"))).reason == Reason.MULTICAST_SOURCE
    # By tunnel the VTEP comes first, then the segment, then the frame.
    assert asked.thrice(tunnelled(tagged, vtep="192.0.2.66", vni=7)).reason == Reason.UNKNOWN_VTEP
    assert asked.thrice(tunnelled(tagged, vni=7)).reason == Reason.UNKNOWN_SEGMENT
    assert asked.thrice(tunnelled(tagged)).reason == Reason.VLAN_TAGGED


def test_a_device_of_no_port(twin: MakeTwin) -> None:
    observed = twin(*STATE).thrice(sent("nobody", TCP4))
    assert (observed.reason, observed.verdict, observed.concluded) == (Reason.NO_PORT, TC_ACT_SHOT, False)


@pytest.mark.parametrize("family", [4, 6])
def test_the_networks_mtu_is_the_longest_ip_packet(twin: MakeTwin, family: int) -> None:
    asked = twin(*STATE)
    header = 28 if family == 4 else 48
    fits = packet.udp(A, B, 1000, 53, payload=bytes(1450 - header), family=family)
    assert asked.thrice(sent("a", fits)).replayed
    over = packet.udp(A, B, 1000, 53, payload=bytes(1451 - header), family=family)
    assert asked.thrice(sent("a", over)).reason == Reason.TOO_BIG
    assert asked.thrice(sent("a", fits + bytes(6))).replayed, "padding is no part of the packet"


def test_what_came_by_tunnel_was_measured_where_it_was_sent(twin: MakeTwin) -> None:
    frame = packet.udp(C, A, 1000, 53, payload=bytes(1600))
    assert twin(*STATE).thrice(tunnelled(frame)).reason == Reason.NONE


@pytest.mark.parametrize(("gso_size", "reason"), [(1410, Reason.NONE), (1411, Reason.TOO_BIG), (1, Reason.NONE)])
def test_a_super_packet_is_judged_by_its_segments(twin: MakeTwin, gso_size: int, reason: Reason) -> None:
    frame = packet.tcp(A, B, 1000, 80, "A", payload=bytes(3000))
    asked = twin(*STATE)
    for _ in range(2):
        assert asked.run(sent("a", frame, gso_size=gso_size)).reason == reason


def test_a_segment_is_no_longer_than_its_packet(twin: MakeTwin) -> None:
    frame = packet.tcp(A, B, 1000, 80, "A", payload=bytes(100))
    asked = twin(*STATE)
    assert asked.run(sent("a", frame, gso_size=65000)).reason == Reason.NONE
    assert asked.run(sent("a", frame, gso_size=65000)).replayed
    assert asked.run(sent("a", packet.tcp(A, B, 1000, 80, "A", payload=bytes(3000)))).reason == Reason.TOO_BIG


# The uplink

INNER = packet.udp(C, A, 1000, 53)
OUTER4 = put_on("192.0.2.2", "192.0.2.1", 100, INNER)
OUTER6 = put_on("2001:db8::2", "2001:db8::1", 100, INNER)
FOREIGN = {
    "another ethertype": changed(OUTER4, 12, b"\x88\xcc"),
    "ARP": ARP,
    "a VLAN tag": packet.tagged(OUTER4),
    "another address": changed(OUTER4, 30, b"\xc0\x00\x02\x63"),
    "another IPv6 address": changed(OUTER6, 53, b"\x63"),
    "TCP": changed(OUTER4, 23, b"\x06"),
    "another port": changed(OUTER4, 36, b"\x12\xb6"),
    "another port over IPv6": changed(OUTER6, 56, b"\x12\xb6"),
    "IPv4 options": ip4(OUTER4[:34] + bytes(4) + OUTER4[34:], ihl=6),
    "IP version 5": changed(OUTER4, 14, b"\x55"),
    "a later fragment": ip4(OUTER4, place=0x0001),
    "a later fragment and not the last": ip4(OUTER4, place=0x2001),
    "an extension header": changed(OUTER6, 20, b"\x3c"),
    "the UDP header cut short": OUTER4[:41],
    "the IPv6 UDP header cut short": OUTER6[:61],
    "the Ethernet header alone": OUTER4[:14],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_for_our_vtep_passes_to_the_kernel_untouched(twin: MakeTwin, name: str) -> None:
    observed = twin(*STATE).thrice(Arrival(frame=FOREIGN[name]))
    assert observed.passed
    assert not observed.counts.reasons


def test_the_kernels_own_vlan_devices_keep_their_frames(twin: MakeTwin) -> None:
    assert twin(*STATE).host.run(Arrival(frame=OUTER4, vlan=5)).passed


OURS = {
    "a first outer fragment": (ip4(OUTER4, place=MORE), Reason.OUTER_FRAGMENT),
    "no flag I": (changed(OUTER4, 42, b"\x00"), Reason.MALFORMED_TUNNEL),
    "no flag I over IPv6": (changed(OUTER6, 62, b"\xf7"), Reason.MALFORMED_TUNNEL),
    "seven octets of VXLAN": (OUTER4[:49], Reason.MALFORMED_TUNNEL),
    "no octet of VXLAN": (OUTER6[:62], Reason.MALFORMED_TUNNEL),
    "a VTEP of nobody": (changed(OUTER4, 26, b"\xc0\x00\x02\x63"), Reason.UNKNOWN_VTEP),
    "our own VTEP": (changed(OUTER4, 26, b"\xc0\x00\x02\x01"), Reason.UNKNOWN_VTEP),
    "a segment of nobody here": (changed(OUTER4, 46, b"\x00\x00\x65"), Reason.UNKNOWN_SEGMENT),
    "the largest VNI": (changed(OUTER6, 66, b"\xff\xff\xff"), Reason.UNKNOWN_SEGMENT),
    "reserved fields that are set": (changed(changed(OUTER4, 42, b"\xff\xff\xff\xff"), 49, b"\xff"), Reason.NONE),
    "an outer UDP checksum": (changed(OUTER4, 40, b"\xbe\xef"), Reason.NONE),
    "over IPv4": (OUTER4, Reason.NONE),
    "over IPv6": (OUTER6, Reason.NONE),
}


@pytest.mark.parametrize("name", OURS)
def test_what_is_for_our_vtep(twin: MakeTwin, name: str) -> None:
    frame, reason = OURS[name]
    assert twin(*STATE).thrice(Arrival(frame=frame)).reason == reason


def test_a_segment_whose_ports_are_all_elsewhere_is_unknown(twin: MakeTwin) -> None:
    red = port("red", "red", 9, "any", host="h2")
    asked = twin(*STATE, network("red", 200), red)
    assert asked.thrice(tunnelled(packet.udp(red, A, 1, 2), vni=200)).reason == Reason.UNKNOWN_SEGMENT


def test_a_host_is_known_by_every_address_of_a_family_that_we_have(twin: MakeTwin) -> None:
    crossed = (HOST_BOTH, HOST_BOTH_6_FIRST)
    asked = twin(*STATE, hosts=crossed)
    for vtep in HOST_BOTH_6_FIRST.vteps:
        assert asked.thrice(tunnelled(INNER, vtep=vtep)).reason == Reason.NONE


def test_a_host_of_another_family_is_nobody(twin: MakeTwin) -> None:
    asked = twin(*STATE, hosts=(HOST_4, HOST_BOTH_6_FIRST))
    assert asked.thrice(tunnelled(INNER, vtep="192.0.2.2")).reason == Reason.NONE
    assert asked.thrice(Arrival(frame=OUTER6)).passed


def test_mac_of_a_stranger_does_not_matter_to_admit(twin: MakeTwin) -> None:
    stranger = Somewhere("02:00:00:00:ff:01", ("10.0.0.250", "fd00::250"))
    assert twin(*STATE).thrice(tunnelled(packet.udp(stranger, A, 1, 2))).reason == Reason.NONE
