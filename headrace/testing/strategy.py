"""Scenarios for comparing a datapath with the oracle: a state, then arrivals at one host and changes of the state.

    @given(scenarios())
    def test_agrees(scenario): ...          # Hypothesis, shrinks

    scenario = scenario_of(4711)            # by seed, the same on every machine
    print(tell(scenario))                   # line by line, with what the oracle decides
    corpus.write_bytes(encode(scenario))    # kept for ever; ``decode`` reads it back

Frames have 14 octets or more, and tags are in the frame: what BPF_PROG_TEST_RUN takes.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from headrace.datapath.connection import Connections
from headrace.datapath.decision import Arrival, Decision, Dropped
from headrace.datapath.notation import describe
from headrace.datapath.oracle import decide
from headrace.datapath.packet import parse
from headrace.model import State
from headrace.testing.choice import Chooser, Drawn, Seeded
from headrace.testing.strategy_packet import Traffic
from headrace.testing.strategy_state import HOST, draw_change, draw_state


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Time passes."""

    ms: int


Event = Arrival | State | Pause
"""Something arrives, desired state becomes another, or nothing happens for a while."""

CHANGES, PAUSES = 10, 4
"""Percent of steps that change the state, and in which time passes, where changes are wanted."""
PAUSE_MS = (9_000, 11_000, 29_000, 31_000, 61_000, 121_000, 181_000, 301_000, 601_000, 432_001_000)
"""Just short of and just beyond timeouts (docs/pipeline.md, "track")."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What happens at ``host``, from ``state`` on."""

    state: State
    events: tuple[Event, ...]
    host: str = HOST


def draw_scenario(choose: Chooser, *, steps: int = 12, changes: bool = True) -> Scenario:
    """Up to ``steps`` steps; fragments make more events than one."""
    state = draw_state(choose)
    traffic = Traffic(choose, state)
    events: list[Event] = []
    for _ in range(choose.number(1, steps)):
        if changes and choose.chance(CHANGES):
            traffic.state = draw_change(choose, traffic.state)
            events += [traffic.state, *traffic.go_on(), *traffic.go_on()]
        else:
            events += traffic.arrivals()
    return Scenario(state=state, events=tuple(events))


@st.composite
def scenarios(draw: Any, *, steps: int = 12, changes: bool = True) -> Scenario:
    """Scenarios that Hypothesis chooses, and shrinks."""
    return draw_scenario(Drawn(draw), steps=steps, changes=changes)


@st.composite
def states(draw: Any) -> State:
    """States that Hypothesis chooses, and shrinks."""
    return draw_state(Drawn(draw))


def scenario_of(seed: int, *, steps: int = 40, changes: bool = True) -> Scenario:
    """The scenario of a seed."""
    return draw_scenario(Seeded(seed), steps=steps, changes=changes)


def judge(scenario: Scenario, connections: Connections | None = None) -> list[Decision]:
    """What the oracle decides about each arrival, in order."""
    memory = Connections() if connections is None else connections
    state, now = scenario.state, 0
    decisions = []
    for event in scenario.events:
        if isinstance(event, State):
            state = event
        elif isinstance(event, Pause):
            now += event.ms
        else:
            decisions.append(decide(state, scenario.host, memory, event, now))
    return decisions


def tell(scenario: Scenario) -> str:
    """The scenario as text: the objects, then a line per event with the oracle's decision."""
    decisions = iter(judge(scenario))
    lines = [f"{item.type}: {msgspec.json.encode(item).decode()}" for item in scenario.state.all()]
    before = scenario.state
    for number, event in enumerate(scenario.events):
        if isinstance(event, State):
            old = {(item.type, item.id): item for item in before.all()}
            changed = [item for item in event.all() if old.get((item.type, item.id)) != item]
            lines += [f"{number}: change {item.type}: {msgspec.json.encode(item).decode()}" for item in changed]
            before = event
            continue
        if isinstance(event, Pause):
            lines.append(f"{number}: {event.ms} ms pass")
            continue
        decision = next(decisions)
        outputs = ", ".join(output.port or f"{output.vtep}/{output.vni}" for output in decision.outputs)
        lines.append(f"{number}: {came(event)}: {line_of(event.frame)} -> {decision.reason.name} [{outputs}]")
        lines.append(f"    {event.frame.hex()}")
    return "\n".join(lines)


def came(arrival: Arrival) -> str:
    gso = f" (gso {arrival.gso_size})" if arrival.gso_size else ""
    return (f"port {arrival.port}" if arrival.port else f"vtep {arrival.vtep} vni {arrival.vni}") + gso


def line_of(frame: bytes) -> str:
    try:
        found = parse(frame)
    except Dropped as dropped:
        return dropped.reason.name
    return f"{found.source} > {found.destination} {describe(found)}"


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An event in a file: one of these. ``pause``: milliseconds."""

    arrival: Arrival | None = None
    state: State | None = None
    pause: int = 0


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scenario in a file."""

    host: str
    state: State
    events: tuple[Kept, ...]


def encode(scenario: Scenario) -> bytes:
    """The scenario as JSON."""
    file = File(host=scenario.host, state=scenario.state, events=tuple(map(keep, scenario.events)))
    return msgspec.json.format(msgspec.json.encode(file), indent=1)


def decode(data: bytes) -> Scenario:
    """Read what ``encode`` wrote."""
    file = msgspec.json.decode(data, type=File)
    return Scenario(host=file.host, state=file.state, events=tuple(map(event_of, file.events)))


def keep(event: Event) -> Kept:
    if isinstance(event, State):
        return Kept(state=event)
    return Kept(pause=event.ms) if isinstance(event, Pause) else Kept(arrival=event)


def event_of(kept: Kept) -> Event:
    event = kept.arrival or kept.state or Pause(ms=kept.pause)
    assert event != Pause(ms=0), "an event is an arrival, a state or a pause"
    return event
