"""Where the time went: CPU used, from what an idle-class spinner could not count; program cost, from bpf_stats."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import statistics
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bench.build import program
from bench.journal import JOURNAL, Undo
from bench.process import Daemon, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STRIDE = 64
"""Octets from one core's counter to the next (load.h: struct spin_counter)."""

WINDOWS = 8
WINDOW_S = 0.15
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
OF_THE_LOAD = frozenset({"blast", "far_xdp", "far_tc", "near_xdp", "near_tc"})


@contextlib.contextmanager
def setting(path: Path, value: str) -> Iterator[None]:
    """A knob of the kernel turned, where there is one, and turned back."""
    if not path.exists():
        yield
        return
    undo = JOURNAL.write(path, value)
    try:
        yield
    finally:
        JOURNAL.undo(undo)


def one_group() -> contextlib.AbstractContextManager[None]:
    """What starts within competes as single tasks.

    With autogroups each session gets the same share of a core, so that a SCHED_IDLE spinner would take half of it.
    """
    return setting(AUTOGROUP, "0")


class Spinner:
    """A context: within it, a SCHED_IDLE thread on each core counts whenever nothing else runs there.

    It also keeps the cores awake, so that what is measured meanwhile is no hypervisor's wake-up time.
    """

    def __init__(self) -> None:
        self.cores = os.cpu_count() or 1
        self.rates: list[float] = []
        self.disturbed = 0.0

    def __enter__(self) -> Self:
        handle, self.path = tempfile.mkstemp(prefix="hrb-spin-", dir="/dev/shm")
        self._gone = JOURNAL.note(Undo("path", self.path))
        os.ftruncate(handle, self.cores * STRIDE)
        self._counters = mmap.mmap(handle, self.cores * STRIDE, prot=mmap.PROT_READ)
        os.close(handle)
        self._daemon = Daemon(program("spin"), self.path)
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.stop()
        self._counters.close()
        JOURNAL.undo(self._gone)

    def counts(self) -> list[int]:
        return [struct.unpack_from("=Q", self._counters, core * STRIDE)[0] for core in range(self.cores)]

    def calibrate(self) -> None:
        """Learn how fast each core counts when it has nothing to do: the best of some windows.

        ``disturbed`` is the share of the CPU that others took meanwhile, at the median.
        """
        time.sleep(WINDOW_S)
        windows: list[list[float]] = []
        for _ in range(WINDOWS):
            begin, before = time.monotonic(), self.counts()
            time.sleep(WINDOW_S)
            end, after = time.monotonic(), self.counts()
            windows.append([(y - x) / (end - begin) for x, y in zip(before, after, strict=True)])
        self.rates = [max(rates) for rates in zip(*windows, strict=True)]
        shares = [sum(rates) / sum(self.rates) for rates in windows]
        self.disturbed = 1 - statistics.median(shares)

    def used(self, spun: Sequence[int], seconds: float) -> float:
        """CPU-seconds that something else than the spinner ran in this time, over all cores."""
        return sum(max(0.0, seconds - count / rate) for count, rate in zip(spun, self.rates, strict=True))


@dataclass(frozen=True, kw_only=True)
class ProgramCost:
    """What the kernel counted for one program in a window."""

    name: str
    runs: int
    nanoseconds: int


def bpf_stats() -> contextlib.AbstractContextManager[None]:
    """Within, the kernel counts runs and time of every program: some 20 ns more for each run."""
    return setting(STATS, "1")


def program_counters() -> dict[int, ProgramCost]:
    """By program id, the load's own left out."""
    programs = json.loads(run("bpftool", "-j", "prog", "show"))
    return {
        each["id"]: ProgramCost(name=each.get("name", "?"), runs=each["run_cnt"], nanoseconds=each["run_time_ns"])
        for each in programs
        if "run_cnt" in each and each.get("name") not in OF_THE_LOAD
    }


def program_costs(before: dict[int, ProgramCost], after: dict[int, ProgramCost]) -> list[ProgramCost]:
    """What ran between two readings, by name."""
    by_name: dict[str, ProgramCost] = {}
    for number, late in after.items():
        early = before.get(number, ProgramCost(name=late.name, runs=0, nanoseconds=0))
        sum_ = by_name.get(late.name, ProgramCost(name=late.name, runs=0, nanoseconds=0))
        by_name[late.name] = ProgramCost(
            name=late.name,
            runs=sum_.runs + late.runs - early.runs,
            nanoseconds=sum_.nanoseconds + late.nanoseconds - early.nanoseconds,
        )
    return sorted((cost for cost in by_name.values() if cost.runs > 0), key=lambda cost: cost.name)
