"""Walks that are stopped half-way: a stage is replaced by a program that ends, and the walk's scratch stays on its CPU.

with Pauser(host) as pauser:
    pauser.overtaken(arrival, "acl_to", lambda: host.apply(after))
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Self

from headrace.datapath.decision import Arrival
from headrace.datapath.libbpf import Object
from headrace.testing.clang import compile_bpf
from headrace.testing.host import PacketHost
from headrace.testing.observation import TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, skb_context

STOPPED = 77
STOP = f'SEC("tc") int stop(struct __sk_buff *skb)\n{{\n\treturn {STOPPED};\n}}\n'


class Pauser:
    """Stops walks of a host before a stage, and lets them go on."""

    def __init__(self, host: PacketHost) -> None:
        self.host = host
        self.stages = host.datapath.maps["hr_stages"]
        programs = host.datapath.programs
        ids = {program.id: name.removeprefix("hr_stage_") for name, program in programs.items()}
        self.slots = {ids[int.from_bytes(value, "little")]: key for key, value in self.stages.items()}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as guard:
            stop = compile_bpf(STOP, self.host.stand.directory, "stop")
            self.stop = guard.enter_context(Object.open(stop).load()).programs["stop"]
            self._exit = guard.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    @contextlib.contextmanager
    def before(self, stage: str) -> Iterator[None]:
        """Walks stop there."""
        program = self.host.datapath.programs[f"hr_stage_{stage}"]
        self.stages.update(self.slots[stage], self.stop.fd.to_bytes(4, "little"))
        try:
            yield
        finally:
            self.stages.update(self.slots[stage], program.fd.to_bytes(4, "little"))

    def run(self, program: str, arrival: Arrival, frame: bytes) -> tuple[int, bytes]:
        """One program on the CPU of the walk's scratch."""
        with self.host.stand.inside():
            found = self.host.datapath.programs[program]
            result = found.test_run(frame, ctx=skb_context(self.host.entrance(arrival)))
        return result.retval, result.data_out

    def overtaken(self, arrival: Arrival, stage: str, change: Callable[[], object]) -> int | None:
        """A walk that stops before ``stage``, a change, and the rest of the walk; answers its verdict.

        None if it ended before: the change came after it.
        """
        entry = "hr_from_uplink" if arrival.port is None else "hr_from_port"
        with self.before(stage):
            verdict, frame = self.run(entry, arrival, self.host.outer(arrival))
        change()
        if verdict != STOPPED:
            return None
        verdict, _ = self.run(f"hr_stage_{stage}", arrival, frame)
        assert verdict in {TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC}
        return verdict
