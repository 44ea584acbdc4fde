"""The oracle's admit: docs/pipeline.md, "admit", step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting

from headrace.abi import Reason
from headrace.datapath.decision import Arrival, Dropped
from headrace.datapath.oracle_admit import admit
from headrace.datapath.oracle_outer import Approach, approach, take_outer
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import Ip, parse
from headrace.testing import packet
from headrace.testing.world import World, network, port

A = packet.Somewhere("02:00:00:00:00:01", ("10.0.0.1", "fd00::1"))
B = packet.Somewhere("02:00:00:00:00:02", ("10.0.0.2", "fd00::2"))
IP_AT = packet.ETHERNET
TCP4 = packet.tcp(A, B, 1000, 80)
TCP6 = packet.tcp(A, B, 1000, 80, family=6)


@pytest.fixture
def world() -> World:
    return World(
        network("blue"),
        network("other", 200),
        port("a", "blue", 1),
        port("b", "blue", 2),
        port("off", "blue", 3, admin_up=False),
        port("far", "other", 4, host="h2"),
        port("lost", "nowhere", 5),
    )


def reason(world: World, frame: bytes, name: str = "a", **fields: Any) -> Reason:
    view = View(world.state, "h1")
    try:
        found = approach(view, world.memory["h1"], Arrival(port=name, frame=frame, **fields))
        assert found is not None
        admit(view, found)
    except Dropped as dropped:
        return dropped.reason
    return Reason.NONE


def ip(frame: bytes) -> Ip:
    found = parse(frame).ip
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["nobody", "far", "lost"])
def test_a_device_needs_a_port_of_this_host(world: World, name: str) -> None:
    assert reason(world, b"", name) == Reason.NO_PORT


def test_ethernet_comes_before_the_port(world: World) -> None:
    assert reason(world, TCP4[:13], "off") == Reason.MALFORMED_ETHERNET
    assert reason(world, TCP4, "off") == Reason.PORT_DOWN
    assert reason(world, TCP4[:14], "a") == Reason.MALFORMED_IPV4


def test_multicast_source_mac_comes_before_the_tag(world: World) -> None:
    assert reason(world, packet.with_octet(packet.tagged(TCP4), 6, 0x03)) == Reason.MULTICAST_SOURCE


@pytest.mark.parametrize("ethertype", [0x8100, 0x88A8])
def test_tags_in_the_frame_or_beside_it(world: World, ethertype: int) -> None:
    assert reason(world, packet.tagged(TCP4, ethertype=ethertype)) == Reason.VLAN_TAGGED
    assert reason(world, TCP4, vlan=5) == Reason.VLAN_TAGGED


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 6), (1, 0), (2, 0x86), (3, 0xDD), (4, 8), (5, 16), (6, 1), (7, 0), (7, 3)],
    ids=["hardware", "hardware low", "protocol", "protocol low", "mac", "address", "operation", "op 0", "op 3"],
)
def test_malformed_arp(world: World, offset: int, value: int) -> None:
    assert reason(world, packet.with_octet(packet.arp(A, "10.0.0.2"), IP_AT + offset, value)) == Reason.MALFORMED_ARP


def test_truncated_arp(world: World) -> None:
    frame = packet.arp(A, "10.0.0.2")
    assert [reason(world, part) for part in packet.truncations(frame)][14:] == [Reason.MALFORMED_ARP] * 28
    assert reason(world, frame + b"padding") == Reason.NONE


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0x55), (0, 0x44), (0, 0x4F), (3, 19), (3, 41)],
    ids=["version 5", "header of 16", "header longer than packet", "shorter than header", "longer than frame"],
)
def test_malformed_ipv4(world: World, offset: int, value: int) -> None:
    assert reason(world, packet.with_octet(TCP4, IP_AT + offset, value)) == Reason.MALFORMED_IPV4


def test_truncations_of_ipv4(world: World) -> None:
    reasons = [reason(world, part) for part in packet.truncations(TCP4)]
    assert reasons == [Reason.MALFORMED_ETHERNET] * 14 + [Reason.MALFORMED_IPV4] * 40


def test_ipv4_with_options_and_padding(world: World) -> None:
    frame = packet.udp(A, B, 1, 2, options=b"\x94\x04\x00\x00")
    assert reason(world, frame + bytes(9)) == Reason.NONE
    assert (ip(frame).payload, ip(frame + bytes(9)).end) == (14 + 24, len(frame))


@pytest.mark.parametrize("source", ["224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"])
def test_multicast_source_ipv4(world: World, source: str) -> None:
    assert reason(world, packet.tcp(A, B, 1, 2, src=source)) == Reason.MULTICAST_SOURCE


def test_truncations_of_ipv6(world: World) -> None:
    reasons = [reason(world, part) for part in packet.truncations(TCP6)]
    assert reasons == [Reason.MALFORMED_ETHERNET] * 14 + [Reason.MALFORMED_IPV6] * 60


@pytest.mark.parametrize(("offset", "value"), [(0, 0x40), (5, 21)], ids=["version 4", "longer than frame"])
def test_malformed_ipv6(world: World, offset: int, value: int) -> None:
    assert reason(world, packet.with_octet(TCP6, IP_AT + offset, value)) == Reason.MALFORMED_IPV6


@pytest.mark.parametrize("end", ["src", "dst"])
def test_ipv4_mapped_addresses_are_not_taken_for_ipv4(world: World, end: str) -> None:
    fields: dict[str, Any] = {end: "::ffff:10.0.0.1"}
    frame = packet.tcp(A, B, 1, 2, family=6, **fields)
    assert reason(world, frame) == Reason.MALFORMED_IPV6


def test_multicast_source_ipv6(world: World) -> None:
    assert reason(world, packet.tcp(A, B, 1, 2, family=6, src="ff02::1")) == Reason.MULTICAST_SOURCE


def test_extension_headers(world: World) -> None:
    many = packet.padded(TCP6, 6)
    assert reason(world, many) == Reason.NONE
    assert (ip(many).protocol, ip(many).extended, ip(many).payload) == (6, True, 14 + 40 + 6 * 8)
    assert reason(world, packet.padded(TCP6, 7)) == Reason.MALFORMED_IPV6
    mixed = [IPv6ExtHdrHopByHop(), IPv6ExtHdrRouting(), IPv6ExtHdrDestOpt()]
    assert reason(world, packet.extended(TCP6, mixed)) == Reason.NONE


def test_authentication_header_counts_in_fours(world: World) -> None:
    frame = packet.padded(TCP6, 2)
    frame = packet.with_octet(frame, IP_AT + 6, 51)
    frame = packet.with_octet(frame, IP_AT + 41, 2)
    frame = packet.with_octet(frame, IP_AT + 40, 6)
    assert ip(frame).payload == 14 + 40 + 16
    assert reason(world, packet.with_octet(frame, IP_AT + 41, 200)) == Reason.MALFORMED_IPV6


def test_extension_headers_within_the_packet(world: World) -> None:
    frame = packet.padded(TCP6)
    assert reason(world, packet.with_octet(frame, IP_AT + 41, 3)) == Reason.MALFORMED_IPV6
    short = packet.with_octet(frame[: IP_AT + 44], IP_AT + 5, 4)
    assert reason(world, short) == Reason.MALFORMED_IPV6


def test_a_second_fragment_header(world: World) -> None:
    twice = [IPv6ExtHdrFragment(m=0, offset=0), IPv6ExtHdrFragment(m=0, offset=0)]
    assert reason(world, packet.extended(TCP6, twice[:1])) == Reason.NONE
    assert reason(world, packet.extended(TCP6, twice)) == Reason.MALFORMED_IPV6


def test_atomic_fragments_are_whole() -> None:
    found = ip(packet.extended(TCP6, [IPv6ExtHdrFragment(m=0, offset=0, id=9)]))
    assert found.fragment is None
    assert found.transport is not None
    assert found.transport.dport == 80


def test_a_later_fragment_ends_at_its_header() -> None:
    found = ip(packet.extended(TCP6, [IPv6ExtHdrFragment(m=1, offset=3, id=9), IPv6ExtHdrDestOpt()]))
    assert found.fragment is not None
    assert (found.fragment.offset, found.protocol, found.transport) == (24, 60, None)


@pytest.mark.parametrize("family", [4, 6])
def test_tiny_first_fragments(world: World, family: int) -> None:
    whole = packet.tcp(A, B, 1, 80, payload=b"x" * 40, family=family)
    assert reason(world, packet.fragments(whole, 16)[0]) == Reason.FRAGMENT_TINY
    assert reason(world, packet.fragments(whole, 24)[0]) == Reason.NONE
    assert reason(world, packet.fragments(whole, 16)[1]) == Reason.NONE
    datagram = packet.udp(A, B, 1, 80, payload=b"x" * 40, family=family)
    assert reason(world, packet.fragments(datagram, 8)[0]) == Reason.NONE


def test_first_fragment_that_contradicts_itself(world: World) -> None:
    first = packet.fragments(packet.udp(A, B, 1, 80, payload=b"x" * 40), 16)[0]
    assert reason(world, packet.with_octet(first, IP_AT + 25, 7)) == Reason.FRAGMENT_TINY


def malformed_transports() -> Iterator[tuple[str, bytes]]:
    """What breaks transport headers whose packet is long enough."""
    l4 = IP_AT + 20
    yield "tcp offset 4", packet.with_octet(TCP4, l4 + 12, 0x40)
    yield "tcp offset beyond", packet.with_octet(TCP4, l4 + 12, 0x60)
    udp = packet.udp(A, B, 1, 2)
    yield "udp length 7", packet.with_octet(udp, l4 + 5, 7)
    yield "udp length beyond", packet.with_octet(udp, l4 + 5, 9)
    for name, frame, length in [
        ("tcp", TCP4, 20),
        ("udp", udp, 8),
        ("sctp", packet.sctp(A, B, 1, 2), 12),
        ("icmp", packet.icmp(A, B), 8),
    ]:
        cut = packet.with_octet(frame, IP_AT + 3, 20 + length - 1)
        yield f"{name} truncated", cut
    yield "icmpv6 truncated", packet.with_octet(packet.icmp(A, B, 128, family=6), IP_AT + 5, 7)


@pytest.mark.parametrize("frame", [pytest.param(frame, id=name) for name, frame in malformed_transports()])
def test_malformed_transport(world: World, frame: bytes) -> None:
    assert reason(world, frame) == Reason.MALFORMED_L4


@pytest.mark.parametrize("flags", ["SF", "SR", "FR", "SFR", "SAF", "", "P", "U", "UP"])
def test_impossible_tcp_flags(world: World, flags: str) -> None:
    assert reason(world, packet.tcp(A, B, 1, 2, flags)) == Reason.TCP_INVALID


@pytest.mark.parametrize("flags", ["S", "SA", "A", "FA", "F", "R", "RA", "PA", "SEC"])
def test_possible_tcp_flags(world: World, flags: str) -> None:
    assert reason(world, packet.tcp(A, B, 1, 2, flags)) == Reason.NONE


def test_protocols_without_ports(world: World) -> None:
    assert reason(world, packet.other(A, B, 47)) == Reason.NONE
    icmp_in_ipv6 = packet.other(A, B, 1, payload=b"\x08", family=6)
    assert reason(world, icmp_in_ipv6) == Reason.NONE
    found = ip(icmp_in_ipv6).transport
    assert found is not None
    assert (found.sport, found.dport) == (0, 0)


@pytest.mark.parametrize(("kind", "ident"), [(8, 7), (0, 7), (13, 7), (18, 7), (3, 0), (9, 0)])
def test_identifiers_of_icmp_queries(kind: int, ident: int) -> None:
    found = ip(packet.icmp(A, B, kind, 4, ident=7)).transport
    assert found is not None
    assert (found.sport, found.dport) == (ident, kind << 8 | 4)


def by_tunnel(world: World, vtep: str, vni: int, frame: bytes = TCP4, host: str = "h1") -> Reason:
    try:
        admit(View(world.state, host), Approach(source=vtep, wire="vxlan", id=vni, frame=frame))
    except Dropped as dropped:
        return dropped.reason
    return Reason.NONE


def test_tunnels_come_from_other_hosts(world: World) -> None:
    assert by_tunnel(world, "192.0.2.2", 100) == Reason.NONE
    assert by_tunnel(world, "2001:DB8::0:2", 100) == Reason.NONE
    assert by_tunnel(world, "192.0.2.1", 100) == Reason.UNKNOWN_VTEP, "our own"
    assert by_tunnel(world, "192.0.2.9", 999) == Reason.UNKNOWN_VTEP
    assert by_tunnel(world, "192.0.2.2", 200) == Reason.UNKNOWN_SEGMENT, "its ports are elsewhere"
    assert by_tunnel(world, "192.0.2.2", 999) == Reason.UNKNOWN_SEGMENT
    assert by_tunnel(world, "192.0.2.2", 100, TCP4[:13]) == Reason.MALFORMED_ETHERNET
    assert by_tunnel(world, "192.0.2.2", 100, packet.tagged(TCP4)) == Reason.VLAN_TAGGED


def test_a_family_that_this_host_lacks_is_unknown(world: World) -> None:
    world.put(world.state.hosts["h1"].__class__(id="h1", vteps=("192.0.2.1",)))
    assert by_tunnel(world, "2001:db8::2", 100) == Reason.UNKNOWN_VTEP


def test_a_hosts_only_port_may_be_down(world: World) -> None:
    assert by_tunnel(world, "192.0.2.1", 200, host="h2") == Reason.NONE


def outer(world: World, frame: bytes) -> tuple[str, int] | Reason | None:
    try:
        taken = take_outer(View(world.state, "h1"), frame)
    except Dropped as dropped:
        return dropped.reason
    return (taken.source or "", taken.id) if taken else None


@pytest.mark.parametrize(("source", "own"), [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")])
def test_outer_headers(world: World, source: str, own: str) -> None:
    frame = packet.vxlan(source, own, 100, TCP4)
    assert outer(world, frame) == (source, 100)
    taken = take_outer(View(world.state, "h1"), frame)
    assert taken is not None
    assert taken.frame == TCP4
    header = len(frame) - len(TCP4)
    assert outer(world, packet.with_octet(frame, header - 8, 0)) == Reason.MALFORMED_TUNNEL
    assert outer(world, frame[: header - 1]) == Reason.MALFORMED_TUNNEL
    assert outer(world, packet.with_octet(frame, header - 14 + 1, 0)) is None, "another UDP port"
    assert all(outer(world, part) is None for part in packet.truncations(frame[: header - 8]))


def test_what_is_not_ours_is_the_kernels(world: World) -> None:
    assert outer(world, packet.vxlan("192.0.2.2", "192.0.2.7", 100, TCP4)) is None
    assert outer(world, packet.tagged(packet.vxlan("192.0.2.2", "192.0.2.1", 100, TCP4))) is None
    assert outer(world, packet.raw(A, 0x88CC)) is None
    assert outer(world, packet.vxlan("192.0.2.2", "192.0.2.1", 100, TCP4, options=b"\x01" * 4)) is None
    passed = world.arrive("h1", Arrival(frame=packet.tcp(A, B, 1, 22)))
    assert passed.passed
    assert (passed.reason, passed.outputs) == (Reason.NONE, ())


def test_outer_fragments(world: World) -> None:
    assert outer(world, packet.vxlan("192.0.2.2", "192.0.2.1", 100, TCP4, flags="MF")) == Reason.OUTER_FRAGMENT
    assert outer(world, packet.vxlan("192.0.2.2", "192.0.2.1", 100, TCP4, frag=3)) is None
    dropped = world.arrive("h1", Arrival(frame=packet.vxlan("192.0.2.2", "192.0.2.1", 100, TCP4, flags="MF")))
    assert dropped.reason == Reason.OUTER_FRAGMENT
