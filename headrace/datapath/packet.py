"""From octets to headers: docs/pipeline.md, "admit" 2-8, in plain Python.

Sources: RFC 826 (ARP), RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP), RFC 9260 (SCTP),
RFC 792 and RFC 4443 (ICMP).
"""

from __future__ import annotations

import ipaddress

import msgspec

from headrace.abi import Reason
from headrace.datapath.decision import Dropped, IpAddress

ETHERNET = 14
ARP = 28
IPV4 = 20
IPV6 = 40

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPES_VLAN = (0x8100, 0x88A8)

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION)
EXTENSIONS_MAX = 6

NO_SOURCE = ipaddress.ip_network("224.0.0.0/3")
"""Multicast, reserved and broadcast: nobody sends from there."""

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

QUERIES = {4: {8: 0, 13: 14, 15: 16, 17: 18}, 6: {128: 129}}
"""ICMP types that ask, by IP version, and the types that answer them."""


class Arp(msgspec.Struct, frozen=True, kw_only=True):
    """An ARP message for IPv4 over Ethernet."""

    operation: int
    sender_mac: str
    sender: IpAddress
    target_mac: str
    target: IpAddress


class Fragment(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a packet. ``offset``: octets of payload before it; 0: the first. ``start``: where it begins."""

    offset: int
    id: int
    start: int


class Transport(msgspec.Struct, frozen=True, kw_only=True):
    """What a transport header says. ``length``: of the header. Ports as in a flow key; the rest is TCP's."""

    sport: int = 0
    dport: int = 0
    flags: int = 0
    seq: int = 0
    ack: int = 0
    length: int = 0


class Ip(msgspec.Struct, frozen=True, kw_only=True):
    """An IP packet. Offsets count from the start of the frame; ``end`` is where the packet ends.

    ``transport`` is None in a later fragment, which shows none.
    """

    version: int
    source: IpAddress
    destination: IpAddress
    protocol: int
    tos: int
    hop_limit: int
    payload: int
    end: int
    extended: bool = False
    fragment: Fragment | None = None
    transport: Transport | None = None

    @property
    def is_later_fragment(self) -> bool:
        """Whether it is a fragment but not the first."""
        return self.fragment is not None and self.fragment.offset > 0

    @property
    def length(self) -> int:
        """Octets from the IP header on."""
        return self.end - ETHERNET

    @property
    def header(self) -> int:
        """Octets of the frame before the payload of its transport."""
        return self.payload + (self.transport.length if self.transport else 0)


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """A frame and its headers; neither ``arp`` nor ``ip`` for another ethertype."""

    frame: bytes
    destination: str
    source: str
    ethertype: int
    arp: Arp | None = None
    ip: Ip | None = None

    @property
    def is_multicast(self) -> bool:
        """Whether the destination MAC is a group's (broadcast too)."""
        return bool(self.frame[0] & 1)


def parse(frame: bytes, vlan: int | None = None) -> Packet:
    """Read a frame of at least 14 octets; raises Dropped with the reason that it is malformed."""
    destination, source = mac(frame[0:6]), mac(frame[6:12])
    ethertype = number(frame[12:14])
    if frame[6] & 1:
        raise Dropped(Reason.MULTICAST_SOURCE, f"source MAC {source} is a multicast address")
    if vlan is not None or ethertype in ETHERTYPES_VLAN:
        raise Dropped(Reason.VLAN_TAGGED, "the frame has a VLAN tag")
    arp = parse_arp(frame) if ethertype == ETHERTYPE_ARP else None
    ip = None
    if ethertype == ETHERTYPE_IPV4:
        ip = parse_ipv4(frame)
    if ethertype == ETHERTYPE_IPV6:
        ip = parse_ipv6(frame)
    return Packet(frame=frame, destination=destination, source=source, ethertype=ethertype, arp=arp, ip=ip)


def parse_arp(frame: bytes) -> Arp:
    message = frame[ETHERNET : ETHERNET + ARP]
    operation = number(message[6:8])
    if len(message) < ARP or message[0:6] != bytes([0, 1, 8, 0, 6, 4]) or operation not in {1, 2}:
        raise Dropped(Reason.MALFORMED_ARP, "the ARP message is truncated or not Ethernet over IPv4")
    return Arp(
        operation=operation,
        sender_mac=mac(message[8:14]),
        sender=ipaddress.IPv4Address(message[14:18]),
        target_mac=mac(message[18:24]),
        target=ipaddress.IPv4Address(message[24:28]),
    )


def parse_ipv4(frame: bytes) -> Ip:
    if len(frame) < ETHERNET + IPV4:
        raise Dropped(Reason.MALFORMED_IPV4, "the frame ends inside its IPv4 header")
    header = frame[ETHERNET : ETHERNET + IPV4]
    header_length = (header[0] & 0x0F) * 4
    length = number(header[2:4])
    if header[0] >> 4 != 4 or header_length < IPV4 or length < header_length or ETHERNET + length > len(frame):
        raise Dropped(Reason.MALFORMED_IPV4, "version, header length or total length do not fit the frame")
    source = ipaddress.IPv4Address(header[12:16])
    if source in NO_SOURCE:
        raise Dropped(Reason.MULTICAST_SOURCE, f"source address {source} is no unicast address")
    place = number(header[6:8])
    offset, more = (place & 0x1FFF) * 8, bool(place & 0x2000)
    ip = Ip(
        version=4,
        source=source,
        destination=ipaddress.IPv4Address(header[16:20]),
        protocol=header[9],
        tos=header[1],
        hop_limit=header[8],
        payload=ETHERNET + header_length,
        end=ETHERNET + length,
        fragment=Fragment(offset=offset, id=number(header[4:6]), start=ETHERNET + header_length)
        if offset or more
        else None,
    )
    return with_transport(frame, ip)


def parse_ipv6(frame: bytes) -> Ip:
    if len(frame) < ETHERNET + IPV6:
        raise Dropped(Reason.MALFORMED_IPV6, "the frame ends inside its IPv6 header")
    header = frame[ETHERNET : ETHERNET + IPV6]
    end = ETHERNET + IPV6 + number(header[4:6])
    if header[0] >> 4 != 6 or end > len(frame):
        raise Dropped(Reason.MALFORMED_IPV6, "version or payload length do not fit the frame")
    source, destination = ipaddress.IPv6Address(header[8:24]), ipaddress.IPv6Address(header[24:40])
    if source.ipv4_mapped is not None or destination.ipv4_mapped is not None:
        raise Dropped(Reason.MALFORMED_IPV6, "an IPv4-mapped address is on the wire")
    if source.is_multicast:
        raise Dropped(Reason.MULTICAST_SOURCE, f"source address {source} is a multicast address")
    protocol, payload, fragment = parse_extensions(frame, header[6], end)
    ip = Ip(
        version=6,
        source=source,
        destination=destination,
        protocol=protocol,
        tos=number(header[0:2]) >> 4 & 0xFF,
        hop_limit=header[7],
        payload=payload,
        end=end,
        extended=payload > ETHERNET + IPV6,
        fragment=fragment,
    )
    return with_transport(frame, ip)


def parse_extensions(frame: bytes, protocol: int, end: int) -> tuple[int, int, Fragment | None]:
    """Walk the extension headers: the protocol behind them, where it begins, and the fragment if it is one."""
    offset = ETHERNET + IPV6
    fragment = None
    seen: list[int] = []
    while protocol in EXTENSIONS:
        if len(seen) == EXTENSIONS_MAX:
            raise Dropped(Reason.MALFORMED_IPV6, f"more than {EXTENSIONS_MAX} extension headers")
        if protocol == FRAGMENT and FRAGMENT in seen:
            raise Dropped(Reason.MALFORMED_IPV6, "a second fragment header")
        seen.append(protocol)
        if offset + 8 > end:
            raise Dropped(Reason.MALFORMED_IPV6, "the packet ends inside an extension header")
        length = (frame[offset + 1] + 1) * 8
        if protocol == FRAGMENT:
            length = 8
        if protocol == AUTHENTICATION:
            length = (frame[offset + 1] + 2) * 4
        if offset + length > end:
            raise Dropped(Reason.MALFORMED_IPV6, "the packet ends inside an extension header")
        if protocol == FRAGMENT:
            place = number(frame[offset + 2 : offset + 4])
            if place & 0xFFF9:
                id_ = number(frame[offset + 4 : offset + 8])
                fragment = Fragment(offset=place & 0xFFF8, id=id_, start=offset + 8)
        protocol = frame[offset]
        offset += length
        if fragment is not None and fragment.offset > 0:
            break
    return protocol, offset, fragment


def with_transport(frame: bytes, ip: Ip) -> Ip:
    """Add what the transport header says; a later fragment has none."""
    if ip.is_later_fragment:
        return ip
    transport = parse_transport(frame[ip.payload : ip.end], ip.version, ip.protocol, whole=ip.fragment is None)
    if transport is None:
        if ip.fragment is not None:
            raise Dropped(Reason.FRAGMENT_TINY, "the first fragment does not hold its transport header")
        raise Dropped(Reason.MALFORMED_L4, "the transport header is truncated or contradicts itself")
    if ip.protocol == TCP and not sane(transport.flags):
        raise Dropped(Reason.TCP_INVALID, f"no TCP segment has the flags {transport.flags:#04x}")
    return msgspec.structs.replace(ip, transport=transport)


def parse_transport(data: bytes, version: int, protocol: int, *, whole: bool) -> Transport | None:
    """Read a transport header; None if it is truncated or contradicts itself. ``whole``: ``data`` is all of it."""
    if protocol == TCP:
        length = (data[12] >> 4) * 4 if len(data) >= 20 else 0
        if not 20 <= length <= len(data):
            return None
        return Transport(
            sport=number(data[0:2]),
            dport=number(data[2:4]),
            flags=data[13],
            seq=number(data[4:8]),
            ack=number(data[8:12]),
            length=length,
        )
    if protocol == UDP:
        if len(data) < 8 or number(data[4:6]) < 8 or (whole and number(data[4:6]) > len(data)):
            return None
        return Transport(sport=number(data[0:2]), dport=number(data[2:4]), length=8)
    if protocol == SCTP:
        return Transport(sport=number(data[0:2]), dport=number(data[2:4]), length=12) if len(data) >= 12 else None
    if is_icmp(version, protocol):
        return Transport(sport=identifier(version, data), dport=number(data[0:2]), length=8) if len(data) >= 8 else None
    return Transport()


def is_icmp(version: int, protocol: int) -> bool:
    """ICMP in IPv4 or ICMPv6 in IPv6; one inside the other's IP is a protocol like any other."""
    return (version, protocol) in {(4, ICMP), (6, ICMPV6)}


def carries_ports(version: int, protocol: int) -> bool:
    """Whether a rule's range means something: ports, or ICMP type and code."""
    return protocol in {TCP, UDP, SCTP} or is_icmp(version, protocol)


def identifier(version: int, icmp: bytes) -> int:
    """The identifier of an ICMP query or its answer, else 0."""
    queries = QUERIES[version]
    return number(icmp[4:6]) if icmp[0] in queries or icmp[0] in queries.values() else 0


def sane(flags: int) -> bool:
    """Whether a TCP segment may have these flags."""
    opening, closing, reset = bool(flags & SYN), bool(flags & FIN), bool(flags & RST)
    return opening + closing + reset <= 1 and bool(flags & (SYN | ACK | RST | FIN))


def number(octets: bytes) -> int:
    """An unsigned integer in network order."""
    return int.from_bytes(octets, "big")


def mac(octets: bytes) -> str:
    """Six octets as ``52:54:00:00:00:01``."""
    return octets.hex(":")
