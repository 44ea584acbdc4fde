"""The oracle's idea of TCP's window: docs/pipeline.md, "track"."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.abi import Reason, State
from headrace.datapath.connection import Connection
from headrace.datapath.decision import Decision
from headrace.datapath.oracle_tcp import Segment, TcpSide, believed, distance, plausible
from headrace.datapath.packet import ACK, RST
from headrace.testing import packet
from headrace.testing.packet import Somewhere
from headrace.testing.world import OUT, World, group, network, port, rule

A = Somewhere("02:00:00:00:00:01", ("10.0.0.1", "fd00::1"))
B = Somewhere("02:00:00:00:00:02", ("10.0.0.2", "fd00::2"))
MINE, ITS = 0xFFFFFF00, 5_000
"""Where the sides begin to count; one of them wraps soon."""
AWAY = 1 << 24


class Talk:
    """Port 1000 of a, which opens, and port 80 of b. Numbers count from where each side began."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        self.world = World(
            network("blue"),
            group("client", *OUT),
            group("server", rule("in4", "ingress"), rule("in6", "ingress", ethertype="IPv6"), *OUT),
            group("loose", *OUT, rule("any4", "ingress"), rule("any6", "ingress", ethertype="IPv6"), stateful=False),
            port("a", "blue", 1, "client"),
            port("b", "blue", 2, "server"),
        )

    def forth(self, flags: str, seq: int = 0, ack: int | None = None, size: int = 0, **fields: Any) -> Decision:
        numbers: dict[str, Any] = {"seq": MINE + seq, "ack": 0 if ack is None else ITS + ack}
        frame = packet.tcp(A, B, 1000, 80, flags, payload=bytes(size), **numbers, **self.fields)
        return self.world.send("a", frame, **fields).hops[0].decision

    def back(self, flags: str, seq: int = 0, ack: int | None = None, size: int = 0) -> Decision:
        numbers: dict[str, Any] = {"seq": ITS + seq, "ack": 0 if ack is None else MINE + ack}
        frame = packet.tcp(B, A, 80, 1000, flags, payload=bytes(size), **numbers, **self.fields)
        return self.world.send("b", frame).hops[0].decision

    def open(self) -> None:
        self.forth("S")
        self.back("SA", 0, 1)
        assert self.forth("A", 1, 1).connection == State.ESTABLISHED

    @property
    def connection(self) -> Connection:
        found = {id(one): one for one in self.world.memory["h1"].flows.values()}
        assert len(found) == 1
        return next(iter(found.values()))

    @property
    def numbers(self) -> list[tuple[int | None, int | None]]:
        """Edge and ack of both sides, from where each began to count."""
        one, other = self.connection.tcp
        return [(since(MINE, one.edge), since(ITS, one.ack)), (since(ITS, other.edge), since(MINE, other.ack))]


def since(start: int, number: int | None) -> int | None:
    return None if number is None else distance(start, number)


@pytest.fixture(params=[4, 6])
def talk(request: pytest.FixtureRequest) -> Talk:
    return Talk(family=request.param)


def test_what_each_side_has_sent(talk: Talk) -> None:
    talk.forth("S")
    assert talk.numbers == [(1, None), (None, None)]
    talk.back("SA", 0, 1)
    assert talk.numbers == [(1, None), (1, 1)]
    talk.forth("A", 1, 1)
    talk.forth("PA", 1, 1, 1000)
    assert talk.numbers == [(1001, 1), (1, 1)]
    talk.back("A", 1, 501)
    talk.back("FA", 1, 1001, 10)
    assert talk.numbers == [(1001, 1), (12, 1001)]
    talk.forth("PA", 1, 1, 200)
    talk.back("A", 1, 501)
    assert talk.numbers == [(1001, 1), (12, 1001)], "never back"


def test_data_in_a_syn_counts(talk: Talk) -> None:
    talk.forth("S", size=100)
    assert talk.numbers[0] == (101, None)


