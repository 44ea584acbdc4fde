"""What it costs to look for what has expired, with a million connections that have not."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.headrace_contender import HeadraceTc
from bench.process import CommandError
from bench.rules import CONNECTIONS
from bench.traffic import connection_rate
from headrace import abi
from headrace.datapath.bpf import OBJECTS, Sizes
from headrace.datapath.bpfmap import Map
from headrace.datapath.libbpf import Object

if TYPE_CHECKING:
    from pathlib import Path

    from bench.cpu import Spinner
    from bench.dimension import Point
    from bench.traffic import Stand

NOBODY = abi.PORTS - 1
"""A port index that no port has."""
FIRST_ID = 1 << 60


def ageing(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> dict[str, float]:
    """Share of a core that one host's sweeper takes, and what is left of the connection rate beside it."""
    del spinner
    contender = stand.contender
    if not isinstance(contender, HeadraceTc):
        raise CommandError("only Headrace's sweeper can be stopped")
    pins = contender.pins()
    number = int(point.parameters["connections"])
    if not stand.warm_flows:
        for place in pins:
            fill(place, number)
        stand.warm_flows[0] = number
    rates = []
    for on in (False, True):
        for place in pins:
            sweep(place, on=on)
        rates.append(connection_rate(stand, seconds))
    before, began = [spent(place) for place in pins], time.monotonic()
    time.sleep(2 * seconds)
    elapsed = time.monotonic() - began
    shares = [(spent(place) - ns) / 1e9 / elapsed for place, ns in zip(pins, before, strict=True)]
    return {"share": 100 * statistics.mean(shares), "connections kept": rates[1] / rates[0]}


def spent(pins: Path) -> int:
    """Nanoseconds that a host's sweeper has run."""
    with Map.from_pin(pins / "hr_cursors") as cursors:
        return int.from_bytes(cursors.lookup(abi.U32(value=abi.Cursor.SPENT).pack()) or b"", "little")


def fill(pins: Path, number: int) -> None:
    """Have a host remember so many established connections, of nobody's; no traffic may run meanwhile."""
    with contextlib.ExitStack() as stack:
        conns, cursors = (stack.enter_context(Map.from_pin(pins / name)) for name in ("hr_conns", "hr_cursors"))
        fresh, used = (
            int.from_bytes(cursors.lookup(abi.U32(value=which).pack()) or b"", "little")
            for which in (abi.Cursor.FRESH, abi.Cursor.USED)
        )
        fields: Any = abi.Conn.DTYPE
        one = abi.Conn(
            timeout=432_000_000,
            state=abi.State.ESTABLISHED,
            port=NOBODY,
            counter=(abi.ConnCounter(seen=time.clock_gettime_ns(time.CLOCK_MONOTONIC)),) * 2,
        )
        rows: np.ndarray[Any, Any] = np.frombuffer(one.pack() * number, fields).copy()
        rows["id"] = FIRST_ID + np.arange(number)
        conns.update_packed((fresh + np.arange(number)).astype("<u4").tobytes(), rows.tobytes())
        for which, value in ((abi.Cursor.FRESH, fresh + number), (abi.Cursor.USED, used + number)):
            cursors.update(abi.U32(value=which).pack(), abi.U64(value=value).pack())


def sweep(pins: Path, *, on: bool) -> None:
    """Stop a host's sweeper, or start it: a timer ends when the element that holds it is written."""
    if not on:
        with Map.from_pin(pins / "hr_sweepers") as sweepers:
            sweepers.update(bytes(4), bytes(sweepers.value_size))
        return
    opened = Object.open(
        OBJECTS / "agent.bpf.o",
        rodata={"hr_connections": CONNECTIONS},
        map_sizes=Sizes(connections=CONNECTIONS).tables(),
        pin_dir=pins,
    ).load()
    try:
        if opened.programs["hr_sweep_start"].test_run(bytes(64)).retval:
            raise CommandError("the sweeper does not start")
    finally:
        opened.close()
