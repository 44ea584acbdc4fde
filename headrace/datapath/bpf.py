"""The bpf driver: makes the pinned tables equal to the compiled ones, and programs run where they should."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from headrace import abi
from headrace.datapath.attach import attach_tc, attach_xdp, attached, detach
from headrace.datapath.binding import wait_for_walks
from headrace.datapath.clock import Clock, Reading, measure
from headrace.datapath.delta import Delta
from headrace.datapath.index import KernelIndex
from headrace.datapath.learnt import Learnt, uproots
from headrace.datapath.libbpf import Object, Program
from headrace.datapath.reader import Reader
from headrace.datapath.use import Use, connections_at, other_tables, pinned_id
from headrace.errors import DatapathError, NotSupported
from headrace.stages.compile import ORDER
from headrace.stages.epoch import local_ports
from headrace.stages.view import Parts, Tables, flat

if TYPE_CHECKING:
    from headrace.datapath.carry import Carry

log = logging.getLogger(__name__)

OBJECTS = Path(__file__).parent / "objects"
PARTS = ("agent", "tc", "xdp")
"""Names of the objects, in the order in which they are loaded."""
ARRAYS = {"hr_configs", "hr_ports", "hr_adjacencies"}
"""Tables whose entries always exist: all zero means absent, and to delete is to write zeros."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much the host remembers. ``connections``: each takes about 560 octets of kernel memory."""

    connections: int = 262144

    def tables(self) -> dict[str, int]:
        """Entries of the tables that grow with it."""
        indices = self.connections + self.connections // abi.CONN_REST
        return {"hr_conns": indices, "hr_conn_free": indices, "hr_flows": self.connections * 2}


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
        self._stages: dict[int, int] = {}
        self._carry: Carry | None = None
        self._switched = False
        self._clock: Clock | None = None
        self._applied: Parts | None = None
        self.programs: dict[str, Program] = {}

    def open(self) -> Self:
        """Load the programs beside those that may be running; nothing is attached yet."""
        try:
            self.pins.mkdir(parents=True, exist_ok=True)
            self.links.mkdir(exist_ok=True)
        except PermissionError as error:
            raise NotSupported(f"{self.root} is not on a BPF file system: mount -t bpf bpf {self.root}") from error
        use, old = Use.read(self.links), other_tables(self.root, self.pins, self.links)
        if old is not None and use is not None and use.tables == old.name and self.pins.exists():
            shutil.rmtree(self.pins)  # left by a change of ABI that came no further
        number = connections_at(self.pins) or (connections_at(old) if old else None) or self._sizes.connections
        sizes = Sizes(connections=number)
        for name in PARTS:
            path = OBJECTS / f"{name}.bpf.o"
            if not path.exists():
                raise DatapathError(f"{path.name} is not built; run make bpf")
            opened = Object.open(
                path,
                rodata=self._constants(name, number),
                map_sizes=sizes.tables(),
                pin_dir=self.pins,
            ).load()
            self._objects[name] = opened
            self.maps.update(opened.maps)
            self.programs.update(opened.programs)
        self.learnt = Learnt(self.maps, self.programs["hr_unlearn"])
        self._pin_load()
        if old is not None:
            self._carry_from(old, use)
        if self._carry is None:
            self._sweep()
        self.index = KernelIndex(self.maps["hr_names"], self._indices_in_use)
        return self

    def _constants(self, name: str, connections: int) -> dict[str, int | bytes]:
        """What the programs of an object find in their read-only data. The agent's come first, and tell the clock."""
        if name == "agent":
            return {"hr_connections": connections}
        clock = self._clock = self._clock or measure(self._clocks)
        shared = {"hr_observe": int(self._observe), "hr_tick": clock.tick, "hr_tick_zero": clock.zero}
        return {**shared, "hr_connections": connections} if name == "tc" else {**shared}

    def _clocks(self) -> Reading:
        told = abi.Clocks.unpack(self.programs["hr_clocks"].test_run(ctx=bytes(abi.Clocks.SIZE)).ctx_out)
        return Reading(told.jiffies, told.monotonic)

    def close(self) -> None:
        """Let go of the descriptors; what is pinned runs on."""
        if self._carry:
            self._carry.close()
            self._carry = None
        for opened in self._objects.values():
            opened.close()
        self._objects.clear()

    # A change of ABI

    def _carry_from(self, old: Path, use: Use | None) -> None:
        from headrace.datapath.carry import Carry, fits  # numpy is slow to import, and seldom needed

        if reason := fits(old):
            log.warning("connections of %s begin anew: %s", old, reason)
            return
        self._carry = Carry(old, self.maps)
        try:
            if use is not None and use.tables == self.pins.name:
                self._carry.resume(use.switched, range(*use.spare))
                self._switched = True
                self._sweep()
            else:
                log.info("carried connections=%d from=%s", self._carry.copy(), old.name)
        except DatapathError as error:
            raise DatapathError(f"{error}; to start without its connections, remove {old}") from error

    def _switch(self) -> None:
        """From here on these tables are what counts: before the first device runs on them."""
        if self._switched:
            return
        self._switched = True
        use = Use(tables=self.pins.name)
        if self._carry:
            self._carry.catch_up({key.pack() for key in self.actual["hr_fdbs"]})
            self.learnt.sweep(self.actual)
            spare = self._carry.spare
            use = Use(
                tables=self.pins.name,
                before=self._carry.source.name,
                switched=self._carry.switched,
                spare=(spare.start, spare.stop),
            )
            self._sweep()
        use.write(self.links)

    def _sweep(self) -> None:
        if self.programs["hr_sweep_start"].test_run(bytes(64)).retval:
            raise DatapathError("the sweeper did not start: the kernel refused its timer")

    def _finish_carry(self) -> None:
        """No device runs on the other tables any more: take the rest, and forget them."""
        carry, self._carry = self._carry, None
        if carry is None:
            return
        found = carry.finish(lambda more: self.programs["hr_carry"].test_run(ctx=more.pack()) and None)
        Use(tables=self.pins.name).write(self.links)
        carry.give_back()
        carry.close()
        log.info("all devices switched from=%s changed_meanwhile=%d", carry.source.name, found)

    def _pin_load(self) -> None:
        """A program array is emptied when nobody holds or pins it, so each load's own is pinned with its programs."""
        loads = self.root / "loads"
        loads.mkdir(exist_ok=True)
        number = max((int(path.name) for path in loads.iterdir()), default=0) + 1
        place = loads / str(number)
        place.mkdir()
        stages = self._objects["tc"].maps["hr_stages"]
        stages.pin(place / "stages")
        self._stages = {int.from_bytes(key, "little"): int.from_bytes(value, "little") for key, value in stages.items()}
        self._load = place

    def retire_loads(self) -> None:
        """Unpin earlier loads, and the tables of other ABIs, once nothing runs them any more."""
        self._switch()
        self._finish_carry()
        for path in self.root.iterdir():
            if path not in {self.links, self.pins, self.root / "loads"}:
                shutil.rmtree(path)
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
            if isinstance(entry, abi.Adjacency) and not entry.flags & abi.AdjacencyFlag.WIRE:
                entry = abi.Adjacency(
                    state=abi.AdjacencyState.UNRESOLVED,
                    saddr=entry.saddr,
                    daddr=entry.daddr,
                    port=entry.port,
                    flags=entry.flags,
                )
            yield key_type.unpack(key), entry

    def apply(self, desired: Parts) -> int:
        """Make the tables the desired ones: permissions first, removals after, epochs last. Returns entries written.

        Raises DatapathError with nothing changed where a table is too small.
        """
        delta = Delta(self.actual, desired, self._applied)
        interrupted, uprooted = self._interrupted(), self._applied is None or uproots(delta)
        if not delta and not interrupted:
            if uprooted:
                self.learnt.sweep(self.actual)
            self._applied = desired
            return 0
        delta.fit({name: self.maps[name].max_entries for name in ORDER})
        self._applied = None  # until all is written
        epochs = set(delta.epochs)
        if interrupted:  # whoever died here may have raised none: every flow has a local port
            epochs |= local_ports(self.actual) | local_ports(flat(desired))
        self._mark(1)
        try:
            written = self._write(delta)
        finally:
            self.raise_epochs(epochs)
        leftovers = list(delta.leftovers())
        if leftovers or uprooted:
            wait_for_walks()
            written += self._delete(leftovers)
        if uprooted:
            self.learnt.sweep(self.actual)
        self._mark(0)
        self._applied = desired
        return written

    def _interrupted(self) -> bool:
        return any(self.maps["hr_applying"].lookup(abi.U32(value=0).pack()) or b"")

    def _mark(self, value: int) -> None:
        self.maps["hr_applying"].update(abi.U32(value=0).pack(), abi.U32(value=value).pack())

    def _write(self, delta: Delta) -> int:
        written = 0
        for name, entries in delta.puts():
            self.maps[name].update_many([(key.pack(), value.pack()) for key, value in entries.items()])
            self.actual[name].update(entries)
            written += len(entries)
            if name == "hr_fdbs":
                self.learnt.forget(key.pack() for key in entries)
        return written + self._delete(delta.deletes())

    def _delete(self, deletes: Iterable[tuple[str, list[abi.Packed]]]) -> int:
        deleted = 0
        for name, keys in deletes:
            if name in ARRAYS:
                zero = bytes(abi.MAPS[name].value_size)
                self.maps[name].update_many([(key.pack(), zero) for key in keys])
            else:
                self.maps[name].delete_many([key.pack() for key in keys])
            for key in keys:
                del self.actual[name][key]
            deleted += len(keys)
        return deleted

    def raise_epochs(self, indices: Iterable[int]) -> None:
        """Have every flow of these indices decided again on its next packet."""
        wanted = sorted(indices)
        for start in range(0, len(wanted), 63):
            part = wanted[start : start + 63]
            bump = abi.Bump(count=len(part), index=(*part, *[0] * (63 - len(part))))
            self.programs["hr_raise"].test_run(ctx=bump.pack())

    def forget_next_hops(self, *, redecide: bool = False) -> int:
        """Have each path ask the FIB again; answers how many there are.

        ``redecide``: flows too are decided again, since a path's MTU is not what they were decided by. Epochs are
        raised before and after: a walk that asked earlier leaves no answer of its FIB behind after the first (decide.h,
        hr_next_hop), and no decision that stands on one outlives the second.
        """
        table, entries = self.maps["hr_adjacencies"], self.actual["hr_adjacencies"]
        own = local_ports(self.actual) if redecide else set()
        self.raise_epochs(own)
        table.update_many([(key.pack(), entry.pack()) for key, entry in entries.items()])
        self.raise_epochs(own)
        return len(entries)

    def path_mtus(self) -> Iterator[tuple[int, int]]:
        """(ifindex, MTU) of the egress devices that the next hops found so far stand on."""
        for key in self.actual["hr_adjacencies"]:
            entry = abi.Adjacency.unpack(self.maps["hr_adjacencies"].lookup(key.pack()) or b"")
            if entry.state == abi.AdjacencyState.RESOLVED:
                yield entry.ifindex, entry.mtu

    # Hooks

    def attach_port(self, ifindex: int, name: str, hook: Literal["tc", "xdp"]) -> None:
        """Run the datapath on a port's device, in place of what ran there."""
        self._switch()
        attach_tc(ifindex, self.programs["hr_from_port"], "ingress", self._link(name, "ingress"))
        attach_tc(ifindex, self.programs["hr_guard"], "egress", self._link(name, "egress"))
        if hook == "xdp":
            attach_xdp(ifindex, self.programs["hr_xdp_from_port"], self._link(name, "xdp"))
        else:
            detach(self._link(name, "xdp"))

    def attach_uplink(self, ifindex: int, name: str, hook: Literal["tc", "xdp"]) -> None:
        """Run the datapath on an uplink beside the kernel's own traffic."""
        self._switch()
        attach_tc(ifindex, self.programs["hr_from_uplink"], "ingress", self._link(name, "uplink"))
        if hook == "xdp":
            attach_xdp(ifindex, self.programs["hr_xdp_from_uplink"], self._link(name, "uplink-xdp"))
        else:
            detach(self._link(name, "uplink-xdp"))

    def attach_seam(self, ifindex: int, name: str, hook: Literal["tc", "xdp"]) -> None:
        """Run the datapath on the seam's far end; ``hook`` is tc, for nothing is there to be replayed."""
        assert hook == "tc"
        self._switch()
        attach_tc(ifindex, self.programs["hr_from_seam"], "ingress", self._link(name, "seam"))

    def is_seam(self, ifindex: int, name: str) -> bool:
        """Whether a program of ours, of an earlier load maybe, takes what comes out at the seam's far end."""
        here = attached(self._link(name, "seam"))
        return here is not None and here.ifindex == ifindex

    def detach(self, name: str) -> None:
        """Take every program off a device."""
        for place in self.places(name):
            detach(place)

    def is_uplink(self, name: str) -> bool:
        """Whether a device was attached as an uplink."""
        return self._link(name, "uplink").exists()

    # Drift

    def wanted_programs(self, device: str, hook: str) -> dict[Path, Program]:
        """Where programs should be attached to a device.

        ``hook``: ``tc``, ``xdp``, the same after ``uplink``, or ``seam tc``.
        """
        kind, _, place = hook.rpartition(" ")
        names = {
            "": {"ingress": "hr_from_port", "egress": "hr_guard", "xdp": "hr_xdp_from_port"},
            "uplink": {"uplink": "hr_from_uplink", "uplink-xdp": "hr_xdp_from_uplink"},
            "seam": {"seam": "hr_from_seam"},
        }[kind]
        return {
            self._link(device, link): self.programs[name]
            for link, name in names.items()
            if place == "xdp" or not link.endswith("xdp")
        }

    def is_program(self, number: int, wanted: Program) -> bool:
        """Whether the program of an id is the wanted one."""
        return number == wanted.id

    def unpinned(self) -> list[str]:
        """Tables that are not pinned where the next agent looks for them."""
        names = [name for name, spec in abi.MAPS.items() if spec.pinning and name in self.maps]
        return [name for name in names if pinned_id(self.pins / name) != self.maps[name].id]

    def stage_drift(self) -> list[tuple[int, int, int | None]]:
        """Slots of the stage array that do not call the program they should: slot, its program, the one found."""
        table = self.maps["hr_stages"]
        found = {int.from_bytes(key, "little"): int.from_bytes(value, "little") for key, value in table.items()}
        return [(slot, number, found.get(slot)) for slot, number in self._stages.items() if found.get(slot) != number]

    def mend(self) -> None:
        """Make pins, names, stages and tables what they should be; hooks are the caller's."""
        for name in self.unpinned():
            path = self.pins / name
            path.unlink(missing_ok=True)
            self.maps[name].pin(path)
        self.index.mend()
        by_id = {program.id: program for program in self.programs.values()}
        for slot, number, _ in self.stage_drift():
            self.maps["hr_stages"].update(slot.to_bytes(4, "little"), by_id[number].fd.to_bytes(4, "little"))
        applied, self._applied, self._actual = self._applied, None, None  # what is there is read back, and all compared
        if applied is not None:
            self.apply(applied)

    def _indices_in_use(self) -> dict[str, set[int]]:
        """Indices by kind that a flow, a table or what was learnt still names."""
        used, vteps, physicals = {0}, {0}, {0}
        for key, flow in self.flows():
            if key.where >> abi.WHERE_SHIFT == abi.Where.PHYSICAL:
                physicals.add((key.where & abi.WHERE_ID) >> abi.PHYSICAL_SHIFT)
            used.update((flow.from_index, flow.to_index))
            if key.where >> abi.WHERE_SHIFT == abi.Where.PORT:
                used.add(key.where)
            if flow.flags & abi.FlowFlag.TUNNEL:
                vteps.add(flow.out // abi.PATHS)
        for value in (abi.Learnt.unpack(value) for _, value in self.maps["hr_learnt"].items()):
            used.add(value.endpoint)
            vteps.add(value.vtep)
        used.update(key.value for key in self.actual["hr_ports"] if isinstance(key, abi.U32))
        physicals.update(
            entry.physical for entry in self.actual["hr_uplinks"].values() if isinstance(entry, abi.Uplink)
        )
        for name in ("hr_fdbs", "hr_vteps", "hr_wires"):
            for entry in self.actual[name].values():
                used.add(entry.endpoint)  # type: ignore[attr-defined]
                vteps.add(entry.vtep)  # type: ignore[attr-defined]
        return {"port": used, "endpoint": used, "vtep": vteps, "physical": physicals}


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