def test_a_super_packet_counts_whole(talk: Talk) -> None:
    talk.open()
    talk.forth("PA", 1, 1, 3000, gso_size=1000)
    assert talk.numbers[0] == (3001, 1)


def test_a_first_fragment_counts_for_what_it_holds(talk: Talk) -> None:
    talk.open()
    whole = packet.tcp(A, B, 1000, 80, "A", seq=MINE + 1, ack=ITS + 1, payload=bytes(40), **talk.fields)
    first, second = packet.fragments(whole, 32)
    assert talk.world.send("a", first).reason == Reason.NONE
    assert talk.numbers[0] == (13, 1)
    assert talk.world.send("a", second).reason == Reason.NONE
    assert talk.numbers[0] == (13, 1)


@pytest.mark.parametrize(
    ("seq", "ack", "fits"),
    [
        (1 + AWAY, 1, True),
        (2 + AWAY, 1, False),
        (1 - AWAY, 1, True),
        (-AWAY, 1, False),
        (1 + 2**31, 1, False),
        (1, 2, False),
        (1, 1 - AWAY, True),
        (1, -AWAY, False),
        (1, None, True),
    ],
)
def test_plausible(seq: int, ack: int | None, fits: bool) -> None:  # noqa: FBT001 - a parameter
    segment = Segment(
        flags=0, seq=(MINE + seq) % 2**32, end=(MINE + seq) % 2**32, ack=None if ack is None else (ITS + ack) % 2**32
    )
    own, other = TcpSide(edge=MINE + 1, ack=ITS + 1), TcpSide(edge=ITS + 1)
    assert plausible(segment, own, other) is fits
    assert plausible(segment, TcpSide(), TcpSide())


@pytest.mark.parametrize(("ack", "fits"), [(0, True), (-AWAY, True), (-AWAY - 1, False), (1, False)])
def test_plausible_before_its_first_ack(ack: int, fits: bool) -> None:  # noqa: FBT001 - a parameter
    segment = Segment(flags=0, seq=0, end=0, ack=ack % 2**32)
    assert plausible(segment, TcpSide(edge=0), TcpSide(edge=0)) is fits


def test_an_ack_may_lag_as_far_as_data_flies(talk: Talk) -> None:
    """The receiver has acknowledged nothing for a while: what counts is where its acks are, not where data is."""
    talk.open()
    for sent in range(1, 40):
        talk.forth("A", sent * 1_000_000, 1, 100)
    assert talk.numbers[0] == (39_000_100, 1)
    talk.back("A", 1, 2_000_000)
    assert talk.numbers[1] == (1, 2_000_000)


def test_the_implausible_changes_nothing(talk: Talk) -> None:
    talk.open()
    before = talk.numbers
    for flags, seq, ack in (("FA", 2 + AWAY, 1), ("FA", 1, 2), ("PA", -AWAY, 1), ("A", 1, -AWAY)):
        decision = talk.forth(flags, seq, ack)
        assert (decision.reason, decision.connection) == (Reason.NONE, State.ESTABLISHED)
    assert talk.numbers == before
    assert not talk.connection.fin_original
    assert talk.connection.packets == [6, 1]
    assert talk.forth("FA", 1, 1).connection == State.CLOSING


def test_an_implausible_segment_does_not_complete_an_opening(talk: Talk) -> None:
    talk.forth("S")
    talk.back("SA", 0, 1)
    assert talk.forth("A", 1, 2).connection == State.SYN_RECEIVED
    assert talk.forth("A", 1, 1).connection == State.ESTABLISHED


def test_a_syn_changes_no_connection_beyond_syn_sent(talk: Talk) -> None:
    talk.open()
    before = talk.numbers
    for way in (talk.forth, talk.back):
        for flags in ("S", "SA"):
            assert way(flags, 500, 1).connection == State.ESTABLISHED
    assert talk.numbers == before
    talk.forth("FA", 1, 1)
    assert talk.back("S", 1).connection == State.CLOSING


