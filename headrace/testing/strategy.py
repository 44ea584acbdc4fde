"""Scenarios for comparing a datapath with the oracle: a state, then arrivals at one host and changes of the state.

    @given(scenarios())
    def test_agrees(scenario): ...          # Hypothesis, shrinks

    scenario = scenario_of(4711)            # by seed, the same on every machine
    print(tell(scenario))                   # line by line, with what the oracle decides
    corpus.write_bytes(encode(scenario))    # kept for ever (strategy_file.py)

Frames have 14 octets or more, and tags are in the frame: what BPF_PROG_TEST_RUN takes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

import msgspec
from hypothesis import strategies as st

from headrace.datapath.connection import Connections
from headrace.datapath.decision import Arrival, Decision, Dropped, Output
from headrace.datapath.notation import describe
from headrace.datapath.oracle import decide
from headrace.datapath.packet import parse
from headrace.model import State
from headrace.testing.choice import Chooser, Drawn, Seeded
from headrace.testing.strategy_packet import Traffic
from headrace.testing.strategy_state import HOST, draw_change, draw_policy, draw_state

Stage = Literal["anti_spoof", "respond", "track", "acl_from", "forward", "acl_to", "decide"]
"""Programs of a walk's stages before which it can be stopped, in order."""
STAGES: tuple[Stage, ...] = ("track", "acl_from", "forward", "acl_to", "decide")
"""Those that walks by tunnel have too."""


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Time passes."""

    ms: int


class Stale(msgspec.Struct, frozen=True, kw_only=True):
    """The epochs of all local ports are raised: what was decided is decided anew."""


class Overtaken(msgspec.Struct, frozen=True, kw_only=True):
    """A walk stops before a stage, desired state becomes ``state`` - tables first, epochs last - and it goes on."""

    arrival: Arrival
    stage: Stage
    state: State


Event = Arrival | State | Pause | Stale | Overtaken
"""Something arrives, desired state becomes another, nothing happens for a while, or two of these at once."""

CHANGES, PAUSES, RAISES, OVERTAKES = 10, 4, 4, 4
"""Percent of steps that change the state, in which time passes, and so on, where changes are wanted."""
PAUSE_MS = (9_000, 11_000, 29_000, 31_000, 61_000, 121_000, 181_000, 301_000, 601_000, 432_001_000)
"""Just short of and just beyond timeouts (docs/pipeline.md, "track")."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What happens at ``host``, from ``state`` on.

    ``both``: at both hosts, and what one sends by tunnel or wire arrives at the other. ``mss_clamp``, ``any_vtep``: as
    agents have them.
    """

    state: State
    events: tuple[Event, ...]
    host: str = HOST
    both: bool = False
    mss_clamp: bool = False
    any_vtep: bool = False


def draw_scenario(choose: Chooser, *, steps: int = 12, changes: bool = True, both: bool = False) -> Scenario:
    """Up to ``steps`` steps; fragments make more events than one."""
    state = draw_state(choose)
    traffic = Traffic(choose, state, both=both)
    events: list[Event] = []
    for _ in range(choose.number(1, steps)):
        if changes and choose.chance(CHANGES):
            traffic.state = draw_change(choose, traffic.state)
            events += [traffic.state, *traffic.go_on(), *traffic.go_on()]
        elif changes and choose.chance(PAUSES):
            events += [Pause(ms=choose.pick(PAUSE_MS)), *traffic.go_on()]
        elif changes and choose.chance(RAISES):
            events += [Stale(), *traffic.go_on()]
        elif changes and not both and choose.chance(OVERTAKES):
            events += draw_overtaken(choose, traffic)
        else:
            events += traffic.arrivals()
    clamp, any_vtep = choose.chance(30), choose.chance(10)
    return Scenario(state=state, events=tuple(events), both=both, mss_clamp=clamp, any_vtep=any_vtep)


def draw_overtaken(choose: Chooser, traffic: Traffic) -> list[Event]:
    """A change of policy in the midst of a flow's packet, and the same packet again."""
    (arrival, *_) = traffic.go_on()
    traffic.state = draw_policy(choose, traffic.state)
    return [Overtaken(arrival=arrival, stage=choose.pick(STAGES), state=traffic.state), arrival, *traffic.go_on()]


