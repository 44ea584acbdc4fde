"""TCP's window: what a segment's numbers do to its connection, and which resets are believed (pipeline.md, "track").

Numbers in stories are relative to where each side began; the sides begin so that both wrap around.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest

from headrace.abi import Reason, State
from headrace.datapath.decision import Arrival
from headrace.model import Port
from headrace.testing import packet
from headrace.testing.observation import Hook, Observed
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, OUT, group, network, port

MakeTwin = Callable[..., Twin]

A, B, C = port("a", "blue", 1, "any"), port("b", "blue", 2, "any"), port("c", "blue", 3, "any", host="h2")
STATE = (network("blue"), group("any", *ANY), A, B, C)
BEGIN = {">": 2**32 - 50, "<": 2**31 - 20}
"""Sequence numbers of the first SYNs."""
REACH, LEEWAY = 1 << 24, 1 << 16
BACK = {">": "<", "<": ">"}
SPELL: tuple[Hook, ...] = ("tc", "xdp")


class Step(NamedTuple):
    """A segment of the opener (">FA") or the other, and what comes of it."""

    what: str
    seq: int
    ack: int
    length: int
    then: State | Reason


def arrival(step: Step, other: Port = B, family: int = 4, **fields: Any) -> Arrival:
    """The segment as it enters: both ends here, or the other by tunnel."""
    way, flags = step.what[0], step.what[1:]
    ends, ports = ((A, other), (1000, 80)) if way == ">" else ((other, A), (80, 1000))
    ack = BEGIN[BACK[way]] + step.ack if "A" in flags else 0
    numbers: dict[str, Any] = {"seq": BEGIN[way] + step.seq, "ack": ack} | fields
    frame = packet.tcp(*ends, *ports, flags, payload=bytes(step.length), family=family, **numbers)
    return tunnelled(frame) if ends[0].host == "h2" else sent(ends[0].id, frame)


def take(asked: Twin, steps: Iterable[Step], *, hook: Hook = "tc", **fields: Any) -> Observed | None:
    """Run steps, each with the outcome that it names."""
    observed = None
    for step in steps:
        observed = asked.run(arrival(step, **fields), hook)
        outcome = observed.connection if isinstance(step.then, State) else observed.reason
        assert outcome == step.then, step
    return observed


def numbers(asked: Twin) -> list[tuple[int | None, int | None]]:
    """What is known of each side, relative to where it began."""
    (fact,) = asked.host.memory.facts().values()
    found = []
    for (edge, ack), way in zip(fact["tcp"], "><", strict=True):
        found.append(
            (
                None if edge is None else (edge - BEGIN[way] + 2**31) % 2**32 - 2**31,
                None if ack is None else (ack - BEGIN[BACK[way]] + 2**31) % 2**32 - 2**31,
            )
        )
    return found


OPEN = [
    Step(">S", 0, 0, 0, State.SYN_SENT),
    Step("<SA", 0, 1, 0, State.SYN_RECEIVED),
    Step(">A", 1, 1, 0, State.ESTABLISHED),
]
USED = [*OPEN, Step(">PA", 1, 1, 100, State.ESTABLISHED), Step("<PA", 1, 101, 50, State.ESTABLISHED)]
STORIES = {
    "opened, used and closed": [
        *USED,
        Step(">A", 101, 51, 0, State.ESTABLISHED),
        Step(">FA", 101, 51, 0, State.CLOSING),
        Step("<A", 51, 102, 0, State.CLOSING),
        Step("<FA", 51, 102, 0, State.TIME_WAIT),
        Step(">A", 102, 52, 0, State.TIME_WAIT),
    ],
    "closed by both at once": [
        *USED,
        Step(">FA", 101, 51, 0, State.CLOSING),
        Step("<FA", 51, 101, 0, State.TIME_WAIT),
        Step(">A", 102, 52, 0, State.TIME_WAIT),
        Step("<A", 52, 102, 0, State.TIME_WAIT),
    ],
    "opened by both at once": [
        Step(">S", 0, 0, 0, State.SYN_SENT),
        Step("<S", 0, 0, 0, State.SYN_RECEIVED),
        Step(">SA", 0, 1, 0, State.SYN_RECEIVED),
        Step("<SA", 0, 1, 0, State.SYN_RECEIVED),
        Step("<PA", 1, 1, 10, State.SYN_RECEIVED),
        Step(">A", 1, 11, 0, State.ESTABLISHED),
    ],
    "its answer is lost before us": [
        Step(">S", 0, 0, 0, State.SYN_SENT),
        Step(">S", 0, 0, 0, State.SYN_SENT),
        Step("<SA", 0, 1, 0, State.SYN_RECEIVED),
        Step("<SA", 0, 1, 0, State.SYN_RECEIVED),
        Step(">S", 0, 0, 0, State.SYN_RECEIVED),
        Step(">A", 1, 1, 0, State.ESTABLISHED),
    ],
    "reused in TIME_WAIT": [
        *USED,
        Step(">FA", 101, 51, 0, State.CLOSING),
        Step("<FA", 51, 102, 0, State.TIME_WAIT),
        Step(">S", 2**30, 0, 0, State.SYN_SENT),
        Step("<SA", 2**30, 2**30 + 1, 0, State.SYN_RECEIVED),
        Step(">A", 2**30 + 1, 2**30 + 1, 0, State.ESTABLISHED),
    ],
    "refused by who remembers": [
        Step(">S", 0, 0, 0, State.SYN_SENT),
        Step("<A", 2**29, 2**30, 0, State.SYN_SENT),
        Step("<A", 2**29, 2**30, 0, State.SYN_SENT),
        Step(">R", 2**30, 0, 0, State.CLOSED),
        Step(">S", 0, 0, 0, State.SYN_SENT),
        Step("<SA", 0, 1, 0, State.SYN_RECEIVED),
        Step(">A", 1, 1, 0, State.ESTABLISHED),
    ],
    "refused by who remembers something later": [
        Step(">S", 0, 0, 0, State.SYN_SENT),
        Step("<A", 2**29, -1000, 0, State.SYN_SENT),
        Step(">R", -1000, 0, 0, State.CLOSED),
    ],
    "an old SYN+ACK is reset, and the right one opens": [
        Step(">S", 0, 0, 0, State.SYN_SENT),
        Step("<SA", 2**29, 2**30, 0, State.SYN_RECEIVED),
        Step(">R", 2**30, 0, 0, State.CLOSED),
        Step(">S", 0, 0, 0, State.SYN_SENT),
        Step("<SA", 0, 1, 0, State.SYN_RECEIVED),
    ],
    "another SYN while the first is not answered": [
        Step(">S", 0, 0, 0, State.SYN_SENT),
        Step(">S", 2**30, 0, 0, State.SYN_SENT),
        Step("<SA", 0, 2**30 + 1, 0, State.SYN_RECEIVED),
        Step(">A", 2**30 + 1, 1, 0, State.ESTABLISHED),
    ],
    "adopted and used": [
        Step(">PA", 1, 1, 100, State.SYN_SENT),
        Step(">PA", 101, 1, 100, State.SYN_SENT),
        Step("<A", 1, 201, 0, State.ESTABLISHED),
        Step("<FA", 1, 201, 0, State.CLOSING),
        Step(">FA", 201, 2, 0, State.TIME_WAIT),
    ],
    "adopted by one who lost his state": [Step(">PA", 1, 1, 100, State.SYN_SENT), Step("<R", 1, 0, 0, State.CLOSED)],
    "reset by one who lost his state": [
        *USED,
        Step(">A", 101, 51, 0, State.ESTABLISHED),
        Step("<R", 51, 0, 0, State.CLOSED),
    ],
    "given up by its opener": [Step(">S", 0, 0, 0, State.SYN_SENT), Step(">R", 1, 0, 0, State.CLOSED)],
    "aborted with octets in flight": [
        *USED,
        Step(">PA", 101, 51, 1000, State.ESTABLISHED),
        Step(">PA", 1101, 51, 1000, State.ESTABLISHED),
        Step(">RA", 2101, 51, 0, State.CLOSED),
    ],
    "aborted with a closed window": [
        *USED,
        Step(">PA", 101, 51, 1000, State.ESTABLISHED),
        Step(">RA", 600, 51, 0, State.CLOSED),
    ],
    "probes of one who lives": [
        *USED,
        Step(">A", 100, 51, 0, State.ESTABLISHED),
        Step("<A", 51, 101, 0, State.ESTABLISHED),
        Step(">A", 100, 51, 1, State.ESTABLISHED),
        Step("<R", 51, 0, 0, State.CLOSED),
    ],
    "a FIN that does not fit": [
        *USED,
        Step(">FA", 101 + REACH + 1, 51, 0, State.ESTABLISHED),
        Step("<FA", 51, 102, 0, State.ESTABLISHED),
        Step("<FA", 51 - REACH - 1, 101, 0, State.ESTABLISHED),
        Step("<F", 51, 0, 0, State.CLOSING),
        Step(">FA", 101, 52, 0, State.TIME_WAIT),
    ],
    "a SYN in the middle": [
        *USED,
        Step(">S", 2**30, 0, 0, State.ESTABLISHED),
        Step("<S", 51, 0, 0, State.ESTABLISHED),
        Step("<A", 51, 101, 0, State.ESTABLISHED),
        Step(">R", 101, 0, 0, State.CLOSED),
    ],
}
"""Each segment that changes something, and what the connection is afterwards."""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("other", [B, C], ids=lambda one: one.id)
@pytest.mark.parametrize("name", STORIES)
def test_stories_of_tcp(twin: MakeTwin, name: str, other: Port, family: int) -> None:
    for hook in SPELL:
        take(twin(*STATE), STORIES[name], other=other, family=family, hook=hook)
    asked = twin(*STATE)
    for step in STORIES[name]:
        asked.host.datapath.raise_epochs(asked.host.ports.values())
        observed = take(asked, [step], other=other, family=family)
        assert observed is not None
        assert not observed.replayed


PLACES: dict[str, tuple[list[Step], dict[str, int], dict[str, int]]] = {
    "SYN_SENT": (OPEN[:1], {">": 1}, {}),
    "SYN_RECEIVED": (OPEN[:2], {">": 1, "<": 1}, {"<": 1}),
    "ESTABLISHED": (USED, {">": 101, "<": 51}, {">": 1, "<": 101}),
    "CLOSING": ([*USED, Step("<FA", 51, 101, 0, State.CLOSING)], {">": 101, "<": 52}, {">": 1, "<": 101}),
    "TIME_WAIT": (STORIES["opened, used and closed"], {">": 102, "<": 52}, {">": 52, "<": 102}),
    "CLOSED": (STORIES["aborted with a closed window"], {">": 1101, "<": 51}, {">": 51, "<": 101}),
    "adopted": (STORIES["adopted and used"][:1], {">": 101}, {">": 1}),
}
"""How to get into a state, and what is then known: the edges and acks of the sides."""


def resets(edges: dict[str, int], acks: dict[str, int], way: str) -> dict[Reason, list[tuple[str, int, int]]]:
    """(flags, seq, ack) of resets by a side: those that pass and those that do not; NONE's first is believed."""
    other = BACK[way]
    least = acks.get(other, edges.get(way, 0) - LEEWAY)
    if way not in edges:
        if other not in acks:
            return {
                Reason.NONE: [("RA", 2**30, edges[other]), ("RA", 0, edges[other] - LEEWAY)],
                Reason.TCP_WINDOW: [("RA", 0, edges[other] + 1), ("RA", 0, edges[other] - LEEWAY - 1), ("R", 0, 0)],
            }
        return {
            Reason.NONE: [("R", least, 0), ("RA", least + 5, edges[other])],
            Reason.TCP_WINDOW: [("R", least + 1, 0), ("R", least - 1, 0), ("RA", least + 5, edges[other] + 1)],
        }
    edge = edges[way]
    strange = [edge + LEEWAY + 1, least - 1, edge + 2**31 - 1, edge + 2**30, least - 2**30]
    return {
        Reason.NONE: [("R", edge, 0), ("RA", least, 2**30), ("R", edge + 1, 0), ("RA", edge + LEEWAY, 0)],
        Reason.TCP_WINDOW: [(flags, seq, 1) for seq in strange for flags in ("R", "RA")],
    }


