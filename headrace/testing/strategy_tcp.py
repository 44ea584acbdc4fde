"""The numbers of TCP segments, right and wrong, and the options of SYNs."""

from __future__ import annotations

from typing import Any

from headrace.testing.choice import Chooser

STARTS = (0, 5_000, 2**32 - 50, 2**31 - 5)
"""Initial sequence numbers: plain, and about to wrap."""
STEPS = (1, 100, 1 << 16, (1 << 16) + 1, 1 << 24, (1 << 24) + 1, 1 << 31, 77_777)
"""How far off a wrong number is: about docs/pipeline.md's bounds."""
SIZES = (0, 0, 10, 100)
SEGMENT_MAX = (536, 1460, 1240, 8960, 65535, 0)


class Numbers:
    """Where both ends of one flow are; the second is the one that answers."""

    def __init__(self, choose: Chooser) -> None:
        self.choose = choose
        self.sent = [choose.pick(STARTS), choose.pick(STARTS)]
        self.heard = [0, 0]

    def draw(self, flags: str, size: int, *, reply: bool) -> tuple[int, int]:
        """Sequence and acknowledgment number of a segment, mostly those that come next."""
        own, other = (1, 0) if reply else (0, 1)
        if flags == "S" and self.choose.chance(15):
            self.sent[own] = self.choose.pick((*STARTS, 9_000_000, 1 << 30))
        if not self.choose.chance(20):
            self.heard[own] = self.sent[other]
        right = self.sent[own], self.heard[own]
        seq, ack = self.strayed(right[0], 18), self.strayed(right[1], 12)
        if "R" in flags and self.choose.chance(40):
            seq = self.strayed(self.heard[other], 50)
        elif "S" in flags and self.choose.chance(10):
            seq -= 1
        if (seq, ack) == right and "R" not in flags:
            self.sent[own] += size + ("S" in flags) + ("F" in flags)
        return seq, ack

    def strayed(self, number: int, percent: int) -> int:
        """A number, or now and then one that is wrong."""
        if not self.choose.chance(percent):
            return number
        step = self.choose.pick(STEPS)
        return number - step if self.choose.chance(50) else number + step


def draw_options(choose: Chooser) -> list[tuple[Any, Any]]:
    """TCP options of a SYN: mostly none, else an MSS at any alignment, twice, or broken."""
    if not choose.chance(40):
        return []
    options: list[tuple[Any, Any]] = [("NOP", None)] * choose.number(0, 3)
    if choose.chance(20):
        options.append(choose.pick((("WScale", 7), ("SAckOK", b""), ("EOL", None), (2, b"\x05"), (30, b""))))
    options.append(("MSS", choose.pick(SEGMENT_MAX)))
    if choose.chance(15):
        options.append(("MSS", choose.pick(SEGMENT_MAX)))
    return options
