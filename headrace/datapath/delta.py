"""What must be put and deleted to make actual tables the desired ones."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

from headrace import abi
from headrace.errors import DatapathError
from headrace.stages.compile import ORDER
from headrace.stages.epoch import concerned
from headrace.stages.memo import Table
from headrace.stages.view import Parts, Tables


class Delta:
    """Desired against actual, table by table. ``actual`` is changed only by what was really written.

    ``applied``: parts that are known to be what ``actual`` holds; what they and ``desired`` share is not looked at.
    """

    def __init__(self, actual: Tables, desired: Parts, applied: Parts | None = None) -> None:
        self.actual = actual
        self.desired = desired
        self._put: Tables = {}
        self._gone: Tables = {}
        for name in ORDER:
            before: Mapping[Hashable, Table] = applied[name] if applied else {None: actual.get(name, {})}
            self._compare(name, before, desired.get(name, {}))
        held = actual.get("hr_fdbs", {})
        here = (key for key, one in self._put.get("hr_fdbs", {}).items() if isinstance(one, abi.Fdb) and not one.vtep)
        fdbs = [key for key in here if key not in held]
        self.epochs = concerned(actual, {name: self.lost(name) for name in ORDER}, {"hr_fdbs": fdbs})

    def _compare(self, name: str, before: Mapping[Hashable, Table], after: Mapping[Hashable, Table]) -> None:
        fresh = [table for part, table in after.items() if before.get(part) is not table]
        stale = [table for part, table in before.items() if after.get(part) is not table]
        held = self.actual.get(name, {})
        put = {
            key: value
            for table in fresh
            for key, value in table.items()
            if (old := held.get(key)) is not value and old != value
        }
        kept = fresh[0] if len(fresh) == 1 else {key for table in fresh for key in table}
        gone = {key: held[key] for table in stale for key in table if key not in kept and key in held}
        if put:
            self._put[name] = put
        if gone:
            self._gone[name] = gone

    def puts(self) -> Iterator[tuple[str, Table]]:
        """New and changed entries, tables in an order in which what is referred to comes first."""
        return iter(self._put.items())

    def deletes(self) -> Iterator[tuple[str, list[abi.Packed]]]:
        """Entries no longer wanted, in the opposite order."""
        for name, gone in reversed(self._gone.items()):
            if found := [key for key in gone if not self._left_over(name, key)]:
                yield name, found

    def leftovers(self) -> Iterator[tuple[str, list[abi.Packed]]]:
        """Those of them that only a walk can still come upon that began before the puts."""
        for name, gone in reversed(self._gone.items()):
            if found := [key for key in gone if self._left_over(name, key)]:
                yield name, found

    def _left_over(self, name: str, key: abi.Packed) -> bool:
        """What belongs to a policy that no port has now; its ports have moved to another one."""
        if isinstance(key, abi.AclRemoteKey | abi.AclAddressKey):
            return key.remotes not in self.desired.get("hr_acl_remotes", {})
        return name in {"hr_acl_services", "hr_acl_matches"}

    def lost(self, name: str) -> Table:
        """Entries that go, or become others: as they were."""
        held, gone = self.actual.get(name, {}), self._gone.get(name, {})
        return gone | {key: held[key] for key in self._put.get(name, {}) if key in held}

    def fit(self, room: Mapping[str, int]) -> None:
        """Raises DatapathError, before anything is written, where a table has no room for what is put."""
        for name, put in self._put.items():
            held = self.actual.get(name, {})
            more = sum(key not in held for key in put)
            if len(held) + more > room[name]:
                raise DatapathError(
                    f"table {name} has room for {room[name]} entries, {len(held)} are in use and {more} more wanted:"
                    " all stays as it was; have fewer rules, members or ports on this host"
                )

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self._put or self._gone)