@pytest.mark.parametrize("other", [B, C], ids=lambda one: one.id)
@pytest.mark.parametrize("way", [">", "<"])
@pytest.mark.parametrize("place", PLACES)
def test_a_reset_that_nobody_would_believe_changes_nothing(twin: MakeTwin, place: str, way: str, other: Port) -> None:
    """Walked, tried again, and on XDP; what went before is replayed or walked."""
    steps, edges, acks = PLACES[place]
    asked = twin(*STATE)
    take(asked, steps, other=other)
    before = asked.host.memory.facts()
    for flags, seq, ack in resets(edges, acks, way)[Reason.TCP_WINDOW]:
        observed = asked.thrice(arrival(Step(way + flags, seq, ack, 0, Reason.TCP_WINDOW), other))
        assert (observed.reason, observed.outputs) == (Reason.TCP_WINDOW, ()), (flags, seq, ack)
    assert asked.host.memory.facts() == before


@pytest.mark.parametrize("hook", SPELL)
@pytest.mark.parametrize("way", [">", "<"])
@pytest.mark.parametrize("place", PLACES)
def test_a_reset_that_is_believed_closes(twin: MakeTwin, place: str, way: str, hook: Hook) -> None:
    steps, edges, acks = PLACES[place]
    for flags, seq, ack in resets(edges, acks, way)[Reason.NONE]:
        asked = twin(*STATE)
        observed = take(asked, steps)
        assert observed is not None
        known = numbers(asked)
        after = asked.run(arrival(Step(way + flags, seq, ack, 0, State.CLOSED)), hook)
        doubted = way in edges and seq > edges[way]
        assert after.reason == Reason.NONE
        assert after.connection == (observed.connection if doubted else State.CLOSED), (flags, seq, ack)
        assert numbers(asked) == known, "a reset moves no numbers"
        (conn,) = asked.host.memory.connections().values()
        assert doubted or conn.timeout == 10_000


