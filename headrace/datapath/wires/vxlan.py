"""VXLAN: RFC 7348 section 5."""

from __future__ import annotations

from headrace.abi import Reason
from headrace.datapath.decision import Dropped

PORT = 4789
HEADER = 8
VALID = 0x08


def put(vni: int) -> bytes:
    """The header, flag I set."""
    return bytes([VALID, 0, 0, 0]) + vni.to_bytes(3, "big") + b"\0"


def take(octets: bytes) -> tuple[int, bytes]:
    """VNI and inner frame; raises Dropped."""
    if len(octets) < HEADER or not octets[0] & VALID:
        raise Dropped(Reason.MALFORMED_TUNNEL, "no VXLAN header with a VNI")
    return int.from_bytes(octets[4:7], "big"), octets[HEADER:]
