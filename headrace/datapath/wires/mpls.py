"""MPLS over UDP (RFC 7510) and over GRE (RFC 4023): one label (RFC 3032), Ethernet behind it (RFC 7432 section 6)."""

from __future__ import annotations

from headrace.abi import Reason
from headrace.datapath.decision import Dropped

PORT = 6635
PROTOCOL = 0x8847
ENTRY = 4
BOTTOM = 0x100
TTL = 64
FIRST_LABEL = 16
"""Those below are reserved."""


def put(label: int) -> bytes:
    """The label stack."""
    return (label << 12 | BOTTOM | TTL).to_bytes(ENTRY, "big")


def put_gre(label: int) -> bytes:
    """A GRE header without options, and the label stack."""
    return bytes(2) + PROTOCOL.to_bytes(2, "big") + put(label)


def take(octets: bytes) -> tuple[int, bytes]:
    """Label and inner frame; raises Dropped."""
    entry = int.from_bytes(octets[:ENTRY], "big")
    if len(octets) < ENTRY or not entry & BOTTOM or entry >> 12 < FIRST_LABEL:
        raise Dropped(Reason.MALFORMED_TUNNEL, "no stack of one label that a network could have")
    return entry >> 12, octets[ENTRY:]


def take_gre(octets: bytes) -> tuple[int, bytes]:
    """The same behind a GRE header; raises Dropped."""
    if any(octets[0:2]):
        raise Dropped(Reason.MALFORMED_TUNNEL, "a GRE header with options before MPLS")
    return take(octets[4:])
