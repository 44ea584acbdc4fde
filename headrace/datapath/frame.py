"""From headers to octets: the frames that the oracle answers with and that `headrace trace` sends.

Sources as in packet.py; checksums are RFC 1071's, over the pseudo-headers of RFC 9293 and RFC 8200 section 8.1.
"""

from __future__ import annotations

import ipaddress
import struct

from headrace.datapath.decision import IpAddress
from headrace.datapath.packet import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ICMPV6,
    TCP,
    UDP,
)
from headrace.datapath.wires import TUNNELS
from headrace.model import Segment

BROADCAST = "ff:ff:ff:ff:ff:ff"
HOP_LIMIT = 64
SOLICITED_OVERRIDE = 0x60000000
WINDOW = 65535
SOURCE = 49152
"""UDP source port of a tunnel."""
GRE = 47


def octets(mac: str) -> bytes:
    """``52:54:00:00:00:01`` as six octets."""
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> int:
    """The internet checksum."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def transport_checksum(source: IpAddress, destination: IpAddress, protocol: int, segment: bytes) -> int:
    """The checksum of a segment whose checksum field is zero."""
    pseudo_header = source.packed + destination.packed + struct.pack("!II", len(segment), protocol)
    return checksum(pseudo_header + segment)


def ethernet(*, source: str, destination: str, ethertype: int, payload: bytes) -> bytes:
    return octets(destination) + octets(source) + struct.pack("!H", ethertype) + payload


def ip(
    source: IpAddress, destination: IpAddress, protocol: int, payload: bytes, *, hop_limit: int = HOP_LIMIT
) -> tuple[int, bytes]:
    """An IP packet without options, and its ethertype."""
    if source.version == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, hop_limit, protocol, 0)
        header += source.packed + destination.packed
        return ETHERTYPE_IPV4, header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload
    header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hop_limit)
    return ETHERTYPE_IPV6, header + source.packed + destination.packed + payload


def tcp(source: IpAddress, destination: IpAddress, sport: int, dport: int, flags: int) -> bytes:
    segment = struct.pack("!HHIIBBHHH", sport, dport, 0, 0, 5 << 4, flags, WINDOW, 0, 0)
    return with_checksum(segment, 16, transport_checksum(source, destination, TCP, segment))


def udp(source: IpAddress, destination: IpAddress, sport: int, dport: int, payload: bytes = b"") -> bytes:
    segment = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return with_checksum(segment, 6, transport_checksum(source, destination, UDP, segment) or 0xFFFF)


def sctp(sport: int, dport: int) -> bytes:
    """An SCTP common header alone, its checksum zero: enough to be judged by."""
    return struct.pack("!HHII", sport, dport, 0, 0)


def icmp(source: IpAddress, destination: IpAddress, kind: int, code: int, rest: bytes) -> bytes:
    """ICMP or ICMPv6. ``rest``: what follows the checksum, at least four octets."""
    message = struct.pack("!BBH", kind, code, 0) + rest
    if source.version == 4:
        return with_checksum(message, 2, checksum(message))
    return with_checksum(message, 2, transport_checksum(source, destination, ICMPV6, message))


def arp(*, operation: int, sender_mac: str, sender: IpAddress, target_mac: str, target: IpAddress) -> tuple[int, bytes]:
    """An ARP message, and its ethertype."""
    head = struct.pack("!HHBBH", 1, ETHERTYPE_IPV4, 6, 4, operation)
    return ETHERTYPE_ARP, head + octets(sender_mac) + sender.packed + octets(target_mac) + target.packed


def neighbour_solicitation(*, source: ipaddress.IPv6Address, target: ipaddress.IPv6Address, mac: str) -> bytes:
    """A multicast NS with its source link-layer option (RFC 4861 section 4.3)."""
    return icmp(source, solicited_node(target), 135, 0, bytes(4) + target.packed + b"\x01\x01" + octets(mac))


def neighbour_advertisement(
    *, source: ipaddress.IPv6Address, destination: ipaddress.IPv6Address, mac: str | None
) -> bytes:
    """A solicited, overriding NA (RFC 4861 section 4.4), with a target link-layer option if ``mac`` is given."""
    option = b"\x02\x01" + octets(mac) if mac else b""
    return icmp(source, destination, 136, 0, struct.pack("!I", SOLICITED_OVERRIDE) + source.packed + option)


def solicited_node(address: ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    """Where an address's owner listens for NS (RFC 4291 section 2.7.1)."""
    return ipaddress.IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + address.packed[13:])


def multicast_mac(address: IpAddress) -> str:
    """The MAC of a multicast address (RFC 1112 section 6.4, RFC 2464 section 7)."""
    if address.version == 4:
        return (b"\x01\x00\x5e" + bytes([address.packed[1] & 0x7F]) + address.packed[2:]).hex(":")
    return (b"\x33\x33" + address.packed[12:]).hex(":")


def tunnel(source: str, destination: bytes, segment: Segment, inner: bytes, macs: bytes = bytes(12)) -> bytes:
    """A frame of the underlay between two VTEPs, on the wire of a segment (docs/pipeline.md, "encap").

    ``destination``: 4 octets, or 16 in which IPv4 is ::ffff:a.b.c.d. ``macs``: destination and source.
    """
    wire = TUNNELS[segment.wire]
    payload = wire.put(segment.number) + inner
    if wire.carrier == "ethernet":
        return macs + struct.pack("!H", wire.number) + payload
    sender, receiver = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if isinstance(receiver, ipaddress.IPv6Address):
        receiver = receiver.ipv4_mapped or receiver
    if wire.carrier == "udp":
        payload = struct.pack("!HHHH", SOURCE, wire.number, 8 + len(payload), 0) + payload
        if wire.sums and receiver.version == 6:
            payload = with_checksum(payload, 6, transport_checksum(sender, receiver, UDP, payload) or 0xFFFF)
    ethertype, packet = ip(sender, receiver, UDP if wire.carrier == "udp" else GRE, payload)
    return macs + struct.pack("!H", ethertype) + packet


def with_checksum(segment: bytes, offset: int, value: int) -> bytes:
    return segment[:offset] + struct.pack("!H", value) + segment[offset + 2 :]
