"""Scenarios in files: tests/corpus keeps each that ever told the programs and the oracle apart."""

from __future__ import annotations

import msgspec

from headrace.datapath.decision import Arrival
from headrace.model import State
from headrace.testing.strategy import Event, Overtaken, Pause, Scenario, Stale
from headrace.testing.strategy_state import HOST


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An event in a file: one of these. ``pause``: milliseconds; ``stale``: epochs are raised."""

    arrival: Arrival | None = None
    state: State | None = None
    pause: int = 0
    stale: bool = False
    overtaken: Overtaken | None = None


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A scenario in a file."""

    state: State
    events: tuple[Kept, ...]
    host: str = HOST
    both: bool = False
    mss_clamp: bool = False
    any_vtep: bool = False


def encode(scenario: Scenario) -> bytes:
    """The scenario as JSON."""
    events = tuple(map(keep, scenario.events))
    file = File(
        host=scenario.host,
        state=scenario.state,
        events=events,
        both=scenario.both,
        mss_clamp=scenario.mss_clamp,
        any_vtep=scenario.any_vtep,
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=1)


def decode(data: bytes) -> Scenario:
    """Read what ``encode`` wrote."""
    file = msgspec.json.decode(data, type=File)
    events = tuple(map(event_of, file.events))
    options = {"both": file.both, "mss_clamp": file.mss_clamp, "any_vtep": file.any_vtep}
    return Scenario(host=file.host, state=file.state, events=events, **options)


def keep(event: Event) -> Kept:
    if isinstance(event, State):
        return Kept(state=event)
    if isinstance(event, Pause):
        return Kept(pause=event.ms)
    if isinstance(event, Overtaken):
        return Kept(overtaken=event)
    return Kept(stale=True) if isinstance(event, Stale) else Kept(arrival=event)


def event_of(kept: Kept) -> Event:
    event = kept.arrival or kept.state or kept.overtaken or (Stale() if kept.stale else Pause(ms=kept.pause))
    assert event != Pause(ms=0), "an event is an arrival, a state, a pause, or two at once"
    return event
