"""GRE with a key around Ethernet: RFC 2784, RFC 2890."""

from __future__ import annotations

from headrace.abi import Reason
from headrace.datapath.decision import Dropped

PROTOCOL = 0x6558
KEY, SEQUENCE, RESERVED = 0x2000, 0x1000, 0x0FF8
NOT_OURS = 0xC007
"""Checksum, routing, and any version but 0."""
MOST = (1 << 28) - 1
"""The largest key of a segment."""


def put(key: int) -> bytes:
    """The header, with its key."""
    return KEY.to_bytes(2, "big") + PROTOCOL.to_bytes(2, "big") + key.to_bytes(4, "big")


def take(octets: bytes) -> tuple[int, bytes]:
    """Key and inner frame; raises Dropped."""
    flags = int.from_bytes(octets[0:2], "big")
    length = 12 if flags & SEQUENCE else 8
    if not flags & KEY or flags & RESERVED or len(octets) < length:
        raise Dropped(Reason.MALFORMED_TUNNEL, "no GRE header with a key and nothing unknown")
    key = int.from_bytes(octets[4:8], "big")
    if key > MOST:
        raise Dropped(Reason.UNKNOWN_SEGMENT, f"the key {key} is larger than that of any segment")
    return key, octets[length:]