def test_a_syn_sent_again_with_another_number(talk: Talk) -> None:
    talk.forth("S")
    talk.forth("S", 77 * AWAY)
    assert talk.numbers == [(77 * AWAY + 1, None), (None, None)]
    assert talk.back("SA", 0, 77 * AWAY + 1).connection == State.SYN_RECEIVED
    talk.forth("S", 99 * AWAY)
    assert talk.numbers[0] == (77 * AWAY + 1, None)


def test_a_challenge_ack_opens_nothing(talk: Talk) -> None:
    """The other side remembers an older connection: it acknowledges that, and is reset (RFC 5961 section 4.2)."""
    talk.forth("S")
    assert talk.back("A", 300, -9_000_000).connection == State.SYN_SENT
    assert talk.numbers == [(1, None), (300, -9_000_000)]
    assert talk.forth("R", -9_000_001).reason == Reason.TCP_WINDOW, "below what is acknowledged"
    assert talk.back("A", 300, 77 * AWAY).connection == State.SYN_SENT
    assert talk.numbers == [(1, None), (300, 77 * AWAY)]
    assert talk.forth("R", 77 * AWAY + 1).reason == Reason.TCP_WINDOW
    assert talk.forth("R", 77 * AWAY).connection == State.CLOSED
    assert talk.forth("S").connection == State.SYN_SENT
    assert talk.back("SA", 40 * AWAY, 1).connection == State.SYN_RECEIVED
    assert talk.numbers == [(1, None), (40 * AWAY + 1, 1)]


def test_simultaneous_open(talk: Talk) -> None:
    talk.world.put(group("client", *OUT, rule("in4", "ingress"), rule("in6", "ingress", ethertype="IPv6")))
    talk.forth("S")
    assert talk.back("S").connection == State.SYN_RECEIVED
    assert talk.numbers == [(1, None), (1, None)]
    assert talk.forth("SA", 0, 1).connection == State.SYN_RECEIVED
    assert talk.back("SA", 0, 1).connection == State.SYN_RECEIVED
    assert talk.numbers == [(1, 1), (1, 1)]
    assert talk.forth("A", 1, 1).connection == State.ESTABLISHED


def test_adopted(talk: Talk) -> None:
    talk.forth("PA", 100, 200, 50)
    assert talk.numbers == [(150, 200), (None, None)]
    assert talk.back("A", 900, 77).connection == State.ESTABLISHED
    assert talk.numbers == [(150, 200), (900, 77)]


def test_an_adopted_connection_that_is_opened_after_all(talk: Talk) -> None:
    talk.forth("PA", 100, 200, 50)
    assert talk.forth("S", 5 * AWAY).connection == State.SYN_SENT
    assert talk.numbers == [(5 * AWAY + 1, None), (None, None)]


OPEN = TcpSide(edge=1000, ack=500), TcpSide(edge=600, ack=900)
"""A side that sent up to 1000, of which the other acknowledged 900."""


@pytest.mark.parametrize(
    ("own", "other", "seqs", "acks"),
    [
        (*OPEN, {899: False, 900: True, 950: True, 1000: True, 1001: False}, {}),
        (TcpSide(edge=800), TcpSide(ack=900), {800: False, 899: False, 900: True, 901: False}, {}),
        (TcpSide(), TcpSide(edge=70_000, ack=900), {899: False, 900: True, 901: False}, {}),
        (
            TcpSide(),
            TcpSide(edge=70_000, ack=900),
            {},
            {70_000: True, 70_001: False, 70_000 - 65536: True, 70_000 - 65537: False},
        ),
        (
            TcpSide(edge=70_000),
            TcpSide(),
            {70_000: True, 70_001: False, 70_000 - 65536: True, 70_000 - 65537: False},
            {},
        ),
        (TcpSide(), TcpSide(edge=1000), {0: False, 1000: False}, {1000: True, 1001: False}),
        (*OPEN, {}, {600: False, 500: False}),
        (
            TcpSide(edge=5, ack=500),
            TcpSide(edge=600, ack=2**32 - 5),
            {2**32 - 6: False, 2**32 - 5: True, 0: True, 5: True, 6: False},
            {},
        ),
    ],
    ids=["both", "edge below", "only acknowledged", "or its ack", "only sent", "only the other", "no ack", "wrapped"],
)
def test_resets_that_are_believed(own: TcpSide, other: TcpSide, seqs: dict[int, bool], acks: dict[int, bool]) -> None:
    for seq, expected in seqs.items():
        assert believed(Segment(flags=RST, seq=seq, end=seq), own, other) is expected, f"seq {seq}"
    for ack, expected in acks.items():
        segment = Segment(flags=RST | ACK, seq=12345, end=12345, ack=ack)
        assert believed(segment, own, other) is expected, f"ack {ack}"


