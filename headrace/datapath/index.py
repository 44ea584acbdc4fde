"""Indices that survive a restart: hr_names remembers which name has which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from headrace import abi
from headrace.datapath.bpfmap import Map
from headrace.errors import DatapathError


class KernelIndex:
    """Gives names indices (headrace.stages.Index) and keeps them in hr_names.

    An index is given again only when none is left, and then only to one that ``in_use`` does not name: an index that
    a connection still names must never mean another port.
    """

    def __init__(self, names: Map, in_use: Callable[[], set[int]]) -> None:
        self._names = names
        self._in_use = in_use
        self._known = {key: abi.Name.unpack(value).index for key, value in names.items()}
        self._asked: set[bytes] = set()
        self._free = {kind: self._unused(kind) for kind in RANGES}

    def port(self, port: str) -> int:
        """Index of a local port."""
        return self._get("port", port)

    def endpoint(self, name: str) -> int:
        """Index of a remote port or VTEP."""
        return self._get("endpoint", name)

    def vtep(self, address: str) -> int:
        """Index of a VTEP's adjacencies."""
        return self._get("vtep", address)

    def begin(self) -> None:
        """Forget which names were asked for: those not asked for until an index runs out may lose theirs."""
        self._asked.clear()

    def _get(self, kind: str, name: str) -> int:
        digest = hashlib.blake2b(f"{kind} {name}".encode(), digest_size=15).digest() + bytes([KINDS.index(kind)])
        self._asked.add(digest)
        if digest not in self._known:
            self._known[digest] = self._take(kind)
            self._names.update(digest, abi.Name(index=self._known[digest]).pack())
        return self._known[digest]

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
        taken = {index for digest, index in self._known.items() if digest[-1] == KINDS.index(kind)}
        return [index for index in range(last - 1, first - 1, -1) if index not in taken]

    def _reclaim(self, kind: str) -> None:
        busy = self._in_use() if kind != "vtep" else set()
        for digest, index in list(self._known.items()):
            if digest[-1] == KINDS.index(kind) and digest not in self._asked and index not in busy:
                del self._known[digest]
                self._names.delete(digest)
                self._free[kind].append(index)


KINDS = ("port", "endpoint", "vtep")
RANGES = {"port": (1, abi.PORTS), "endpoint": (abi.PORTS, abi.ENDPOINTS), "vtep": (1, abi.VTEPS)}
