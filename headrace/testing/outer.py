"""What is around a frame on its way between hosts, put on and read by hand: it shares no code with the datapath.

Sources: RFC 791, 8200, 768, 7348, 8926, 2890, 3032, 8300; IEEE 802.1Q, 802.1ad.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

from headrace.model import Segment

HOP_LIMIT = 64
DONT_FRAGMENT = 0x4000
EPHEMERAL = 49152
UDP, GRE = 17, 47
IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"
NSH = b"\x89\x4f"
SERVICE, CUSTOMER = b"\x88\xa8", b"\x81\x00"
UDP_PORTS = {"vxlan": 4789, "geneve": 6081, "mpls-udp": 6635, "nsh-gpe": 4790}
NEED_CHECKSUM = {"geneve", "mpls-udp"}
"""Wires whose UDP header has a checksum over IPv6."""


class Outer(NamedTuple):
    """What was around a frame that left by tunnel, and the frame inside. No addresses where there is no IP header.

    ``sport``: of UDP; ``label``: IPv6's flow label.
    """

    source: str
    destination: str
    segment: Segment
    tos: int
    sport: int
    label: int
    mac: str
    inner: bytes


def header_of(segment: Segment) -> bytes:
    """The octets between the outer UDP header, or IP header of GRE, or Ethernet header, and the inner frame."""
    four = segment.number.to_bytes(4, "big")
    label = ((segment.number & 0xFFFFF) << 12 | 0x140).to_bytes(4, "big")
    nsh = b"\x0f\xc2\x02\x03" + four[1:] + b"\xff"
    return {
        "vxlan": b"\x08\0\0\0" + four[1:] + b"\0",
        "geneve": b"\0\0\x65\x58" + four[1:] + b"\0",
        "gre": b"\x20\0\x65\x58" + four,
        "mpls-udp": label,
        "mpls-gre": b"\0\0\x88\x47" + label,
        "nsh-gpe": b"\x0c\0\0\x04" + four[1:] + b"\0" + nsh,
        "nsh-ethernet": nsh,
    }[segment.wire]


def put_on(
    source: str,
    destination: str,
    segment: Segment | int,
    inner: bytes,
    *,
    sport: int = EPHEMERAL,
    tos: int = 0,
    macs: bytes = bytes(12),
) -> bytes:
    """A frame of the underlay between two VTEPs. ``segment``: a number is a VNI of VXLAN.

    ``macs``: of the Ethernet header, destination and source.
    """
    segment = Segment(id=segment) if isinstance(segment, int) else segment
    payload = header_of(segment) + inner
    if segment.wire == "nsh-ethernet":
        return macs + NSH + payload
    protocol = GRE
    if segment.wire in UDP_PORTS:
        protocol = UDP
        payload = struct.pack("!HHHH", sport, UDP_PORTS[segment.wire], 8 + len(payload), 0) + payload
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if ":" in source:
        header = struct.pack("!IHBB", 6 << 28 | tos << 20, len(payload), protocol, HOP_LIMIT) + ends
        return macs + IPV6 + header + payload
    fixed = (0x45, tos, 20 + len(payload), 0, DONT_FRAGMENT, HOP_LIMIT, protocol, 0)
    header = struct.pack("!BBHHHBBH", *fixed) + ends
    header = header[:10] + struct.pack("!H", ones_complement(header)) + header[12:]
    return macs + IPV4 + header + payload


def take_off(frame: bytes) -> Outer:
    """Read the outer headers; asserts every field that docs/pipeline.md, "encap", fixes."""
    mac, ethertype = frame[:6].hex(":"), frame[12:14]
    if ethertype == NSH:
        segment, inner = read_nsh(frame[14:], "ethernet")
        return Outer("", "", segment, 0, 0, 0, mac, inner)
    if ethertype == IPV4:
        header, payload = frame[14:34], frame[34:]
        assert ones_complement(header) == 0, f"outer checksum of {header.hex()}"
        version, tos, length, ident, place, hop_limit, protocol = struct.unpack("!BBHHHBB2x8x", header)
        assert (version, length, ident, place) == (0x45, len(frame) - 14, 0, DONT_FRAGMENT)
        ends, label = header[12:20], 0
    else:
        assert ethertype == IPV6, f"outer ethertype {ethertype.hex()}"
        header, payload = frame[14:54], frame[54:]
        first, length, protocol, hop_limit = struct.unpack("!IHBB32x", header)
        assert (first >> 28, length) == (6, len(payload))
        tos, label = first >> 20 & 0xFF, first & 0xFFFFF
        ends = header[8:40]
    assert hop_limit == HOP_LIMIT
    half = len(ends) // 2
    source, destination = (str(ipaddress.ip_address(octets)) for octets in (ends[:half], ends[half:]))
    if protocol == GRE:
        sport, (segment, inner) = 0, read_gre(payload)
    else:
        assert protocol == UDP, f"outer protocol {protocol}"
        sport, dport, length, checksum = struct.unpack("!HHHH", payload[:8])
        assert sport >= EPHEMERAL
        assert length == len(payload)
        segment, inner = read_udp(dport, payload[8:])
        if ethertype == IPV6 and segment.wire in NEED_CHECKSUM:
            assert checksum, f"{segment.wire} over IPv6 has a checksum"
            right = ones_complement(ends + struct.pack("!II", len(payload), UDP) + payload) == 0
            assert right or is_broken(inner), "outer UDP checksum"
        else:
            assert checksum == 0
    return Outer(source, destination, segment, tos, sport, label, mac, inner)


def is_broken(frame: bytes) -> bool:
    """Whether a packet has a wrong transport checksum, by which an outer one is wrong too."""
    start = 34 if frame[12:14] == IPV4 else 54
    ends, protocol = (frame[26:34], frame[23]) if start == 34 else (frame[22:54], frame[20])
    carried = frame[start:] if start == 54 else frame[start : 14 + int.from_bytes(frame[16:18], "big")]
    pseudo = b"" if protocol == 1 else ends + struct.pack("!II", len(carried), protocol)
    return ones_complement(pseudo + carried) != 0


def read_udp(dport: int, octets: bytes) -> tuple[Segment, bytes]:
    """What a UDP datagram of a tunnel carries, by its port."""
    if dport == UDP_PORTS["vxlan"]:
        assert (octets[0:4], octets[7]) == (b"\x08\0\0\0", 0), f"VXLAN {octets[:8].hex()}"
        return Segment(id=int.from_bytes(octets[4:7], "big")), octets[8:]
    if dport == UDP_PORTS["geneve"]:
        assert (octets[0:4], octets[7]) == (b"\0\0\x65\x58", 0), f"Geneve {octets[:8].hex()}"
        return Segment(type="geneve", id=int.from_bytes(octets[4:7], "big")), octets[8:]
    if dport == UDP_PORTS["mpls-udp"]:
        return read_label(octets, "udp")
    assert dport == UDP_PORTS["nsh-gpe"], f"outer UDP port {dport}"
    assert (octets[0:4], octets[7]) == (b"\x0c\0\0\x04", 0), f"VXLAN-GPE {octets[:8].hex()}"
    segment, inner = read_nsh(octets[8:], "gpe")
    assert segment.number == int.from_bytes(octets[4:7], "big"), "VNI and service path identifier are one"
    return segment, inner


def read_gre(octets: bytes) -> tuple[Segment, bytes]:
    """What GRE carries, by its protocol type."""
    if octets[:4] == b"\x20\0\x65\x58":
        return Segment(type="gre", id=int.from_bytes(octets[4:8], "big")), octets[8:]
    assert octets[:4] == b"\0\0\x88\x47", f"GRE {octets[:4].hex()}"
    return read_label(octets[4:], "gre")


def read_label(octets: bytes, transport: str) -> tuple[Segment, bytes]:
    """One label, bottom of its stack, traffic class 0."""
    entry = int.from_bytes(octets[:4], "big")
    assert entry & 0xFFF == 0x140, f"label stack entry {entry:#010x}"
    return Segment(type="mpls", id=entry >> 12, transport=transport).plain, octets[4:]  # type: ignore[arg-type]


def read_nsh(octets: bytes, transport: str) -> tuple[Segment, bytes]:
    """NSH of metadata type 2 without any, TTL 63, service index 255."""
    assert (octets[0:4], octets[7]) == (b"\x0f\xc2\x02\x03", 255), f"NSH {octets[:8].hex()}"
    number = int.from_bytes(octets[4:7], "big")
    return Segment(type="nsh", id=number, transport=transport).plain, octets[8:]  # type: ignore[arg-type]


def put_tags(frame: bytes, segment: Segment) -> bytes:
    """A frame as it is on the wire of a physical network."""
    tags = b"" if segment.service_vlan is None else SERVICE + segment.service_vlan.to_bytes(2, "big")
    tags += b"" if segment.id is None else CUSTOMER + segment.id.to_bytes(2, "big")
    return frame[:12] + tags + frame[12:]


def take_tags(frame: bytes, physical: str) -> tuple[Segment, bytes]:
    """The segment of a frame on the wire of a physical network, and what a workload sent."""
    service = vid = None
    if frame[12:14] == SERVICE:
        service, frame = int.from_bytes(frame[14:16], "big"), frame[:12] + frame[16:]
        assert frame[12:14] == CUSTOMER, "a customer's tag is within the service's"
    if frame[12:14] == CUSTOMER:
        vid, frame = int.from_bytes(frame[14:16], "big"), frame[:12] + frame[16:]
    kind = "flat" if vid is None else "vlan"
    return Segment(type=kind, id=vid, physical_network=physical, service_vlan=service), frame  # type: ignore[arg-type]


def ones_complement(octets: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    octets += b"\0" * (len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
