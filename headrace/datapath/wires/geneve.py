"""Geneve: RFC 8926 section 3.4."""

from __future__ import annotations

from headrace.abi import Reason
from headrace.datapath.decision import Dropped

PORT = 6081
HEADER = 8
ETHERNET = 0x6558
CONTROL, CRITICAL = 0x80, 0x40


def put(vni: int) -> bytes:
    """The header, without options."""
    return bytes(2) + ETHERNET.to_bytes(2, "big") + vni.to_bytes(3, "big") + b"\0"


def take(octets: bytes) -> tuple[int, bytes]:
    """VNI and inner frame; raises Dropped."""
    if len(octets) < HEADER:
        raise Dropped(Reason.MALFORMED_TUNNEL, "the packet ends inside its Geneve header")
    length = HEADER + (octets[0] & 0x3F) * 4
    if octets[0] >> 6 or octets[1] & CONTROL or int.from_bytes(octets[2:4], "big") != ETHERNET or length > len(octets):
        raise Dropped(Reason.MALFORMED_TUNNEL, "no Geneve header of version 0 around Ethernet, with all its options")
    if octets[1] & CRITICAL:
        raise Dropped(Reason.GENEVE_OPTION, "it has options that must be understood")
    return int.from_bytes(octets[4:7], "big"), octets[length:]
