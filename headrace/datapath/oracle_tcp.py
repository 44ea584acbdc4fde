"""TCP's window: which segments fit what the two sides have said so far. docs/pipeline.md, "track".

Numbers compare modulo 2^32 (RFC 9293 section 3.4).
"""

from __future__ import annotations

import msgspec

from headrace.datapath.packet import ACK, FIN, RST, SYN, TCP, Ip

WINDOW = 1 << 24
"""How far from what is known a number may lie to be plausible."""
RESET = 1 << 16
"""How far from what is known a reset's may lie."""


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """What one segment says. ``end``: the sequence number after its last octet; ``ack`` None: it has none."""

    flags: int
    seq: int
    end: int
    ack: int | None = None

    @property
    def opens(self) -> bool:
        """Whether it is a SYN without ACK."""
        return self.flags & (SYN | ACK) == SYN

    @property
    def resets(self) -> bool:
        return bool(self.flags & RST)


class TcpSide(msgspec.Struct, kw_only=True):
    """What one side has sent: ``edge`` follows its last octet, ``ack`` is the highest it acknowledged."""

    edge: int | None = None
    ack: int | None = None

    def advance(self, segment: Segment) -> None:
        """Move forward by a segment, never back."""
        if self.edge is None or distance(self.edge, segment.end) > 0:
            self.edge = segment.end
        if segment.ack is not None and (self.ack is None or distance(self.ack, segment.ack) > 0):
            self.ack = segment.ack


def segment_of(ip: Ip) -> Segment | None:
    """A packet's segment; None of a later fragment or another protocol."""
    if ip.protocol != TCP or ip.transport is None:
        return None
    transport = ip.transport
    length = ip.end - ip.payload - transport.length + bool(transport.flags & SYN) + bool(transport.flags & FIN)
    return Segment(
        flags=transport.flags,
        seq=transport.seq,
        end=(transport.seq + length) % 2**32,
        ack=transport.ack if transport.flags & ACK else None,
    )


def plausible(segment: Segment, own: TcpSide, other: TcpSide) -> bool:
    """Whether a segment of one side fits what is known of both."""
    if own.edge is not None and abs(distance(own.edge, segment.seq)) > WINDOW:
        return False
    if segment.ack is None or other.edge is None:
        return True
    known = other.edge if own.ack is None else own.ack
    return distance(segment.ack, other.edge) >= 0 and distance(segment.ack, known) <= WINDOW


def believed(segment: Segment, own: TcpSide, other: TcpSide) -> bool:
    """Whether the other side would believe a RST of one (RFC 5961 section 3, RFC 9293 section 3.10.7.3)."""
    if own.edge is None and other.edge is not None and segment.ack is not None and is_just_below(segment.ack, other):
        return True
    if other.ack is None:
        return is_just_below(segment.seq, own)
    if own.edge is None or distance(other.ack, own.edge) <= 0:
        return segment.seq == other.ack
    return 0 <= distance(other.ack, segment.seq) <= distance(other.ack, own.edge)


def is_just_above(number: int, side: TcpSide) -> bool:
    """Whether a number is a side's edge or at most 2^16 above it."""
    return side.edge is not None and 0 <= distance(side.edge, number) <= RESET


def is_just_below(number: int, side: TcpSide) -> bool:
    """Whether a number is a side's edge or at most 2^16 below it."""
    return side.edge is not None and 0 <= distance(number, side.edge) <= RESET


def distance(one: int, other: int) -> int:
    """How far ``other`` lies above ``one``, from -2^31 to 2^31 - 1."""
    return (other - one + 2**31) % 2**32 - 2**31