def test_blind_resets_are_dropped(talk: Talk) -> None:
    talk.open()
    talk.forth("PA", 1, 1, 100)
    before = talk.numbers
    for way in (talk.forth, talk.back):
        for seq in (0, 102 + 65536, -1, 2**31, AWAY):
            for flags in ("R", "RA"):
                assert way(flags, seq, 1).reason == Reason.TCP_WINDOW
    assert (talk.connection.state, talk.numbers, talk.connection.packets) == (State.ESTABLISHED, before, [3, 1])
    assert talk.forth("R", 101).connection == State.CLOSED
    assert talk.numbers == before, "it moves no numbers"
    assert talk.back("R", 2 + 65536).reason == Reason.TCP_WINDOW


def test_a_reset_ahead_of_its_time_passes_and_changes_nothing(talk: Talk) -> None:
    """What it follows was lost on its way here: its receiver knows, and asks for another."""
    talk.open()
    before = talk.numbers
    for seq in (2, 1 + 65536):
        decision = talk.back("R", seq)
        assert (decision.reason, decision.connection) == (Reason.NONE, State.ESTABLISHED)
    assert talk.back("R", 2 + 65536).reason == Reason.TCP_WINDOW
    assert talk.numbers == before
    assert talk.connection.packets == [2, 3]
    talk.back("A", 1, 1, 500)
    assert talk.back("R", 500).connection == State.CLOSED


def test_refused_openings(talk: Talk) -> None:
    talk.forth("S")
    assert talk.back("R", -ITS).reason == Reason.TCP_WINDOW, "any sequence number, no ACK"
    assert talk.back("RA", -ITS, 2).reason == Reason.TCP_WINDOW
    assert talk.back("RA", -ITS, 1).connection == State.CLOSED


def test_a_reset_that_opened_nothing(talk: Talk) -> None:
    assert talk.forth("R", 5).reason == Reason.NONE
    assert not talk.world.memory["h1"].flows


def test_a_reset_is_refused_before_rules_are_asked(talk: Talk) -> None:
    talk.open()
    talk.world.put(group("client"))
    assert talk.forth("R", 77_777).reason == Reason.TCP_WINDOW
    assert not talk.connection.is_cut
    assert talk.forth("R", 1).reason == Reason.CONNECTION_CUT
    assert talk.connection.is_cut
    assert talk.forth("R", 77_777).reason == Reason.TCP_WINDOW


def test_stateless_connections_keep_no_numbers(talk: Talk) -> None:
    talk.world.put(port("a", "blue", 1, "loose"), port("b", "blue", 2, "loose"))
    talk.forth("S")
    assert talk.numbers == [(None, None), (None, None)]
    assert talk.forth("R", 77_777).connection == State.STATELESS


@pytest.mark.parametrize("end", ["RA", "FA"])
def test_a_port_used_again(talk: Talk, end: str) -> None:
    talk.open()
    talk.forth(end, 1, 1)
    if end == "FA":
        talk.back("FA", 1, 2)
    assert talk.connection.state in {State.CLOSED, State.TIME_WAIT}
    assert talk.forth("S", 90 * AWAY).connection == State.SYN_SENT
    assert talk.numbers == [(90 * AWAY + 1, None), (None, None)]
