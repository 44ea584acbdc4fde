"""How long the agent takes from desired state to tables: everything from nothing, and one change. No traffic."""

from __future__ import annotations

import gc
import json
import time
from typing import TYPE_CHECKING

import msgspec

from bench.contender import Passive, Sink
from bench.headrace_contender import desired
from bench.journal import JOURNAL, Undo
from bench.process import SetupError, run
from headrace.agent.run import GARBAGE
from headrace.datapath.bpf import Datapath, Sizes
from headrace.model import Object, State, decode
from headrace.stages import Device, Memo, View, compile_parts

if TYPE_CHECKING:
    from bench.cpu import Spinner
    from bench.dimension import Point, Values
    from bench.rules import Site
    from bench.traffic import Stand
    from bench.wiring import Wiring

CHANGES = 20
"""Of which the slowest counts as ``slowest``."""


class HeadraceTables(Passive):
    """The tables of one host, that nothing is attached to."""

    name = "headrace-tables"
    sink: Sink = "tc"

    def __init__(self) -> None:
        self._undos: list[Undo] = []
        self._datapath: Datapath | None = None
        self.state = State()

    def setup(self, wiring: Wiring, site: Site) -> None:
        self.host = wiring.a.name
        found = json.loads(msgspec.json.encode(desired(wiring, site, "tc")))
        self.state = State.of(decode(name[:-1], body) for name, bodies in found.items() for body in bodies)
        place, gone = JOURNAL.directory("hrb-")
        self._undos.append(gone)
        self._undos.append(JOURNAL.note(Undo("umount", str(place))))
        run("mount", "-t", "bpf", "bpf", str(place))
        self._datapath = Datapath(place / "headrace", Sizes(connections=1024)).open()

    def teardown(self) -> None:
        if self._datapath:
            self._datapath.close()
            self._datapath = None
        while self._undos:
            JOURNAL.undo(self._undos.pop())

    def apply(self, state: State, memo: Memo) -> int:
        """What the agent does of a reconciliation; how many entries were written."""
        if self._datapath is None:
            raise SetupError("headrace-tables is not set up")
        ports = sorted(state.ports_on(self.host))
        devices = {port: Device(ifindex=number, name=f"tap{number}") for number, port in enumerate(ports, 10)}
        own = state.hosts[self.host].vteps
        return self._datapath.apply(
            compile_parts(View(state, self.host, self._datapath.index, devices, own, memo=memo))
        )


def change(site: Site, state: State) -> Object:
    """What is otherwise after one change: a rule, a member or a port less."""
    if site.ports:
        port = next(port for port in state.ports.values() if port.id.startswith("more-"))
        return msgspec.structs.replace(port, admin_up=not port.admin_up)
    if site.members:
        port = state.ports["member-0"]
        return msgspec.structs.replace(port, security_groups=() if port.security_groups else ("bench",))
    group = state.security_groups["bench"]
    return msgspec.structs.replace(group, rules=group.rules[1:])


def applying(stand: Stand, point: Point, seconds: float, spinner: Spinner | None) -> Values:
    """Milliseconds, and entries written by a change."""
    del seconds, spinner
    contender = stand.contender
    if not isinstance(contender, HeadraceTables):
        raise SetupError(f"{contender.name} has no tables of its own")
    state, memo = contender.state, Memo()
    contender.apply(State.of([*state.hosts.values()]), Memo())
    gc.collect()
    pace = gc.get_threshold()
    gc.set_threshold(*GARBAGE)  # as in the agent
    try:
        began = time.perf_counter()
        contender.apply(state, memo)
        full = time.perf_counter() - began
        other = State.of([*state.all(), change(point.site, state)])
        took, written = [], 0
        for number in range(CHANGES):
            began = time.perf_counter()
            written = contender.apply(state if number % 2 else other, memo)
            took.append(time.perf_counter() - began)
    finally:
        gc.set_threshold(*pace)
    middle = sorted(took)[CHANGES // 2]
    return {"full": full * 1e3, "change": middle * 1e3, "slowest": max(took) * 1e3, "written": float(written)}
