"""The bpf driver: makes the pinned tables equal to the compiled ones, and programs run where they should."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Self

import msgspec

from headrace import abi
from headrace.datapath.attach import attach_tc, attach_xdp, detach
from headrace.datapath.bpfmap import Map
from headrace.datapath.delta import Delta
from headrace.datapath.index import KernelIndex
from headrace.datapath.libbpf import Object, Program
from headrace.datapath.reader import Reader
from headrace.errors import DatapathError, NotSupported
from headrace.stages.compile import ORDER
from headrace.stages.view import Table, Tables

OBJECTS = Path(__file__).parent / "objects"
PARTS = ("tc", "agent", "xdp")
"""Names of the objects, in the order in which they are loaded."""
ARRAYS = {"hr_configs", "hr_ports", "hr_adjacencies"}
"""Tables whose entries always exist: all zero means absent, and to delete is to write zeros."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much the host remembers. ``connections``: each takes about 560 octets of kernel memory."""

    connections: int = 262144


class Datapath(Reader):
    """One host's datapath, pinned below ``root`` (a directory on a BPF file system).

    Everything that must outlive this process is pinned: maps under the ABI's hash, the stage array under the number
    of the load, links under ``links``. Opening it again reads everything back; traffic never notices.
    """

    def __init__(self, root: Path, sizes: Sizes | None = None, *, observe: bool = False) -> None:
        super().__init__(root)
        self._sizes = sizes or Sizes()
        self._observe = observe
        self._objects: dict[str, Object] = {}
        self._actual: Tables | None = None
        self.programs: dict[str, Program] = {}

    def open(self) -> Self:
        """Load the programs beside those that may be running; nothing is attached yet."""
        try:
            self.pins.mkdir(parents=True, exist_ok=True)
            self.links.mkdir(exist_ok=True)
        except PermissionError as error:
            raise NotSupported(f"{self.root} is not on a BPF file system: mount -t bpf bpf {self.root}") from error
        number = self._connections_before() or self._sizes.connections
        sizes = {"hr_conns": number, "hr_conn_free": number, "hr_flows": number * 2}
        for name in PARTS:
            path = OBJECTS / f"{name}.bpf.o"
            if not path.exists():
                raise DatapathError(f"{path.name} is not built; run make bpf")
            opened = Object.open(
                path,
                rodata={"hr_observe": int(self._observe)} if name != "agent" else {},
                map_sizes=sizes,
                pin_dir=self.pins,
            ).load()
            self._objects[name] = opened
            self.maps.update(opened.maps)
            self.programs.update(opened.programs)
        self._pin_load()
        if self.programs["hr_sweep_start"].test_run(bytes(64)).retval:
            raise DatapathError("the sweeper did not start: the kernel refused its timer")
        self.index = KernelIndex(self.maps["hr_names"], self._indices_in_use)
        return self

    def close(self) -> None:
        """Let go of the descriptors; what is pinned runs on."""
        for opened in self._objects.values():
            opened.close()
        self._objects.clear()

    def _connections_before(self) -> int | None:
        path = self.pins / "hr_conns"
        if not path.exists():
            return None
        with Map.from_pin(path) as table:
            return table.max_entries

    def _pin_load(self) -> None:
        """A program array is emptied when nobody holds or pins it, so each load's own is pinned with its programs."""
        loads = self.root / "loads"
        loads.mkdir(exist_ok=True)
        number = max((int(path.name) for path in loads.iterdir()), default=0) + 1
        place = loads / str(number)
        place.mkdir()
        self._objects["tc"].maps["hr_stages"].pin(place / "stages")
        self._load = place

    def retire_loads(self) -> None:
        """Unpin earlier loads, once nothing runs them any more."""
        for place in (self.root / "loads").iterdir():
            if place != self._load:
                shutil.rmtree(place)

    # Tables

    @property
    def actual(self) -> Tables:
        """What the tables hold; read back once, then kept."""
        if self._actual is None:
            self._actual = {name: dict(self.read(name)) for name in ORDER}
        return self._actual

    def read(self, name: str) -> Iterator[tuple[abi.Packed, abi.Packed]]:
        """Entries of a table as the compilers would write them."""
        spec = abi.MAPS[name]
        key_type, value_type = spec.key or abi.U32, spec.value or abi.U32
        empty = bytes(spec.value_size)
        for key, value in self.maps[name].items():
            if name in ARRAYS and value == empty:
                continue
            entry = value_type.unpack(value)
            if isinstance(entry, abi.Adjacency):
                entry = abi.Adjacency(
                    state=abi.AdjacencyState.UNRESOLVED,
                    saddr=entry.saddr,
                    daddr=entry.daddr,
                    port=entry.port,
                    flags=entry.flags,
                )
            yield key_type.unpack(key), entry

    def apply(self, desired: Tables) -> int:
        """Make the tables the desired ones: permissions first, removals after, epochs last. Returns entries written."""
        delta = Delta(self.actual, desired)
        written = 0
        for name, entries in delta.puts():
            self.maps[name].update_many([(key.pack(), value.pack()) for key, value in entries.items()])
            delta.actual[name].update(entries)
            written += len(entries)
            if name == "hr_fdbs":
                self._unlearn(entries)
        for name, keys in delta.deletes():
            if name in ARRAYS:
                zero = bytes(abi.MAPS[name].value_size)
                self.maps[name].update_many([(key.pack(), zero) for key in keys])
            else:
                self.maps[name].delete_many([key.pack() for key in keys])
            for key in keys:
                del delta.actual[name][key]
            written += len(keys)
        self.raise_epochs(delta.epochs)
        return written

    def _unlearn(self, entries: Table) -> None:
        """A MAC that a port now owns is no longer where it was learnt."""
        for key in entries:
            octets = key.pack()
            learnt = self.maps["hr_learnt"].lookup(octets)
            if learnt is not None:
                self.maps["hr_learnt"].delete(octets)
                self.raise_epochs({abi.Learnt.unpack(learnt).endpoint})

    def raise_epochs(self, indices: Iterable[int]) -> None:
        """Have every flow of these indices decided again on its next packet."""
        wanted = sorted(indices)
        for start in range(0, len(wanted), 63):
            part = wanted[start : start + 63]
            bump = abi.Bump(count=len(part), index=(*part, *[0] * (63 - len(part))))
            self.programs["hr_raise"].test_run(ctx=bump.pack())

    # Hooks

    def attach_port(self, ifindex: int, name: str, hook: Literal["tc", "xdp"]) -> None:
        """Run the datapath on a port's device, in place of what ran there."""
        attach_tc(ifindex, self.programs["hr_from_port"], "ingress", self._link(name, "ingress"))
        attach_tc(ifindex, self.programs["hr_guard"], "egress", self._link(name, "egress"))
        if hook == "xdp":
            attach_xdp(ifindex, self.programs["hr_xdp_from_port"], self._link(name, "xdp"))
        else:
            detach(self._link(name, "xdp"))

    def attach_uplink(self, ifindex: int, name: str, hook: Literal["tc", "xdp"]) -> None:
        """Run the datapath on an uplink beside the kernel's own traffic."""
        attach_tc(ifindex, self.programs["hr_from_uplink"], "ingress", self._link(name, "uplink"))
        if hook == "xdp":
            attach_xdp(ifindex, self.programs["hr_xdp_from_uplink"], self._link(name, "uplink-xdp"))
        else:
            detach(self._link(name, "uplink-xdp"))

    def detach(self, name: str) -> None:
        """Take every program off a device."""
        for kind in ("ingress", "egress", "xdp", "uplink", "uplink-xdp"):
            detach(self._link(name, kind))

    def _indices_in_use(self) -> set[int]:
        used: set[int] = set()
        for key, flow in self.flows():
            used.update((flow.from_index, flow.to_index))
            if key.where >> abi.WHERE_SHIFT == abi.Where.PORT:
                used.add(key.where)
        return used


def lock(root: Path) -> int:
    """Hold the right to change the datapath below ``root``; raises DatapathError if another agent has it.

    The lock is on the directory's descriptor, so it ends with the process however that ends.
    """
    root.mkdir(parents=True, exist_ok=True)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise DatapathError(f"another agent runs the datapath at {root}; stop it first") from None
    return fd