def test_the_refused_are_closed_at_once(twin: MakeTwin) -> None:
    """As kernels refuse: sequence number 0, and all acknowledged (RFC 9293 section 3.10.7.1)."""
    for family in (4, 6):
        asked = twin(*STATE)
        take(asked, OPEN[:1], family=family)
        take(asked, [Step("<RA", 0, 1, 0, State.CLOSED)], family=family, seq=0)
        take(asked, [Step(">S", 0, 0, 0, State.SYN_SENT)], family=family)


def test_a_refused_opening_with_data(twin: MakeTwin) -> None:
    """Fast Open (RFC 7413): the data may be refused with the SYN, or taken without."""
    for ack in (1, 501):
        asked = twin(*STATE)
        take(asked, [Step(">S", 0, 0, 500, State.SYN_SENT)])
        assert numbers(asked)[0] == (501, None)
        take(asked, [Step("<RA", 0, ack, 0, State.CLOSED)], seq=0)


# Numbers


def test_what_each_segment_moves(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    expected = [
        (Step(">S", 0, 0, 0, State.SYN_SENT), (1, None), (None, None)),
        (Step("<SA", 0, 1, 0, State.SYN_RECEIVED), (1, None), (1, 1)),
        (Step(">A", 1, 1, 0, State.ESTABLISHED), (1, 1), (1, 1)),
        (Step(">PA", 1, 1, 100, State.ESTABLISHED), (101, 1), (1, 1)),
        (Step("<A", 1, 101, 0, State.ESTABLISHED), (101, 1), (1, 101)),
        (Step(">PA", 201, 1, 100, State.ESTABLISHED), (301, 1), (1, 101)),
        (Step(">PA", 101, 1, 100, State.ESTABLISHED), (301, 1), (1, 101)),
        (Step("<A", 1, 50, 0, State.ESTABLISHED), (301, 1), (1, 101)),
        (Step("<A", 1, 302, 0, State.ESTABLISHED), (301, 1), (1, 101)),
        (Step("<A", 1, 301, 0, State.ESTABLISHED), (301, 1), (1, 301)),
        (Step("<FA", 1, 301, 20, State.CLOSING), (301, 1), (22, 301)),
        (Step(">F", 301, 0, 0, State.TIME_WAIT), (302, 1), (22, 301)),
    ]
    for step, original, reply in expected:
        take(asked, [step])
        assert numbers(asked) == [original, reply], step


BLIND = [
    ("seq too high", 101 + REACH + 1, 51, False),
    ("seq as high as may be", 101 + REACH, 51, True),
    ("seq too low", 101 - REACH - 1, 51, False),
    ("seq as low as may be", 101 - REACH, 51, True),
    ("ack of what was not sent", 101, 52, False),
    ("ack too low", 101, 1 - REACH - 1, False),
    ("ack as low as may be", 101, 1 - REACH, True),
    ("opposite", 101 + 2**31, 51, False),
]


@pytest.mark.parametrize("hook", SPELL)
@pytest.mark.parametrize("blind", BLIND, ids=[one[0] for one in BLIND])
def test_what_does_not_fit_passes_and_changes_nothing(
    twin: MakeTwin, blind: tuple[str, int, int, bool], hook: Hook
) -> None:
    what, seq, ack, fits = blind
    for flags in ("PA", "FPA"):
        asked = twin(*STATE)
        take(asked, USED)
        before = numbers(asked)
        observed = take(asked, [Step(f">{flags}", seq, ack, 10, Reason.NONE)], hook=hook)
        assert observed is not None
        assert observed.replayed
        took_part = numbers(asked) != before or observed.connection != State.ESTABLISHED
        moves = flags == "FPA" or seq + 10 > 101 or ack > 1
        assert took_part == (fits and moves), what


def test_much_in_flight(twin: MakeTwin) -> None:
    """More than segments may be apart: an ack is measured by the one before it."""
    asked = twin(*STATE)
    take(asked, USED)
    step, count = 1 << 23, 5
    for number in range(1, count + 1):
        take(asked, [Step(">A", 101 + number * step - 100, 51, 100, State.ESTABLISHED)])
    take(asked, [Step("<A", 51, 101 + step, 0, State.ESTABLISHED)])
    assert numbers(asked) == [(101 + count * step, 51), (51, 101 + step)]
    take(asked, [Step(">R", 101 + step, 0, 0, State.CLOSED)])


def test_numbers_go_round(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    take(asked, OPEN)
    at, step = 1, 1 << 24
    for _ in range(300):
        asked.run(arrival(Step(">A", at + step - 1, 1, 1, State.ESTABLISHED)))
        at = (at + step) % 2**32
        asked.run(arrival(Step("<A", 1, at, 0, State.ESTABLISHED)))
    assert numbers(asked) == [((at + 2**31) % 2**32 - 2**31, 1), (1, (at + 2**31) % 2**32 - 2**31)]
    assert asked.thrice(arrival(Step(">R", at - 1, 0, 0, Reason.TCP_WINDOW))).reason == Reason.TCP_WINDOW
    take(asked, [Step(">R", at, 0, 0, State.CLOSED)])


def test_a_super_packet_counts_whole(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    take(asked, USED)
    frame = packet.tcp(A, B, 1000, 80, "PA", seq=BEGIN[">"] + 101, ack=BEGIN["<"] + 51, payload=bytes(3000))
    for _ in range(2):
        asked.run(sent("a", frame, gso_size=1000))
        assert numbers(asked)[0] == (3101, 51)


def test_fragments_of_segments(twin: MakeTwin) -> None:
    """The first tells its own length, later ones nothing, and a reset in parts is judged by its first."""
    asked = twin(*STATE)
    take(asked, USED)
    whole = arrival(Step(">PA", 101, 51, 100, State.ESTABLISHED)).frame
    first, later, *_ = packet.fragments(whole, 64)
    asked.run(sent("a", first))
    assert numbers(asked)[0] == (101 + 64 - 20, 51)
    asked.run(sent("a", later))
    assert numbers(asked)[0] == (101 + 64 - 20, 51)
    for seq, reason in ((2**30, Reason.TCP_WINDOW), (101, Reason.NONE)):
        reset = packet.fragments(arrival(Step(">R", seq, 0, 24, State.CLOSED)).frame, 24, ident=seq % 65536)
        assert asked.run(sent("a", reset[0])).reason == reason
    assert asked.host.memory.facts().popitem()[1]["state"] == State.CLOSED


def test_connections_of_stateless_groups_keep_no_numbers(twin: MakeTwin) -> None:
    asked = twin(network("blue"), group("any", *ANY, stateful=False), A, B)
    for seq in (0, 2**30, 2**31, 77):
        assert asked.thrice(arrival(Step(">R", seq, 0, 0, Reason.NONE))).reason == Reason.NONE
        assert asked.thrice(arrival(Step(">PA", seq, 5, 9, Reason.NONE))).connection == State.STATELESS
    assert {side for fact in asked.host.memory.facts().values() for side in fact["tcp"]} == {(None, None)}


def test_what_is_dropped_moves_nothing(twin: MakeTwin) -> None:
    """A connection that rules no longer allow: neither its data nor its resets count."""
    asked = twin(*STATE)
    take(asked, USED)
    before = numbers(asked)
    asked.apply(type(asked.state).of((*asked.state.all(), group("any", *OUT))))
    cut = Reason.CONNECTION_CUT
    take(asked, [Step(">PA", 101, 51, 10, cut), Step("<FA", 51, 101, 0, cut), Step(">R", 101, 0, 0, cut)])
    take(asked, [Step(">R", 2**30, 0, 0, Reason.TCP_WINDOW)])
    assert numbers(asked) == before
    asked.apply(type(asked.state).of((*asked.state.all(), group("any", *ANY))))
    take(asked, [Step(">PA", 101, 51, 10, State.ESTABLISHED)])


DELTAS = (0, 1, 2, 100, LEEWAY - 1, LEEWAY, LEEWAY + 1, REACH - 1, REACH, REACH + 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1)
ANY_FLAGS = ("S", "SA", "A", "A", "PA", "PA", "F", "FA", "R", "RA", "R", "RA", "SEC", "UPA")


@pytest.mark.parametrize("seed", range(6))
def test_any_segment(twin: MakeTwin, seed: int) -> None:
    """Numbers at every edge of what is known, whatever the state: programs and oracle agree (Twin compares)."""
    choose = random.Random(seed)
    asked = twin(*STATE)
    seen = set()
    for _ in range(120):
        known = [number for fact in asked.host.memory.facts().values() for side in fact["tcp"] for number in side]
        bases = [number for number in known if number is not None] or [choose.randrange(2**32)]
        seq, ack = (
            choose.choice(bases) + choose.choice((1, 1, -1)) * choose.choice(DELTAS[: choose.choice((3, 9, 14))])
            for _ in "sa"
        )
        way, flags = choose.choice("><"), choose.choice(ANY_FLAGS)
        step = Step(way + flags, 0, 0, choose.choice((0, 0, 1, 100)), Reason.NONE)
        observed = asked.run(arrival(step, seq=seq, ack=ack), choose.choice(SPELL))
        seen.add((observed.reason, observed.connection, observed.replayed))
        if choose.random() < 0.03:
            asked.host.datapath.raise_epochs(asked.host.ports.values())
        if choose.random() < 0.02:
            asked.age(choose.choice((9_000, 11_000, 61_000, 121_000, 241_000)))
    assert len(seen) > 8
