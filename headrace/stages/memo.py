"""What an earlier compilation found, for the next one: the same inputs have the same answer.

Nothing here decides anything. Inputs are immutable and compared as values (objects of the model that did not change are
the same ones, so comparing thousands of them is quick), hence a compilation with a memory equals one without.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar, cast

from headrace import abi

Value = TypeVar("Value")
Element = TypeVar("Element")

Entry = tuple[abi.Packed, abi.Packed]
Table = dict[abi.Packed, abi.Packed]


class Known(NamedTuple, Generic[Value]):
    """An answer with what it was made of."""

    inputs: tuple[Any, ...]
    value: Value


class Spread(NamedTuple):
    """A table of many elements' entries, with each element's own."""

    elements: Mapping[str, Any]
    own: Mapping[str, Table]
    table: Table


class Memo:
    """Answers by name. One that two turns did not ask for is forgotten."""

    def __init__(self) -> None:
        self._now: dict[Hashable, Known[Any]] = {}
        self._before: dict[Hashable, Known[Any]] = {}

    def turn(self) -> None:
        """Begin another compilation."""
        self._before, self._now = self._now, {}

    def of(self, name: Hashable, make: Callable[..., Value], *inputs: object) -> Value:
        """``make(*inputs)``, or what it was when it was asked for by this name with equal inputs."""
        return self.after(name, lambda _, *given: make(*given), *inputs)

    def after(self, name: Hashable, make: Callable[..., Value], *inputs: object) -> Value:
        """The same, of a ``make`` that takes first what it answered before, if anything, to begin from."""
        known = self._now.get(name) or self._before.get(name)
        if known is None or known.inputs != inputs:
            known = Known(inputs, make(known.value if known else None, *inputs))
        self._now[name] = known
        return cast("Value", known.value)

    def spread(
        self, name: Hashable, elements: Mapping[str, Element], make: Callable[[Element], Iterable[Entry]]
    ) -> Table:
        """The entries that ``make`` gives for each element, together; where two have a key, the later one's counts."""
        return self.after(name, lambda before, given: spread(before, given, make), elements).table


def spread(
    before: Spread | None, elements: Mapping[str, Element], make: Callable[[Element], Iterable[Entry]]
) -> Spread:
    """One table of all elements' entries, from the one before where few elements changed."""
    old = before.elements if before else {}
    changed = [name for name, element in elements.items() if name not in old or old[name] != element]
    gone = [name for name in old if name not in elements]
    own: dict[str, Table] = dict(before.own) if before else {}
    lost = [own.pop(name) for name in (*gone, *(name for name in changed if name in old))]
    own.update({name: dict(make(elements[name])) for name in changed})
    if before and len(before.table) == sum(map(len, before.own.values())):  # no key was two elements'
        table = dict(before.table)
        for entries in lost:
            for key in entries:
                del table[key]
        for name in changed:
            table.update(own[name])
        if len(table) == sum(map(len, own.values())):
            return Spread(elements, own, table)
    table = {}
    for name in elements:
        table.update(own[name])
    return Spread(elements, own, table)
