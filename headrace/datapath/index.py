"""Indices that survive a restart: hr_names remembers which name has which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping

from headrace import abi
from headrace.datapath.bpfmap import Map
from headrace.errors import DatapathError


class KernelIndex:
    """Gives names indices (headrace.stages.Index) and keeps them in hr_names.

    An index is given again only when none is left, and then only to one that ``in_use`` does not name: an index that
    a connection still names must never mean another port.
    """

    def __init__(self, names: Map, in_use: Callable[[], Mapping[str, set[int]]]) -> None:
        self._names = names
        self._in_use = in_use
        self._known = {key: abi.Name.unpack(value).index for key, value in names.items()}
        self._asked: dict[str, dict[str, int]] = {kind: {} for kind in RANGES}
        """What was asked for already, by plain names: digests take their time."""
        self._wanted: Mapping[str, Collection[str]] = {}
        self._free = {kind: self._unused(kind) for kind in RANGES}

    def port(self, attachment: str) -> int:
        """Index of a local port, by its attachment to a network."""
        if attachment not in self._asked["port"]:
            self._adopt(attachment)
        return self._get("port", attachment)

    def endpoint(self, name: str) -> int:
        """Index of a remote port or VTEP."""
        return self._get("endpoint", name)

    def vtep(self, address: str) -> int:
        """Index of a VTEP's adjacencies."""
        return self._get("vtep", address)

    def physical(self, name: str) -> int:
        """Number of a physical network."""
        return self._get("physical", name)

    def begin(self, wanted: Mapping[str, Collection[str]]) -> None:
        """Say all names that will be asked for from now on, by kind: none of them loses its index to another."""
        self._wanted = wanted

    def drift(self) -> list[tuple[bytes, int, int | None]]:
        """Names that hr_names lacks or has otherwise: digest, their index, the one found."""
        kept = {key: abi.Name.unpack(value).index for key, value in self._names.items()}
        return [(key, index, kept.get(key)) for key, index in self._known.items() if kept.get(key) != index]

    def mend(self) -> None:
        """Write those again."""
        for key, index, _ in self.drift():
            self._names.update(key, abi.Name(index=index).pack())

    def _get(self, kind: str, name: str) -> int:
        asked = self._asked[kind]
        if name not in asked:
            key = digest(kind, name)
            if key not in self._known:
                self._known[key] = self._take(kind)
                self._names.update(key, abi.Name(index=self._known[key]).pack())
            asked[name] = self._known[key]
        return asked[name]

    def _adopt(self, attachment: str) -> None:
        """Let a port keep the index that an earlier version gave its id alone: its connections are known by it."""
        former, key = digest("port", attachment.partition(" ")[0]), digest("port", attachment)
        if former in self._known and key not in self._known:
            self._known[key] = self._known[former]
            self._names.update(key, abi.Name(index=self._known[key]).pack())
            self._names.delete(former)
            del self._known[former]

    def _take(self, kind: str) -> int:
        if not self._free[kind]:
            self._reclaim(kind)
        if not self._free[kind]:
            first, last = RANGES[kind]
            raise DatapathError(
                f"all {last - first} {kind} indices of this host are in use; move ports to another host"
            )
        return self._free[kind].pop()

    def _unused(self, kind: str) -> list[int]:
        first, last = RANGES[kind]
        taken = {index for key, index in self._known.items() if key[-1] == KINDS.index(kind)}
        return [index for index in range(last - 1, first - 1, -1) if index not in taken]

    def _reclaim(self, kind: str) -> None:
        busy = self._in_use()[kind]
        wanted = {digest(kind, name) for name in self._wanted.get(kind, ())}
        self._asked[kind].clear()
        for key, index in list(self._known.items()):
            if key[-1] == KINDS.index(kind) and key not in wanted and index not in busy:
                del self._known[key]
                self._names.delete(key)
                self._free[kind].append(index)


def digest(kind: str, name: str) -> bytes:
    """A name as hr_names has it; its last octet tells the kind."""
    return hashlib.blake2b(f"{kind} {name}".encode(), digest_size=15).digest() + bytes([KINDS.index(kind)])


KINDS = ("port", "endpoint", "vtep", "physical")
RANGES = {
    "port": (1, abi.PORTS),
    "endpoint": (abi.PORTS, abi.ENDPOINTS),
    "vtep": (1, abi.VTEPS),
    "physical": (1, abi.PHYSICALS),
}
