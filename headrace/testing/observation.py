"""What a test run of the real programs is given and what it shows, in the oracle's words.

Sources: ``struct __sk_buff`` and ``struct xdp_md`` of ``linux/bpf.h``; RFC 791, RFC 8200, RFC 768, RFC 7348.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from typing import Literal, NamedTuple

import msgspec

from headrace import abi
from headrace.abi import Reason, State
from headrace.datapath.decision import (
    RULE_ESTABLISHED,
    RULE_IMPLICIT,
    RULE_NONE,
    RULE_OPEN,
    RULE_REMOTE,
    IpAddress,
    Key,
    Output,
    Place,
    Refusal,
)

Hook = Literal["tc", "xdp"]

TC_ACT_UNSPEC = 0xFFFFFFFF
TC_ACT_SHOT = 2
TC_ACT_REDIRECT = 7
XDP_PASS = 2
XDP_REDIRECT = 4
MARK = abi.MARK
"""On frames that leave by a port's device and not straight into its peer."""

RULE_NAMES = {
    abi.RULE_NONE: RULE_NONE,
    abi.RULE_ESTABLISHED: RULE_ESTABLISHED,
    abi.RULE_IMPLICIT: RULE_IMPLICIT,
    abi.RULE_OPEN: RULE_OPEN,
    abi.RULE_REMOTE: RULE_REMOTE,
}

SKB = struct.Struct("<8xI28xI4xII120xI12x")
"""mark, ifindex, cb[0], cb[1], gso_size; what is not given must be zero."""
XDP = struct.Struct("<6I")
"""data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex."""

ETHERNET = 14
UDP_HEADER = 8
VXLAN_HEADER = 8
VXLAN_FLAGS = b"\x08\x00\x00\x00"
HOP_LIMIT = 64
DONT_FRAGMENT = 0x4000
EPHEMERAL = 49152


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted; by port id, "" for the uplink. ``traffic``: (port, which, packets or octets)."""

    reasons: Counter[tuple[str, Reason]] = msgspec.field(default_factory=Counter)
    traffic: Counter[tuple[str, str, str]] = msgspec.field(default_factory=Counter)


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What the programs did with one frame.

    ``hook``: the one that concluded. ``concluded`` is false where a program ended without leaving a conclusion, and the
    reason is from the counters. ``rule_from``, ``rule_to``: of the walk, or that its connection keeps for a replay.
    ``connection``: the state it is in afterwards. ``marked``: left by a device and not straight into a veth's peer.
    ``outer``: the frame as it left by tunnel, outer headers and all; ``copies``: those of a flood.
    """

    reason: Reason
    verdict: int
    hook: Hook = "tc"
    outputs: tuple[Output, ...] = ()
    refused: tuple[Refusal, ...] = ()
    passed: bool = False
    replayed: bool = False
    concluded: bool = True
    rule_from: str = RULE_NONE
    rule_to: str = RULE_NONE
    key: Key | None = None
    connection: State | None = None
    marked: bool = False
    outer: bytes = b""
    copies: tuple[bytes, ...] = ()
    counts: Counts = msgspec.field(default_factory=Counts)


class Outer(NamedTuple):
    """The outer headers of a frame that left by tunnel, and the frame inside."""

    source: str
    destination: str
    vni: int
    tos: int
    sport: int
    mac: str
    inner: bytes


def skb_context(ifindex: int, *, gso_size: int = 0, vlan: int | None = None, length: int = 0) -> bytes:
    """A ``struct __sk_buff``. ``vlan`` and ``length`` are for the prelude of host.py."""
    return SKB.pack(0, ifindex, 0 if vlan is None else 0x10000 | vlan, length, gso_size)


def xdp_context(ifindex: int, length: int) -> bytes:
    return XDP.pack(0, length, 0, ifindex, 0, 0)


def put_on(source: str, destination: str, vni: int, inner: bytes, sport: int = EPHEMERAL) -> bytes:
    """A frame of the underlay: VXLAN between two VTEPs."""
    vxlan = VXLAN_FLAGS + vni.to_bytes(3, "big") + b"\0" + inner
    udp = struct.pack("!HHHH", sport, 4789, UDP_HEADER + len(vxlan), 0) + vxlan
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if ":" in source:
        header = struct.pack("!IHBB", 6 << 28, len(udp), 17, HOP_LIMIT) + ends
        return bytes(12) + b"\x86\xdd" + header + udp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, DONT_FRAGMENT, HOP_LIMIT, 17, 0) + ends
    header = header[:10] + struct.pack("!H", ones_complement(header)) + header[12:]
    return bytes(12) + b"\x08\x00" + header + udp


def take_off(frame: bytes) -> Outer:
    """Read the outer headers; asserts every field that docs/pipeline.md, "encap", fixes."""
    mac, ethertype = frame[:6].hex(":"), frame[12:14]
    if ethertype == b"\x08\x00":
        header, udp = frame[14:34], frame[34:]
        assert ones_complement(header) == 0, f"outer checksum of {header.hex()}"
        version, tos, length, _, place, hop_limit, protocol = struct.unpack("!BBHHHBB2x8x", header)
        assert (version, length, place, hop_limit, protocol) == (0x45, len(frame) - 14, DONT_FRAGMENT, HOP_LIMIT, 17)
        source, destination = header[12:16], header[16:20]
    else:
        assert ethertype == b"\x86\xdd", f"outer ethertype {ethertype.hex()}"
        header, udp = frame[14:54], frame[54:]
        first, length, protocol, hop_limit = struct.unpack("!IHBB32x", header)
        assert (first >> 28, length) == (6, len(udp))
        assert (hop_limit, protocol) == (HOP_LIMIT, 17)
        tos = first >> 20 & 0xFF
        source, destination = header[8:24], header[24:40]
    sport, dport, length, checksum = struct.unpack("!HHHH", udp[:8])
    assert (dport, length, checksum) == (4789, len(udp), 0)
    assert sport >= EPHEMERAL
    assert udp[8:12] == VXLAN_FLAGS, f"VXLAN flags {udp[8:12].hex()}"
    assert udp[15] == 0, "the last octet of the VXLAN header is reserved"
    vni = int.from_bytes(udp[12:15], "big")
    texts = [str(ipaddress.ip_address(octets)) for octets in (source, destination)]
    return Outer(texts[0], texts[1], vni, tos, sport, mac, udp[16:])


def ones_complement(octets: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def address_of(octets: bytes) -> IpAddress:
    """An address of the ABI, which has IPv4 as ::ffff:a.b.c.d."""
    address = ipaddress.IPv6Address(octets)
    return address.ipv4_mapped or address


def key_of(key: abi.FlowKey, place: Place) -> Key | None:
    """A flow key in the oracle's words; None where the frame has none."""
    if not any(key.saddr) and not any(key.daddr):
        return None
    return Key(address_of(key.saddr), address_of(key.daddr), key.proto, key.sport, key.dport, place)
