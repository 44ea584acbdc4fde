"""too_big: what no way is wide enough for, and what its sender is told; MSS clamping. docs/pipeline.md, "too_big"."""

from __future__ import annotations

import ipaddress

from headrace.datapath.frame import checksum, octets, transport_checksum, with_checksum
from headrace.datapath.oracle_admit import Entry
from headrace.datapath.oracle_forward import Receiver
from headrace.datapath.oracle_view import Surroundings
from headrace.datapath.packet import ETHERNET, ICMP, ICMPV6, SYN, TCP, Ip, Packet, is_icmp, number
from headrace.datapath.wires import room

LONGEST_ANSWER = {4: 576, 6: 1280}
"""Octets of an answer from its IP header on, by IP version."""
LEAST = {4: 0, 6: 1280}
"""The smallest MTU that an answer tells, by IP version."""
SERVICE_TAG = 4
"""Octets of an 802.1ad tag; devices take one of 802.1Q beside their MTU."""
IP_AND_TCP = {4: 40, 6: 60}
DONT_FRAGMENT = 0x40
TCP_HEADER = 20
END, NOTHING, MSS = 0, 1, 2
"""Kinds of TCP options (RFC 9293 section 3.2)."""
NO_UNICAST = {4: ipaddress.ip_network("224.0.0.0/3"), 6: ipaddress.ip_network("ff00::/8")}


def longest(packet: Packet, gso_size: int) -> int:
    """Octets from the IP header on; of a super-packet, of its longest segment."""
    assert packet.ip is not None
    if not gso_size:
        return packet.ip.length
    return min(packet.ip.length, packet.ip.header - ETHERNET + gso_size)


def path_mtu(entry: Entry, receiver: Receiver, surroundings: Surroundings) -> int:
    """Octets of the longest IP packet that may go to a receiver."""
    segment = entry.network.segment
    if receiver.port is not None:
        return entry.network.mtu
    if receiver.vtep is None:
        device = (surroundings.physical or {}).get(segment.physical_network or "")
        around = SERVICE_TAG if segment.service_vlan is not None else 0
    else:
        device = surroundings.underlay_mtu
        around = room(segment.wire, ipaddress.ip_address(receiver.vtep).version)
    return entry.network.mtu if device is None else min(entry.network.mtu, device - around)


def answer(packet: Packet, mtu: int) -> bytes | None:
    """The frame that tells the sender how long its packets may be; None where there is to be none."""
    ip = packet.ip
    assert ip is not None
    if packet.is_multicast or ip.destination in NO_UNICAST[ip.version] or ip.is_later_fragment or is_error(ip):
        return None
    if ip.source.is_unspecified or ip.destination.is_unspecified:
        return None
    if ip.version == 4 and not packet.frame[ETHERNET + 6] & DONT_FRAGMENT:
        return None
    told = max(mtu, LEAST[ip.version])
    header = 20 if ip.version == 4 else 40
    quote = packet.frame[ETHERNET : ip.end][: LONGEST_ANSWER[ip.version] - header - 8]
    kind = bytes([3, 4, 0, 0]) if ip.version == 4 else bytes([2, 0, 0, 0])
    message = kind + told.to_bytes(4, "big") + quote
    if ip.version == 4:
        message = with_checksum(message, 2, checksum(message))
        outer = header4(ip, len(message))
    else:
        message = with_checksum(message, 2, transport_checksum(ip.destination, ip.source, ICMPV6, message))
        outer = header6(ip, len(message))
    return octets(packet.source) + octets(packet.destination) + packet.frame[12:14] + outer + message


def header4(ip: Ip, payload: int) -> bytes:
    """An IPv4 header from the destination of a packet to its source."""
    fields = bytes([0x45, 0]) + (20 + payload).to_bytes(2, "big") + bytes([0, 0, DONT_FRAGMENT, 0, 64, ICMP, 0, 0])
    ends = ip.destination.packed + ip.source.packed
    return with_checksum(fields + ends, 10, checksum(fields + ends))


def header6(ip: Ip, payload: int) -> bytes:
    """An IPv6 header from the destination of a packet to its source."""
    fields = bytes([0x60, 0, 0, 0]) + payload.to_bytes(2, "big") + bytes([ICMPV6, 64])
    return fields + ip.destination.packed + ip.source.packed


def is_error(ip: Ip) -> bool:
    """Whether it is an ICMP error or redirect, which nobody answers with another."""
    if not is_icmp(ip.version, ip.protocol) or ip.transport is None:
        return False
    kind = ip.transport.dport >> 8
    return kind in {3, 4, 5, 11, 12} if ip.version == 4 else kind < 128 or kind == 137


def clamp(packet: Packet, mtu: int) -> bytes:
    """The frame with the MSS option of a SYN lowered to what an MTU leaves; as it was if it has no larger one."""
    ip = packet.ip
    if ip is None or ip.protocol != TCP or ip.transport is None or not ip.transport.flags & SYN:
        return packet.frame
    at = mss_at(packet.frame[ip.payload : ip.payload + ip.transport.length])
    most = max(mtu - IP_AND_TCP[ip.version], 0)
    if at is None or number(packet.frame[ip.payload + at : ip.payload + at + 2]) <= most:
        return packet.frame
    before = packet.frame[ip.payload : ip.payload + ip.transport.length]
    after = before[:at] + most.to_bytes(2, "big") + before[at + 2 :]
    after = with_checksum(after, 16, mended(before, after))
    return packet.frame[: ip.payload] + after + packet.frame[ip.payload + ip.transport.length :]


def mss_at(header: bytes) -> int | None:
    """Where the first MSS option of a TCP header has its value."""
    at = TCP_HEADER
    while at < len(header) and header[at] != END:
        if header[at] == NOTHING:
            at += 1
            continue
        length = header[at + 1] if at + 1 < len(header) else 0
        if length < 2 or at + length > len(header):
            return None
        if header[at] == MSS and length == 4:
            return at + 2
        at += length
    return None


def mended(before: bytes, after: bytes) -> int:
    """The checksum of a TCP header after a change elsewhere in it: HC' = ~(~HC + ~m + m'), RFC 1624 equation 3."""
    total = ~number(before[16:18]) & 0xFFFF
    for at in range(TCP_HEADER, len(before), 2):
        old, new = number(before[at : at + 2]), number(after[at : at + 2])
        if old != new:
            total += (~old & 0xFFFF) + new
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
