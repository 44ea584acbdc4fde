"""What must be put and deleted to make actual tables the desired ones."""

from __future__ import annotations

from collections.abc import Iterator

from headrace import abi
from headrace.stages.compile import ORDER
from headrace.stages.epoch import concerned
from headrace.stages.view import Table, Tables


class Delta:
    """Desired against actual, table by table. ``actual`` is changed only by what was really written."""

    def __init__(self, actual: Tables, desired: Tables) -> None:
        self.actual = actual
        self.desired = desired
        self.epochs = concerned(actual, desired)

    def puts(self) -> Iterator[tuple[str, Table]]:
        """New and changed entries, tables in an order in which what is referred to comes first."""
        for name in ORDER:
            before, after = self.actual.get(name, {}), self.desired.get(name, {})
            changed = {key: value for key, value in after.items() if before.get(key) != value}
            if changed:
                yield name, changed

    def deletes(self) -> Iterator[tuple[str, list[abi.Packed]]]:
        """Entries no longer wanted, in the opposite order."""
        for name in reversed(ORDER):
            after = self.desired.get(name, {})
            gone = [key for key in self.actual.get(name, {}) if key not in after]
            if gone:
                yield name, gone

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return any(True for _ in self.puts()) or any(True for _ in self.deletes())
