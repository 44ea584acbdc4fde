"""Scenarios happen: to the real programs and to the oracle, at one host or at both with a wire between them.

A scenario that tells them apart is made as short as it can be, and kept in tests/corpus.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec.structs import replace

from headrace.abi import Reason
from headrace.datapath.decision import Arrival
from headrace.datapath.oracle_view import View
from headrace.model import State
from headrace.testing.host import PacketHost
from headrace.testing.observation import Hook
from headrace.testing.outer import NSH
from headrace.testing.pause import Pauser
from headrace.testing.strategy import Event, Overtaken, Pause, Scenario, Stale, tell, where
from headrace.testing.strategy_file import encode
from headrace.testing.strategy_state import HOST, PEER
from headrace.testing.twin import Twin

Seen = Counter[tuple[Reason, Hook, bool]]
"""How often (reason, hook, replayed) came to pass."""

TURNS: tuple[tuple[Hook, ...], ...] = (("tc", "tc", "xdp"), ("xdp", "tc"), ("tc",), ("xdp", "xdp"))
"""By which hooks an arrival comes, again and again: its walk, then its replay."""


class Player:
    """Two hosts that scenarios happen to."""

    def __init__(self, here: PacketHost, there: PacketHost) -> None:
        self.hosts = {HOST: here, PEER: there}

    def play(self, scenario: Scenario) -> Seen:
        """Raises AssertionError where programs and oracle differ, or a table is not as desired at last."""
        names = (HOST, PEER) if scenario.both else (scenario.host,)
        options = {"mss_clamp": scenario.mss_clamp, "any_vtep": scenario.any_vtep}
        twins = {name: Twin(self.hosts[name], scenario.state, name, **options) for name in names}
        with Pauser(self.hosts[names[0]]) if overtakes(scenario) else contextlib.nullcontext() as pauser:
            for number, event in enumerate(scenario.events):
                if isinstance(event, Arrival):
                    first = twins[where(scenario, twins[names[0]].state, event)]
                    for hook in TURNS[number % len(TURNS)]:
                        arrive(twins, first, event, hook)
                elif isinstance(event, Overtaken):
                    assert pauser is not None
                    if twins[names[0]].takes(event.arrival) and not tagged(twins[names[0]], event.arrival):
                        twins[names[0]].overtaken(pauser, event.arrival, event.stage, event.state)
                else:
                    for twin in twins.values():
                        happen(twin, event)
        seen: Seen = Counter()
        for twin in twins.values():
            unlike = twin.host.unlike()
            assert unlike == [], f"host {twin.name}: after all its changes {unlike} are not as if made at once"
            seen += twin.seen
        return seen

    def keep(self, scenario: Scenario, path: Path, error: AssertionError) -> str:
        """Shorten a scenario that failed, write it to a file, and tell it."""
        short = shortened(scenario, self.fails)
        path.write_bytes(encode(short) + b"\n")
        again = self.fails(short) or f"played again it does not fail; it did so:\n{error}"
        return f"{again}\n{tell(short)}\nkept as {path.name}: give it a name that says what it is about"

    def fails(self, scenario: Scenario) -> str:
        """How it fails; empty if it does not."""
        try:
            self.play(scenario)
        except AssertionError as error:
            return str(error) or "an assertion"
        return ""


def overtakes(scenario: Scenario) -> bool:
    return any(isinstance(event, Overtaken) for event in scenario.events)


def happen(twin: Twin, event: State | Pause | Stale) -> None:
    """Something that is no packet."""
    if isinstance(event, State):
        twin.apply(event)
    elif isinstance(event, Pause):
        twin.age(event.ms)
    else:
        twin.host.datapath.raise_epochs(twin.host.ports.values())


def arrive(twins: dict[str, Twin], first: Twin, arrival: Arrival, hook: Hook) -> None:
    """A frame arrives at a host, and what that sends by tunnel or wire at the other, with all that is around it."""
    if not first.takes(arrival):
        return
    first.host.memory.forgive()
    observed = first.run(arrival, hook)
    for twin in twins.values():
        if twin is not first:
            frames = (*([observed.outer] if observed.outer else []), *observed.copies)
            for frame, physical in zip(frames, observed.wires, strict=True):
                twin.run(Arrival(frame=addressed(twin, first.name, frame), physical=physical), hook)


def tagged(twin: Twin, arrival: Arrival) -> bool:
    """Whether a tag is beside the frame, where a walk that is stopped cannot have it."""
    return twin.host.entering(arrival)[1] is not None


def addressed(twin: Twin, sender: str, frame: bytes) -> bytes:
    """NSH over Ethernet with MACs as the receiving host's link has them: each host stands on one of its own."""
    if frame[12:14] != NSH:
        return frame
    vtep = View(twin.state, twin.name).vtep_of(sender)
    source = twin.host.next_hops().get(vtep or "", "02:00:00:00:ff:ff")
    return bytes.fromhex((twin.host.stand.own_mac + source).replace(":", "")) + frame[12:]


def shortened(scenario: Scenario, fails: Callable[[Scenario], str]) -> Scenario:
    """A scenario that still fails, and does not without any one of its events."""
    events = list(scenario.events)
    size = max(len(events) // 2, 1)
    while True:
        for start in reversed(range(0, len(events), size)):
            fewer = events[:start] + events[start + size :]
            if fails(with_events(scenario, fewer)):
                events = fewer
        if size == 1:
            return with_events(scenario, events)
        size //= 2


def with_events(scenario: Scenario, events: Iterable[Event]) -> Scenario:
    return replace(scenario, events=tuple(events))
