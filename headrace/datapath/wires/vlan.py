"""Tags of physical networks: IEEE 802.1Q, and 802.1ad with 802.1Q within."""

from __future__ import annotations

ADDRESSES = 12
TAG = 4
CUSTOMER, SERVICE = 0x8100, 0x88A8
VID = 0xFFF


def put(frame: bytes, vid: int | None, service: int | None = None) -> bytes:
    """A frame with the tags of a segment, priority 0."""
    for kind, number in ((CUSTOMER, vid), (SERVICE, service)):
        if number:
            frame = with_tag(frame, kind, number)
    return frame


def take(frame: bytes) -> tuple[int, int, bytes] | None:
    """802.1ad VID, 802.1Q VID - 0: none - and the frame without them; None if its tags name no segment."""
    if kind_of(frame) is None:
        return 0, 0, frame
    kind, vid = tag_of(frame)
    rest = without(frame)
    if kind != SERVICE:
        return (0, vid, rest) if kind else None
    inner, own = tag_of(rest)
    return (vid, own, without(rest)) if inner == CUSTOMER and vid and own else None


def tag_of(frame: bytes) -> tuple[int | None, int]:
    """Kind and VID of a frame's outermost tag; (None, 0) if it has none, or ends before the type behind it."""
    kind = kind_of(frame)
    if kind is None or len(frame) < ADDRESSES + TAG + 2:
        return None, 0
    return kind, int.from_bytes(frame[ADDRESSES + 2 : ADDRESSES + TAG], "big") & VID


def kind_of(frame: bytes) -> int | None:
    """Kind of a frame's outermost tag."""
    kind = int.from_bytes(frame[ADDRESSES : ADDRESSES + 2], "big")
    return kind if kind in {CUSTOMER, SERVICE} else None


def with_tag(frame: bytes, kind: int, tci: int) -> bytes:
    """A frame with one more tag."""
    return frame[:ADDRESSES] + kind.to_bytes(2, "big") + tci.to_bytes(2, "big") + frame[ADDRESSES:]


def without(frame: bytes) -> bytes:
    """A frame without its outermost tag."""
    return frame[:ADDRESSES] + frame[ADDRESSES + TAG :]
