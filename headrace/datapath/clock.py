"""How the kernel's jiffies and CLOCK_MONOTONIC relate, for bpf/lib/clock.h."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import NamedTuple

SECOND_NS = 1_000_000_000
RATES = (100, 250, 300, 1000)
"""CONFIG_HZ as kernel/Kconfig.hz has it."""

START_S = 300
"""Jiffies begin so long before they overflow 32 bits (``INITIAL_JIFFIES``, include/linux/jiffies.h)."""

APART_S = 0.06
"""Between two readings: 15 ticks of 250 Hz, 18 of 300 Hz."""

TOLERANCE = 0.01
"""Of the time since boot; at least a second of it."""


class Reading(NamedTuple):
    """At one moment. ``jiffies``: jiffies64; ``monotonic``: ns since boot; neither counts through a suspend."""

    jiffies: int
    monotonic: int


class Clock(NamedTuple):
    """``tick``: ns of a jiffy, 0 if it could not be told; ``zero``: what the clock showed at jiffy 0, modulo 2^64."""

    tick: int = 0
    zero: int = 0


def measure(read: Callable[[], Reading]) -> Clock:
    """Read twice, and tell; takes 60 ms."""
    first = read()
    select.select((), (), (), APART_S)  # not until a moment of a clock, which a test may have moved
    return clock_of(first, read())


def clock_of(first: Reading, second: Reading) -> Clock:
    """What two readings tell: the rate that their distance is nearest to, if the time since boot agrees."""
    elapsed = second.monotonic - first.monotonic
    rate = min(RATES, key=lambda rate: abs((second.jiffies - first.jiffies) * SECOND_NS - elapsed * rate))
    since_boot = (second.jiffies - (2**32 - START_S * rate)) * SECOND_NS // rate
    if abs(since_boot - second.monotonic) > max(SECOND_NS, second.monotonic * TOLERANCE):
        return Clock()
    tick = (SECOND_NS + rate // 2) // rate  # TICK_NSEC, include/linux/jiffies.h
    return Clock(tick, (second.monotonic - second.jiffies * tick) % 2**64)
