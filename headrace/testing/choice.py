"""Choices, made by Hypothesis (which shrinks them) or by a seed (which repeats them): one generator serves both."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Chooser(Protocol):
    """Who decides. The first and the smallest of anything should be the plainest: Hypothesis shrinks towards it."""

    def number(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        ...

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        ...

    def chance(self, percent: int) -> bool:
        """True as often as that; shrinks towards False."""
        ...


class Drawn:
    """Hypothesis chooses."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw

    def number(self, low: int, high: int) -> int:
        found: int = self.draw(st.integers(low, high))
        return found

    def pick(self, items: Sequence[T]) -> T:
        found: T = self.draw(st.sampled_from(items))
        return found

    def chance(self, percent: int) -> bool:
        return self.number(0, 99) >= 100 - percent


class Seeded:
    """A seed chooses: the same one, the same choices, on every machine."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.random.randrange(len(items))]

    def chance(self, percent: int) -> bool:
        return self.number(0, 99) >= 100 - percent


def some(choose: Chooser, items: Sequence[T], percent: int = 50) -> tuple[T, ...]:
    """Any of the items, in their order."""
    return tuple(item for item in items if choose.chance(percent))


def weighted(choose: Chooser, items: Sequence[tuple[int, T]]) -> T:
    """One of the items, each as often as its weight says; the first is the plainest."""
    left = choose.number(1, sum(weight for weight, _ in items))
    for weight, item in items:
        left -= weight
        if left <= 0:
            return item
    raise AssertionError("weights are positive")
