"""Medians, spreads and ratios of interleaved rounds.

Rounds are paired: in one round all contenders were measured within seconds of each other, so what the machine did to
one it did to the other, and the ratio within a round spreads less than the values do.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Rounds = list[float | None]
"""One value a round; None where the measurement failed."""


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """This contender's value over another's: the median over rounds, with the extremes.

    ``inside_spread``: the rounds do not agree on which of the two is larger (or there is only one round).
    """

    ratio: float
    min: float
    max: float
    inside_spread: bool


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a table and one item of a results file. ``reason``: why there is no value."""

    contender: str
    parameters: dict[str, int | str]
    unit: str
    min: float | None
    median: float | None
    max: float | None
    ratios: dict[str, Ratio] = msgspec.field(default_factory=dict)
    rounds: Rounds = msgspec.field(default_factory=list)
    reason: str = ""


def ratio(mine: Rounds, other: Rounds) -> Ratio | None:
    """None where no round has both, or the other is 0."""
    pairs = [a / b for a, b in zip(mine, other, strict=False) if a is not None and b]
    if not pairs:
        return None
    low, high = min(pairs), max(pairs)
    return Ratio(ratio=statistics.median(pairs), min=low, max=high, inside_spread=len(pairs) < 2 or low <= 1.0 <= high)


def summarise(
    rounds: Mapping[str, Rounds],
    *,
    parameters: dict[str, int | str],
    unit: str,
    against: Sequence[str],
    reasons: Mapping[str, str] | None = None,
) -> list[Row]:
    """A row for each contender, with its ratio to each of ``against`` that has values."""
    rows = []
    for name, values in rounds.items():
        good = [value for value in values if value is not None]
        ratios = {
            other: found
            for other in against
            if other != name and other in rounds and (found := ratio(values, rounds[other])) is not None
        }
        rows.append(
            Row(
                contender=name,
                parameters=parameters,
                unit=unit,
                min=min(good) if good else None,
                median=statistics.median(good) if good else None,
                max=max(good) if good else None,
                ratios=ratios,
                rounds=values,
                reason=(reasons or {}).get(name, "") if not good else "",
            )
        )
    return rows
