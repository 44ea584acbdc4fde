"""NSH (RFC 8300) over Ethernet and over VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe section 3.1)."""

from __future__ import annotations

from headrace.abi import Reason
from headrace.datapath.decision import Dropped

PORT = 4790
ETHERTYPE = 0x894F
HEADER = GPE = 8
OAM = 0x20
ETHERNET = 3
WORDS = {1: range(6, 7), 2: range(2, 64)}
"""Length in words of 4 octets that a metadata type may have."""
BASE = 63 << 22 | 2 << 16 | 2 << 8 | ETHERNET
"""Version 0, TTL 63, length 2, metadata type 2."""
INDEX = 255
GPE_FLAGS, GPE_VERSION, GPE_OAM, GPE_NSH = 0x0C, 0x30, 0x01, 4


def put(path: int) -> bytes:
    """The header, without metadata."""
    return BASE.to_bytes(4, "big") + (path << 8 | INDEX).to_bytes(4, "big")


def put_gpe(path: int) -> bytes:
    """A VXLAN-GPE header whose VNI is the service path identifier, and NSH."""
    return bytes([GPE_FLAGS, 0, 0, GPE_NSH]) + (path << 8).to_bytes(4, "big") + put(path)


def take(octets: bytes) -> tuple[int, bytes]:
    """Service path identifier and inner frame; raises Dropped."""
    if len(octets) < HEADER:
        raise Dropped(Reason.MALFORMED_TUNNEL, "the packet ends inside its NSH")
    words = octets[1] & 0x3F
    fits = words in WORDS.get(octets[2] & 0x0F, ()) and words * 4 <= len(octets)
    if octets[0] >> 6 or octets[0] & OAM or not fits or octets[3] != ETHERNET:
        raise Dropped(Reason.MALFORMED_TUNNEL, "no NSH of version 0 around Ethernet, with all its metadata")
    if not octets[7]:
        raise Dropped(Reason.NSH_EXHAUSTED, "its service index is 0")
    return int.from_bytes(octets[4:7], "big"), octets[words * 4 :]


def take_gpe(octets: bytes) -> tuple[int, bytes]:
    """The same behind a VXLAN-GPE header; raises Dropped."""
    flags = octets[0] if octets else 0
    unknown = flags & GPE_FLAGS != GPE_FLAGS or flags & (GPE_VERSION | GPE_OAM)
    if len(octets) < GPE + HEADER or unknown or octets[3] != GPE_NSH:
        raise Dropped(Reason.MALFORMED_TUNNEL, "no VXLAN-GPE header with a VNI around NSH")
    if octets[4:7] != octets[GPE + 4 : GPE + 7]:
        raise Dropped(Reason.MALFORMED_TUNNEL, "VNI and service path identifier differ")
    return take(octets[GPE:])
