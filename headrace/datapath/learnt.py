"""What was learnt of MACs, forgotten when its place is no more: docs/pipeline.md, "forward"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headrace import abi
from headrace.datapath.bpfmap import Map
from headrace.datapath.delta import Delta
from headrace.datapath.libbpf import Program
from headrace.stages.view import Tables, flat

LATER = 60
"""Seconds by which what a walk writes may seem to lie ahead of who reads it."""


class Learnt:
    """hr_learnt and hr_learnt_counts. ``unlearn``: the program hr_unlearn, since walks write both at any moment."""

    def __init__(self, maps: Mapping[str, Map], unlearn: Program) -> None:
        self._places = maps["hr_learnt"]
        self._counts = maps["hr_learnt_counts"]
        self._unlearn = unlearn
        self._dead: set[bytes] = set()

    def forget(self, keys: Iterable[bytes]) -> None:
        """Forget where MACs were learnt; of a MAC that a port now owns, say. What went there is decided again."""
        for key in keys:
            if self._places.lookup(key) is not None:
                self._unlearn.test_run(ctx=key)

    def age(self, now: int) -> int:
        """Forget MACs that no walk has shown on the wire of a physical network lately; answers how many.

        ``now``: CLOCK_MONOTONIC, seconds; what a walk has just shown may be a little later. Without an entry they
        are on the wire all the same: no decision changes. Entries that somebody failed to delete go too.
        """
        old, dead = [], set()
        for octets, value in self._places.items():
            key = abi.FdbKey.unpack(octets)
            if not any(value):
                dead.add(octets)
            elif key.segment >> abi.WHERE_SHIFT == abi.Where.PHYSICAL:
                found = abi.Learnt.unpack(value)
                if found.vtep and abi.LEARNT_AGE < (now - found.seen) & 0xFFFF < 0x10000 - LATER:
                    old.append(abi.Unlearning(segment=key.segment, mac=key.mac, aged=1).pack())
        for asked in old:
            self._unlearn.test_run(ctx=asked)
        self.forget(dead & self._dead)  # nobody is still about to delete what was there the last time
        self._dead = dead - self._dead
        return len(old)

    def sweep(self, actual: Tables) -> None:
        """Forget what ``actual`` has no place for: after it was written, and walks that began before have ended."""
        ports, segments, vteps = places(actual)
        stale = []
        for key, value in self._places.items():
            segment, found = abi.FdbKey.unpack(key).segment, abi.Learnt.unpack(value)
            here = ports.get(found.endpoint) == segment
            if segment not in segments or not (found.vtep in vteps if found.vtep else here):
                stale.append(key)
        self.forget(stale)
        used = ports.keys() | segments
        self._counts.delete_many([key for key, _ in self._counts.items() if abi.U32.unpack(key).value not in used])


def places(tables: Tables) -> tuple[dict[int, int], set[int], set[int]]:
    """Segments of the local ports by index, segments that are used here, indices of VTEPs."""
    ports = {
        key.value: port.segment
        for key, port in tables["hr_ports"].items()
        if isinstance(key, abi.U32) and isinstance(port, abi.Port)
    }
    segments = {key.segment for key in tables["hr_floods"] if isinstance(key, abi.FloodKey)}
    vteps = {vtep.vtep for vtep in tables["hr_vteps"].values() if isinstance(vtep, abi.Vtep)}
    vteps |= {wire.vtep for wire in tables["hr_wires"].values() if isinstance(wire, abi.Wire)}
    return ports, segments, vteps


def uproots(delta: Delta) -> bool:
    """Whether places go: a local port, or its segment; the last port of a segment; a VTEP."""
    if delta.lost("hr_vteps") or any(isinstance(key, abi.FloodKey) and not key.slot for key in delta.lost("hr_floods")):
        return True
    lost = delta.lost("hr_ports")
    after = flat({"hr_ports": delta.desired["hr_ports"]})["hr_ports"] if lost else {}
    return any(getattr(after.get(key), "segment", None) != getattr(port, "segment", None) for key, port in lost.items())