@st.composite
def scenarios(draw: Any, *, steps: int = 12, changes: bool = True, both: bool = False) -> Scenario:
    """Scenarios that Hypothesis chooses, and shrinks."""
    return draw_scenario(Drawn(draw), steps=steps, changes=changes, both=both)


@st.composite
def states(draw: Any) -> State:
    """States that Hypothesis chooses, and shrinks."""
    return draw_state(Drawn(draw))


def scenario_of(seed: int, *, steps: int = 40, changes: bool = True, both: bool = False) -> Scenario:
    """The scenario of a seed."""
    return draw_scenario(Seeded(seed), steps=steps, changes=changes, both=both)


def judge(scenario: Scenario, connections: Connections | None = None) -> list[Decision]:
    """What the oracle decides about each arrival at the host where it arrives, in order; of one overtaken, before."""
    memories: defaultdict[str, Connections] = defaultdict(Connections)
    if connections is not None:
        memories[scenario.host] = connections
    state, now = scenario.state, 0
    decisions = []
    for event in scenario.events:
        if isinstance(event, Pause):
            now += event.ms
        arrival = event.arrival if isinstance(event, Overtaken) else event
        if isinstance(arrival, Arrival):
            host = where(scenario, state, arrival)
            decisions.append(decide(state, host, memories[host], arrival, now))
        if isinstance(event, State | Overtaken):
            state = event if isinstance(event, State) else event.state
    return decisions


def where(scenario: Scenario, state: State, arrival: Arrival) -> str:
    """The host at which something arrives."""
    if scenario.both and arrival.port is not None and arrival.port in state.ports:
        return state.ports[arrival.port].host or scenario.host
    return scenario.host


def tell(scenario: Scenario) -> str:
    """The scenario as text: the objects, then a line per event with the oracle's decision."""
    decisions = iter(judge(scenario))
    lines = [f"{item.type}: {msgspec.json.encode(item).decode()}" for item in scenario.state.all()]
    before = scenario.state
    for number, event in enumerate(scenario.events):
        if isinstance(event, State):
            lines += [f"{number}: {line}" for line in changes(before, event)]
            before = event
        elif isinstance(event, Pause):
            lines.append(f"{number}: {event.ms} ms pass")
        elif isinstance(event, Stale):
            lines.append(f"{number}: epochs are raised")
        else:
            arrival = event.arrival if isinstance(event, Overtaken) else event
            decision = next(decisions)
            outputs = ", ".join(map(went, decision.outputs))
            lines.append(f"{number}: {came(arrival)}: {line_of(arrival.frame)} -> {decision.reason.name} [{outputs}]")
            lines.append(f"    {arrival.frame.hex()}")
        if isinstance(event, Overtaken):
            lines += [f"    overtaken before {event.stage}: {line}" for line in changes(before, event.state)]
            before = event.state
    return "\n".join(lines)


def changes(before: State, after: State) -> list[str]:
    """What a change puts, object by object; nothing is ever deleted."""
    old = {(item.type, item.id): item for item in before.all()}
    changed = [item for item in after.all() if old.get((item.type, item.id)) != item]
    return [f"change {item.type}: {msgspec.json.encode(item).decode()}" for item in changed]


def came(arrival: Arrival) -> str:
    """How a frame enters, in words."""
    gso = f" (gso {arrival.gso_size})" if arrival.gso_size else ""
    if arrival.port is not None:
        return f"port {arrival.port}{gso}"
    if arrival.segment is not None:
        return f"vtep {arrival.vtep} {arrival.segment.text} tos {arrival.tos:#x}{gso}"
    return f"{arrival.physical or 'uplink'}{gso}"


def went(output: Output) -> str:
    """Where a copy goes, in words."""
    if output.port is not None:
        return output.port
    assert output.segment is not None
    return f"{output.vtep or 'wire'} {output.segment.text}"


def line_of(frame: bytes) -> str:
    try:
        found = parse(frame)
    except Dropped as dropped:
        return dropped.reason.name
    return f"{found.source} > {found.destination} {describe(found)}"
