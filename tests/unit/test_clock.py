"""Jiffies as a clock: which rate the kernel has is found from two readings."""

from __future__ import annotations

import pytest

from headrace.datapath.clock import APART_S, RATES, SECOND_NS, START_S, Clock, Reading, clock_of


def reading(rate: int, ns: int) -> Reading:
    """What a kernel of that rate shows so long after boot."""
    return Reading(2**32 - START_S * rate + ns * rate // SECOND_NS, ns)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seconds", [2, 299.99, 300.01, 86_400, 100_000_000])
@pytest.mark.parametrize("late", [0.0, 0.003, 0.5])
def test_the_rate_is_found_soon_and_late(rate: int, seconds: float, late: float) -> None:
    at = int(seconds * SECOND_NS)
    then = at + int((APART_S + late) * SECOND_NS)
    clock = clock_of(reading(rate, at), reading(rate, then))
    assert clock.tick == round(SECOND_NS / rate)
    shown = (reading(rate, then).jiffies * clock.tick + clock.zero) % 2**64
    assert shown == then


def test_jiffies_that_do_not_count_from_boot_are_no_clock() -> None:
    first, second = reading(128, 1000 * SECOND_NS), reading(128, 1001 * SECOND_NS)
    assert clock_of(first, second) == Clock()
    first, second = Reading(0, 1000 * SECOND_NS), Reading(15, 1000 * SECOND_NS + 60_000_000)
    assert clock_of(first, second) == Clock()
