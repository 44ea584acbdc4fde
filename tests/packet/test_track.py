"""track: connections and what they live through. docs/pipeline.md, "track"."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from headrace import abi
from headrace.abi import Reason, State
from headrace.datapath.decision import Place
from headrace.model import Port
from headrace.model import State as Desired
from headrace.testing import packet
from headrace.testing.host import PacketHost
from headrace.testing.observation import Observed
from headrace.testing.packet import BROADCAST, Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, OUT, group, network, port, rule

MakeTwin = Callable[..., Twin]

BLUE = network("blue")
A, B, C = port("a", "blue", 1, "any"), port("b", "blue", 2, "any"), port("c", "blue", 3, "any", host="h2")
STATE = (BLUE, group("any", *ANY), A, B, C)


def tcp(asked: Twin, sender: Port, receiver: Port, flags: str) -> Observed:
    """A segment between port 1000 of A and port 80 of the other."""
    sport, dport = (1000, 80) if sender == A else (80, 1000)
    frame = packet.tcp(sender, receiver, sport, dport, flags)
    return asked.run(tunnelled(frame) if sender.host == "h2" else sent(sender.id, frame))


# TCP, step by step: who sends what, and the state that the connection is in afterwards.
STORIES = {
    "opened, used and closed": [
        (">S", State.SYN_SENT),
        ("<SA", State.SYN_RECEIVED),
        (">A", State.ESTABLISHED),
        (">PA", State.ESTABLISHED),
        ("<PA", State.ESTABLISHED),
        (">FA", State.CLOSING),
        ("<A", State.CLOSING),
        ("<FA", State.TIME_WAIT),
        (">A", State.TIME_WAIT),
    ],
    "retransmissions": [
        (">S", State.SYN_SENT),
        (">S", State.SYN_SENT),
        ("<SA", State.SYN_RECEIVED),
        ("<SA", State.SYN_RECEIVED),
        (">S", State.SYN_RECEIVED),
        ("<A", State.SYN_RECEIVED),
        (">A", State.ESTABLISHED),
        ("<SA", State.ESTABLISHED),
        (">S", State.ESTABLISHED),
    ],
    "the other side closes first": [
        (">S", State.SYN_SENT),
        ("<SA", State.SYN_RECEIVED),
        (">A", State.ESTABLISHED),
        ("<FA", State.CLOSING),
        ("<FA", State.CLOSING),
        (">FA", State.TIME_WAIT),
    ],
    "refused": [(">S", State.SYN_SENT), ("<RA", State.CLOSED), ("<RA", State.CLOSED), (">A", State.CLOSED)],
    "reset by its opener": [(">S", State.SYN_SENT), ("<SA", State.SYN_RECEIVED), (">R", State.CLOSED)],
    "answered without SYN": [(">S", State.SYN_SENT), ("<A", State.SYN_SENT), ("<SA", State.SYN_RECEIVED)],
    "closed before it is open": [(">S", State.SYN_SENT), (">FA", State.CLOSING), ("<FA", State.TIME_WAIT)],
    "opened from both ends": [(">S", State.SYN_SENT), ("<S", State.SYN_RECEIVED), (">A", State.ESTABLISHED)],
    "adopted in mid-stream": [
        (">A", State.SYN_SENT),
        ("<A", State.ESTABLISHED),
        ("<FA", State.CLOSING),
        (">FA", State.TIME_WAIT),
    ],
    "adopted at its end": [(">FA", State.CLOSING), ("<FA", State.TIME_WAIT)],
    "adopted without ACK": [(">F", State.CLOSING)],
    "reset in TIME_WAIT": [(">FA", State.CLOSING), ("<FA", State.TIME_WAIT), (">R", State.CLOSED)],
    "reopened in TIME_WAIT": [
        (">FA", State.CLOSING),
        ("<FA", State.TIME_WAIT),
        (">S", State.SYN_SENT),
        ("<SA", State.SYN_RECEIVED),
    ],
    "reopened after a reset": [(">S", State.SYN_SENT), ("<RA", State.CLOSED), (">S", State.SYN_SENT)],
    "reopened by the other side": [(">FA", State.CLOSING), ("<FA", State.TIME_WAIT), ("<S", State.SYN_SENT)],
    "a SYN+ACK reopens nothing": [(">FA", State.CLOSING), ("<FA", State.TIME_WAIT), ("<SA", State.TIME_WAIT)],
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("other", [B, C], ids=lambda one: one.id)
@pytest.mark.parametrize("name", STORIES)
def test_the_states_of_tcp(twin: MakeTwin, name: str, other: Port, family: int) -> None:
    """Each step by walk and by replay, on one host and over two."""
    for by_walk in (False, True):
        asked = twin(*STATE)
        for step, expected in STORIES[name]:
            ends = (A, other) if step[0] == ">" else (other, A)
            ports = (1000, 80) if step[0] == ">" else (80, 1000)
            frame = packet.tcp(*ends, *ports, step[1:], family=family)
            if by_walk:
                asked.host.datapath.raise_epochs(asked.host.ports.values())
            observed = asked.run(tunnelled(frame) if ends[0].host == "h2" else sent(ends[0].id, frame))
            assert observed.connection == expected, step
            assert not (by_walk and observed.replayed)


def test_a_reset_of_nothing_makes_nothing(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for flags in ("R", "RA"):
        observed = asked.thrice(sent("a", packet.tcp(A, B, 1000, 80, flags)))
        assert (observed.reason, observed.connection, observed.replayed) == (Reason.NONE, None, False)


def test_a_syn_ack_that_answers_nothing(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    assert tcp(asked, A, B, "SA").reason == Reason.TCP_INVALID
    assert tcp(asked, C, A, "SA").reason == Reason.TCP_INVALID
    free = group("free", *ANY, stateful=False)
    asked = twin(BLUE, free, port("a", "blue", 1, "free"), port("b", "blue", 2, "free"))
    assert asked.thrice(sent("a", packet.tcp(A, B, 1000, 80, "SA"))).connection == State.STATELESS
    asked = twin(BLUE, port("a", "blue", 1, port_security=False), port("b", "blue", 2, port_security=False))
    assert asked.thrice(sent("a", packet.tcp(A, B, 1000, 80, "SA"))).reason == Reason.NONE


def test_a_refused_opening_leaves_nothing(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("any", *ANY), group("out", *OUT), A, port("b", "blue", 2, "out"))
    assert asked.thrice(sent("a", packet.tcp(A, B, 1000, 80))).reason == Reason.ACL_TO_PORT
    assert not asked.memory.flows


# What is not TCP


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["udp", "sctp", "gre"])
def test_other_protocols_are_new_until_a_reply(twin: MakeTwin, kind: str, family: int) -> None:
    asked = twin(*STATE)

    def frame(sender: Port, receiver: Port, sport: int, dport: int) -> bytes:
        if kind == "gre":
            return packet.other(sender, receiver, 47, family=family)
        build = packet.udp if kind == "udp" else packet.sctp
        return build(sender, receiver, sport, dport, family=family)

    assert asked.thrice(sent("a", frame(A, C, 1000, 53))).connection == State.NEW
    assert asked.thrice(tunnelled(frame(C, A, 53, 1000))).connection == State.ASSURED
    assert asked.thrice(sent("a", frame(A, C, 1000, 53))).connection == State.ASSURED


@pytest.mark.parametrize(
    ("question", "answer", "family"), [(8, 0, 4), (13, 14, 4), (15, 16, 4), (17, 18, 4), (128, 129, 6)]
)
def test_icmp_queries_are_answered(twin: MakeTwin, question: int, answer: int, family: int) -> None:
    asked = twin(BLUE, group("out", *OUT), port("a", "blue", 1, "out"), port("c", "blue", 3, "out", host="h2"))
    asking = packet.icmp(A, C, question, ident=7, family=family)
    answering = packet.icmp(C, A, answer, ident=7, family=family)
    assert asked.thrice(tunnelled(answering)).reason == Reason.ACL_TO_PORT
    assert asked.thrice(sent("a", asking)).connection == State.NEW
    assert asked.thrice(tunnelled(packet.icmp(C, A, answer, ident=8, family=family))).reason == Reason.ACL_TO_PORT
    assert asked.thrice(tunnelled(packet.icmp(C, A, answer, 1, ident=7, family=family))).reason == Reason.ACL_TO_PORT
    assert asked.thrice(tunnelled(answering)).connection == State.ASSURED


@pytest.mark.parametrize(("answer", "question", "family"), [(0, 8, 4), (14, 13, 4), (129, 128, 6), (10, 9, 4)])
def test_an_answer_lets_no_question_back(twin: MakeTwin, answer: int, question: int, family: int) -> None:
    asked = twin(BLUE, group("out", *OUT), port("a", "blue", 1, "out"), port("c", "blue", 3, "out", host="h2"))
    assert asked.thrice(sent("a", packet.icmp(A, C, answer, ident=7, family=family))).connection == State.NEW
    assert asked.thrice(tunnelled(packet.icmp(C, A, question, ident=7, family=family))).reason == Reason.ACL_TO_PORT


# Expiry

LIVES = {
    State.SYN_SENT: ([">S"], 120_000),
    State.SYN_RECEIVED: ([">S", "<SA"], 60_000),
    State.ESTABLISHED: ([">A", "<A"], 432_000_000),
    State.CLOSING: ([">FA"], 240_000),
    State.TIME_WAIT: ([">FA", "<FA"], 120_000),
    State.CLOSED: ([">S", "<RA"], 10_000),
}


@pytest.mark.parametrize("state", LIVES, ids=lambda state: state.name)
def test_how_long_tcp_connections_stay_silent(twin: MakeTwin, state: State) -> None:
    steps, timeout = LIVES[state]
    for ms, lives in ((timeout, True), (timeout + 1, False)):
        asked = twin(*STATE)
        for step in steps:
            observed = tcp(asked, *((A, B) if step[0] == ">" else (B, A)), step[1:])
        assert observed.connection == state
        (conn,) = asked.host.memory.connections().values()
        assert conn.timeout == timeout
        asked.age(ms)
        tcp(asked, B, A, "A")
        (conn,) = asked.host.memory.connections().values()
        sender = asked.host.memory.place(conn.key[0].where)
        assert sender == Place("port", "a on blue" if lives else "b on blue"), (
            "who answers a dead connection begins his own"
        )


@pytest.mark.parametrize(
    ("kind", "answered", "timeout"),
    [
        ("udp", False, 30_000),
        ("udp", True, 180_000),
        ("icmp", False, 30_000),
        ("icmp", True, 30_000),
        ("gre", False, 600_000),
        ("gre", True, 600_000),
    ],
)
def test_how_long_others_stay_silent(twin: MakeTwin, kind: str, answered: bool, timeout: int) -> None:  # noqa: FBT001
    frames = {
        "udp": (packet.udp(A, C, 1000, 53), packet.udp(C, A, 53, 1000)),
        "icmp": (packet.icmp(A, C), packet.icmp(C, A, 0)),
        "gre": (packet.other(A, C, 47), packet.other(C, A, 47)),
    }
    asking, answering = frames[kind]
    asked = twin(BLUE, group("out", *OUT), port("a", "blue", 1, "out"), port("c", "blue", 3, "out", host="h2"))
    asked.run(sent("a", asking))
    if answered:
        asked.run(tunnelled(answering))
    asked.age(timeout)
    assert asked.run(tunnelled(answering)).reason == Reason.NONE
    asked.age(180_000 if kind == "udp" else timeout)
    assert asked.run(tunnelled(answering)).replayed, "a packet makes it young again"
    asked.age(181_000 if kind == "udp" else timeout + 1)
    assert asked.run(tunnelled(answering)).reason == Reason.ACL_TO_PORT
    assert not asked.host.memory.connections()


def test_stateless_connections_expire_and_come_again(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("free", *ANY, stateful=False), port("a", "blue", 1, "free"), port("b", "blue", 2, "free"))
    arrival = sent("a", packet.tcp(A, B, 1000, 80, "A"))
    assert asked.thrice(arrival).connection == State.STATELESS
    asked.age(30_000)
    assert asked.run(arrival).replayed
    asked.age(30_001)
    assert not asked.run(arrival).replayed
    assert len(asked.host.memory.connections()) == 1


# Fragments

WHOLE = packet.udp(A, B, 1000, 53, payload=bytes(24))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("tunnel", [False, True])
def test_later_fragments_follow_their_first(twin: MakeTwin, family: int, tunnel: bool) -> None:  # noqa: FBT001
    sender = C if tunnel else A
    parts = packet.fragments(packet.udp(sender, B, 1000, 53, payload=bytes(24), family=family), 8)
    arrivals = [tunnelled(part) if tunnel else sent("a", part) for part in parts]
    dns = group("dns", rule("d4", "ingress", 17, 53), rule("d6", "ingress", 17, 53, ethertype="IPv6"))
    asked = twin(BLUE, dns, group("any", *ANY), A, port("b", "blue", 2, "dns"), C)
    assert asked.thrice(arrivals[1]).reason == Reason.FRAGMENT_ORPHAN
    for arrival in arrivals:
        observed = asked.thrice(arrival)
        assert observed.reason == Reason.NONE
        assert not observed.replayed, "fragments take the walk"
    assert len(asked.host.memory.connections()) == 1
    whole = packet.udp(sender, B, 1000, 53, payload=bytes(24), family=family)
    assert asked.thrice(tunnelled(whole) if tunnel else sent("a", whole)).replayed


def test_a_first_fragment_is_remembered_for_30_seconds(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    first, later, *_ = packet.fragments(WHOLE, 8)
    asked.run(sent("a", first))
    asked.age(29_000)
    assert asked.run(sent("a", later)).reason == Reason.NONE
    asked.age(1_100)
    assert asked.run(sent("a", later)).reason == Reason.FRAGMENT_ORPHAN
    asked.run(sent("a", first))
    assert asked.run(sent("a", later)).reason == Reason.NONE


def test_a_first_fragment_outlives_a_clock_that_steps_back(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    first, later, *_ = packet.fragments(WHOLE, 8)
    asked.run(sent("a", first))
    table = asked.host.datapath.maps["hr_fragments"]
    for key, value in list(table.items()):
        known = abi.Fragment.unpack(value)
        table.update(key, replace(known, seen=known.seen + 10**9).pack())
    assert asked.run(sent("a", later)).reason == Reason.NONE


def test_whose_fragment_it_is(twin: MakeTwin) -> None:
    """Where it came from, addresses, protocol and identification tell, together."""
    asked = twin(*STATE, port("d", "blue", 4, port_security=False))
    first, later, *_ = packet.fragments(WHOLE, 8, ident=7)
    asked.run(sent("a", first))
    assert asked.run(sent("a", packet.fragments(WHOLE, 8, ident=8)[1])).reason == Reason.FRAGMENT_ORPHAN
    assert asked.run(sent("a", packet.with_octet(later, 23, 6))).reason == Reason.FRAGMENT_ORPHAN
    assert asked.run(sent("a", packet.with_octet(later, 33, 3))).reason == Reason.FRAGMENT_ORPHAN
    assert asked.run(sent("d", later)).reason == Reason.FRAGMENT_ORPHAN
    assert asked.run(tunnelled(later)).reason == Reason.FRAGMENT_ORPHAN
    assert asked.run(sent("a", later)).reason == Reason.NONE


@pytest.mark.parametrize(("offset", "reason"), [(8, Reason.FRAGMENT_OVERLAP), (16, Reason.NONE), (24, Reason.NONE)])
def test_overlapping_fragments(twin: MakeTwin, offset: int, reason: Reason) -> None:
    asked = twin(*STATE)
    asked.run(sent("a", packet.fragments(WHOLE, 16)[0]))
    part = packet.fragments(WHOLE, 8)[offset // 8]
    assert asked.thrice(sent("a", part)).reason == reason


def test_a_newer_first_fragment_replaces_the_older(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(sent("a", packet.fragments(WHOLE, 16)[0]))
    asked.run(sent("a", packet.fragments(packet.udp(A, B, 1001, 53, payload=bytes(24)), 8)[0]))
    observed = asked.run(sent("a", packet.fragments(WHOLE, 8)[1]))
    assert observed.reason == Reason.NONE
    assert observed.key is not None
    assert observed.key.sport == 1001


def test_a_port_crowds_out_only_its_own_first_fragments(twin: MakeTwin) -> None:
    """The oracle keeps all; a port of the real one keeps so many, the newest."""
    asked = twin(*STATE)
    host = asked.host
    ours = packet.fragments(packet.udp(B, A, 1000, 53, payload=bytes(24)), 8)
    by_tunnel = packet.fragments(packet.udp(C, B, 1000, 53, payload=bytes(24)), 8)
    for arrival in (sent("b", ours[0]), tunnelled(by_tunnel[0])):
        assert asked.run(arrival).reason == Reason.NONE
    many = abi.FRAGMENTS_PORT + 3
    parts = [packet.fragments(WHOLE, 8, ident=number) for number in range(many)]
    for first, *_ in parts:
        assert host.run(sent("a", first)).reason == Reason.NONE
    reasons = [host.run(sent("a", later)).reason for _, later, *_ in parts]
    assert reasons == [Reason.FRAGMENT_ORPHAN] * 3 + [Reason.NONE] * abi.FRAGMENTS_PORT
    assert host.run(sent("b", ours[1])).reason == Reason.NONE
    assert host.run(tunnelled(by_tunnel[1])).reason == Reason.NONE
    known = [dict(host.datapath.maps[name].items()) for name in ("hr_fragments", "hr_fragment_slots")]
    assert set(known[0]) == set(known[1].values())
    assert len(known[0]) == abi.FRAGMENTS_PORT + 2


def kept(asked: Twin) -> dict[int, set[int]]:
    """Port index -> identifications of the first fragments in its slots."""
    found: dict[int, set[int]] = {}
    for slot, name in asked.host.datapath.maps["hr_fragment_slots"].items():
        ident = abi.FragmentKey.unpack(name).id
        found.setdefault(abi.FragmentSlot.unpack(slot).port, set()).add(socket.ntohs(ident))
    return found


@pytest.mark.parametrize("cast", ["unicast", "flooded"])
@pytest.mark.parametrize(("side", "tunnel"), [("from", False), ("to", False), ("to", True)])
def test_a_first_fragment_that_is_denied_leaves_no_trace(
    twin: MakeTwin,
    side: str,
    tunnel: bool,  # noqa: FBT001
    cast: str,
) -> None:
    ssh, web = rule("ssh", "ingress", 17, 22), rule("web", "egress", 17, 80)
    given = group("none", ssh, web) if side == "from" else group("none", ssh, *OUT)
    asked = twin(BLUE, given, port("a", "blue", 1, "none"), port("b", "blue", 2, "none"), C)
    if side == "to" and not tunnel and cast == "flooded":
        asked.apply(Desired.of(one for one in asked.state.all() if one != C))  # who is elsewhere gets it
    fields = {"dmac": BROADCAST} if cast == "flooded" else {}
    parts = packet.fragments(packet.udp(C if tunnel else A, B, 1000, 53, payload=bytes(24), **fields), 8)
    first, later = (tunnelled(part) if tunnel else sent("a", part) for part in parts[:2])
    denied = Reason.ACL_FROM_PORT if side == "from" else Reason.FLOODED if cast == "flooded" else Reason.ACL_TO_PORT
    assert asked.thrice(first).reason == denied
    assert asked.thrice(later).reason == Reason.FRAGMENT_ORPHAN
    assert not kept(asked)
    assert not dict(asked.host.datapath.maps["hr_fragments"].items())


def test_a_denied_first_fragment_replaces_none(twin: MakeTwin) -> None:
    dns = group("dns", rule("d4", "ingress", 17, 53))
    asked = twin(BLUE, dns, group("any", *ANY), A, port("b", "blue", 2, "dns"), C)
    for sender, arrive in ((A, lambda part: sent("a", part)), (C, tunnelled)):
        good = packet.fragments(packet.udp(sender, B, 1000, 53, payload=bytes(24)), 8)
        bad = packet.fragments(packet.udp(sender, B, 1000, 22, payload=bytes(24)), 8)
        assert asked.run(arrive(good[0])).reason == Reason.NONE
        assert asked.thrice(arrive(bad[0])).reason == Reason.ACL_TO_PORT
        observed = asked.thrice(arrive(bad[1]))
        assert observed.key is not None
        assert (observed.reason, observed.key.dport) == (Reason.NONE, 53)


def test_fragments_that_have_no_connection_follow_their_first_too(twin: MakeTwin) -> None:
    """What implicit rules pass, and floods."""
    deaf = (group("deaf", *OUT), port("deaf", "blue", 9, "deaf"))
    asked = twin(*STATE, *deaf)
    implicit = packet.fragments(packet.udp(A, B, 68, 67, payload=bytes(24)), 8)
    flooded = packet.fragments(packet.udp(A, B, 1000, 53, payload=bytes(24), dmac=BROADCAST), 8, ident=2)
    brought = packet.fragments(packet.udp(C, B, 1000, 53, payload=bytes(24), dmac=BROADCAST), 8, ident=3)
    for part in implicit:
        assert asked.thrice(sent("a", part)).reason == Reason.NONE
    for arrivals, takers in (
        ([sent("a", part) for part in flooded], {"b", "192.0.2.2"}),
        ([tunnelled(part) for part in brought], {"a", "b"}),
    ):
        for arrival in arrivals:
            observed = asked.thrice(arrival)
            assert {one.port or one.vtep for one in observed.outputs} == takers
            assert [(one.port, one.reason) for one in observed.refused] == [("deaf", Reason.ACL_TO_PORT)]
    assert not asked.host.memory.connections()


def test_who_takes_no_fragments_has_all_his_slots(twin: MakeTwin) -> None:
    """What others are sent by tunnel, what is flooded on other networks, and what his groups deny costs him none."""
    red, picky = network("red", 200), group("picky", *OUT, rule("d4", "ingress", 17, 53))
    asked = twin(*STATE, picky, port("v", "blue", 4, "picky"), red, port("r", "red", 1, "any"))
    host, victim = asked.host, asked.state.ports["v"]
    ours = packet.fragments(packet.udp(C, victim, 1000, 53, payload=bytes(24)), 8, ident=9999)
    on_red = packet.fragments(packet.udp(C, B, 1000, 53, payload=bytes(24), dmac=BROADCAST), 8, ident=9998)
    assert asked.run(tunnelled(ours[0])).reason == Reason.NONE
    assert asked.run(tunnelled(on_red[0], vni=200)).reason == Reason.FLOODED
    for number in range(abi.FRAGMENTS_PORT + 3):
        denied = packet.udp(C, victim, 1000, 22, payload=bytes(24))
        flood = packet.udp(C, victim, 1000, 22, payload=bytes(24), dmac=BROADCAST)
        assert host.run(tunnelled(packet.fragments(denied, 8, number)[0])).reason == Reason.ACL_TO_PORT
        assert host.run(tunnelled(packet.fragments(flood, 8, number)[0])).reason == Reason.FLOODED
    places = kept(asked)
    assert 0 not in places
    assert places[host.ports["v"]] == {9999}
    assert places[host.ports["r"]] == {9998}
    assert sorted(len(idents) for idents in places.values()) == [1, 1, abi.FRAGMENTS_PORT]
    assert host.run(tunnelled(ours[1])).reason == Reason.NONE
    assert host.run(tunnelled(on_red[1], vni=200)).reason == Reason.FLOODED


def test_a_first_fragment_sent_again_takes_no_other_slot(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for _ in range(abi.FRAGMENTS_PORT + 1):
        asked.host.run(sent("a", packet.fragments(WHOLE, 8)[0]))
    assert len(dict(asked.host.datapath.maps["hr_fragment_slots"].items())) == 1


def test_a_later_fragment_changes_no_tcp_state_and_makes_no_connection(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    parts = packet.fragments(packet.tcp(A, B, 1000, 80, "FA", payload=bytes(40)), 24)
    assert asked.run(sent("a", parts[0])).connection == State.CLOSING
    tcp(asked, B, A, "FA")
    assert asked.thrice(sent("a", parts[1])).connection == State.TIME_WAIT
    asked.age(20_000)
    asked.run(sent("a", parts[0]))
    tcp(asked, A, B, "R")
    asked.age(10_001)
    assert not asked.host.memory.connections()
    observed = asked.thrice(sent("a", parts[1]))
    assert (observed.reason, observed.connection) == (Reason.NONE, None)
    assert not asked.host.memory.connections()


def test_a_reset_in_fragments_makes_nothing(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for part in packet.fragments(packet.tcp(A, B, 1000, 80, "R", payload=bytes(24)), 24):
        assert asked.thrice(sent("a", part)).connection is None


# ICMP errors


@pytest.mark.parametrize(("kind", "family"), [(3, 4), (4, 4), (5, 4), (11, 4), (12, 4), (1, 6), (2, 6), (3, 6), (4, 6)])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp", "gre"])
def test_an_error_belongs_to_the_connection_it_quotes(twin: MakeTwin, protocol: str, kind: int, family: int) -> None:
    asked = twin(BLUE, group("out", *OUT), port("a", "blue", 1, "out"), port("c", "blue", 3, "out", host="h2"))
    quoted = {
        "tcp": packet.tcp(A, C, 1000, 80, "A", family=family),
        "udp": packet.udp(A, C, 1000, 53, family=family),
        "icmp": packet.icmp(A, C, 8 if family == 4 else 128, family=family),
        "gre": packet.other(A, C, 47, payload=bytes(8), family=family),
    }[protocol]
    router = Somewhere("02:00:00:00:00:fe", ("10.0.0.254", "fd00::fe"))
    error = tunnelled(packet.icmp_error(router, A, quoted, kind, family=family))
    assert asked.thrice(error).reason == Reason.ICMP_UNRELATED
    asked.run(sent("a", quoted))
    before = asked.host.memory.facts()
    observed = asked.thrice(error)
    assert (observed.reason, observed.rule_to, observed.replayed) == (Reason.NONE, "ESTABLISHED", False)
    assert asked.host.memory.facts() == before


def test_an_error_about_a_reply_passes_the_other_way(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("web", rule("in", "ingress", 6, 80)), port("a", "blue", 1, "web"), C)
    asked.run(tunnelled(packet.tcp(C, A, 1000, 80)))
    answer = packet.tcp(A, C, 80, 1000, "SA")
    asked.run(sent("a", answer))
    error = packet.icmp_error(A, C, packet.tcp(C, A, 1000, 80, "A"))
    assert asked.thrice(sent("a", error)).rule_from == "ESTABLISHED"
    assert asked.thrice(tunnelled(packet.icmp_error(C, A, answer))).rule_to == "ESTABLISHED"


QUOTED = packet.udp(A, C, 1000, 53, payload=b"12345678")
UNQUOTABLE = {
    "seven octets of transport": packet.icmp_error(C, A, QUOTED, room=27),
    "no octet": packet.icmp_error(C, A, QUOTED, room=0),
    "half an IP header": packet.icmp_error(C, A, QUOTED, room=12),
    "another source": packet.icmp_error(C, A, packet.with_octet(QUOTED, 29, 9)),
    "another port": packet.icmp_error(C, A, packet.with_octet(QUOTED, 35, 9)),
    "another version": packet.icmp_error(C, A, packet.with_octet(QUOTED, 14, 0x65)),
    "a short header length": packet.icmp_error(C, A, packet.with_octet(QUOTED, 14, 0x44)),
    "a later fragment": packet.icmp_error(C, A, packet.with_octet(QUOTED, 21, 1)),
    "an ICMP error": packet.icmp_error(C, A, packet.icmp(A, C, 3)),
    "the opposite direction": packet.icmp_error(C, A, packet.udp(C, A, 53, 1000)),
}


@pytest.mark.parametrize("name", UNQUOTABLE)
def test_an_error_that_quotes_nothing_known(twin: MakeTwin, name: str) -> None:
    asked = twin(*STATE)
    asked.run(sent("a", QUOTED))
    assert asked.thrice(tunnelled(UNQUOTABLE[name])).reason == Reason.ICMP_UNRELATED


def test_eight_octets_of_transport_are_enough(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(sent("a", QUOTED))
    assert asked.thrice(tunnelled(packet.icmp_error(C, A, QUOTED, room=28))).reason == Reason.NONE


def test_stateless_and_open_ports_ask_their_rules_about_errors(twin: MakeTwin) -> None:
    free = group("free", *OUT, rule("err", "ingress", 1, 3), stateful=False)
    asked = twin(BLUE, free, port("a", "blue", 1, "free"), port("c", "blue", 3, host="h2"))
    assert asked.thrice(tunnelled(packet.icmp_error(C, A, QUOTED))).rule_to == "err"
    assert asked.thrice(tunnelled(packet.icmp_error(C, A, QUOTED, 11))).reason == Reason.ACL_TO_PORT
    asked = twin(BLUE, port("a", "blue", 1, port_security=False), C)
    assert asked.thrice(tunnelled(packet.icmp_error(C, A, QUOTED))).rule_to == "OPEN"


def test_an_expired_connection_has_no_errors(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    asked.run(sent("a", QUOTED))
    asked.age(30_001)
    assert asked.thrice(tunnelled(packet.icmp_error(C, A, QUOTED))).reason == Reason.ICMP_UNRELATED


# What makes no connection


@pytest.mark.parametrize("kind", [130, 131, 132, 133, 134, 135, 136, 137, 143])
def test_discovery_and_listeners_make_no_connection(twin: MakeTwin, kind: int) -> None:
    asked = twin(*STATE)
    frame = packet.icmp(C, A, kind, family=6)
    assert asked.thrice(tunnelled(frame)).connection is None
    assert not asked.host.memory.connections()


def test_frames_to_multicast_macs_make_no_connection(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    frame = packet.udp(A, B, 1000, 53, dmac=BROADCAST)
    assert asked.thrice(sent("a", frame)).reason == Reason.FLOODED
    assert not asked.host.memory.connections()


def test_frames_to_multicast_macs_belong_to_no_connection(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("out", *OUT), port("a", "blue", 1, "out"), C)
    asked.run(sent("a", packet.udp(A, C, 1000, 53)))
    reply = packet.udp(C, A, 53, 1000)
    assert asked.thrice(tunnelled(reply)).reason == Reason.NONE
    observed = asked.thrice(tunnelled(packet.udp(C, A, 53, 1000, dmac=BROADCAST)))
    assert [(one.port, one.reason) for one in observed.refused] == [("a", Reason.ACL_TO_PORT)]


def test_what_implicit_rules_pass_makes_no_connection(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for arrival in (sent("a", packet.udp(A, B, 68, 67)), tunnelled(packet.udp(C, A, 67, 68))):
        assert asked.thrice(arrival).connection is None
    assert not asked.host.memory.connections()


# Keys


def test_one_tuple_of_two_networks_is_two_connections(twin: MakeTwin) -> None:
    red = (port("ra", "red", 1, "any"), port("rb", "red", 2, "any"))
    asked = twin(*STATE, network("red", 200), *red)
    for sender in ("a", "ra"):
        assert asked.thrice(sent(sender, packet.udp(A, B, 1000, 53))).connection == State.NEW
    assert asked.run(sent("b", packet.udp(B, A, 53, 1000))).connection == State.ASSURED
    assert len(asked.host.memory.connections()) == 2
    assert {conn.state for conn in asked.host.memory.connections().values()} == {State.NEW, State.ASSURED}


def test_one_tuple_of_two_vnis_is_two_connections(twin: MakeTwin) -> None:
    red = port("ra", "red", 1, "any")
    asked = twin(*STATE, network("red", 200), red, port("rc", "red", 3, "any", host="h2"))
    for vni, receiver in ((100, "a"), (200, "ra")):
        observed = asked.thrice(tunnelled(packet.udp(C, A, 1000, 53), vni=vni))
        assert observed.outputs[0].port == receiver
    assert len(asked.host.memory.connections()) == 2


def test_a_new_connection_ends_those_that_hold_its_keys(twin: MakeTwin) -> None:
    """Two senders without port security of one tuple, answered by one receiver: the second's reply key is taken."""
    two = [port(name, "blue", number, port_security=False) for name, number in (("x", 8), ("y", 9))]
    asked = twin(*STATE, *two)
    guest = Somewhere("02:00:00:00:00:08", ("10.0.0.50",))
    assert asked.run(sent("x", packet.udp(guest, B, 1000, 53))).connection == State.NEW
    other = Somewhere("02:00:00:00:00:09", ("10.0.0.50",))
    assert asked.run(sent("y", packet.udp(other, B, 1000, 53))).connection == State.NEW
    (conn,) = asked.host.memory.connections().values()
    assert asked.host.memory.place(conn.key[0].where) == Place("port", "y on blue")
    answer = asked.run(sent("b", packet.udp(B, other, 53, 1000)))
    assert answer.outputs[0].port == "y"


def test_a_port_on_another_network_begins_anew(twin: MakeTwin) -> None:
    """Its connections stay with the network: whoever has the same address on the other one is a stranger."""
    asked = twin(*STATE, network("red", 200), group("out", *OUT))
    asked.run(sent("a", packet.udp(A, B, 1000, 53)))
    answer = packet.udp(B, A, 53, 1000)
    assert asked.run(sent("b", answer)).connection == State.ASSURED
    here = [replace(one, network="red", security_groups=("out",)) for one in (A, B)]
    asked.apply(Desired.of((*asked.state.all(), *here)))
    assert asked.run(sent("b", answer)).reason == Reason.ACL_TO_PORT
    asked.apply(Desired.of((*asked.state.all(), A, B)))
    assert asked.run(sent("b", answer)).connection == State.ASSURED


def test_a_receiver_that_moved_is_answered_where_it_is(twin: MakeTwin) -> None:
    asked = twin(BLUE, group("out", *OUT), group("any", *ANY), port("a", "blue", 1, "out"), B, C)
    asked.run(sent("a", packet.udp(A, B, 1000, 53)))
    moved = port("b", "blue", 2, "any", host="h2")
    asked.apply(Desired.of((*asked.state.all(), moved)))
    assert asked.thrice(sent("a", packet.udp(A, B, 1000, 53))).outputs[0].vtep == "192.0.2.2"
    assert asked.thrice(tunnelled(packet.udp(B, A, 53, 1000))).connection == State.ASSURED
    asked.apply(Desired.of((*asked.state.all(), B)))
    assert asked.thrice(sent("a", packet.udp(A, B, 1000, 53))).outputs[0].port == "b"
    assert asked.thrice(sent("b", packet.udp(B, A, 53, 1000))).reason == Reason.NONE
    assert asked.thrice(tunnelled(packet.udp(B, A, 53, 1000))).reason == Reason.ACL_TO_PORT


def test_a_port_that_becomes_stateful_tracks_from_then_on(twin: MakeTwin) -> None:
    free, keen = group("free", *OUT, stateful=False), group("keen", *OUT)
    asked = twin(BLUE, free, keen, port("a", "blue", 1, "free"), C)
    asking, answering = sent("a", packet.udp(A, C, 1000, 53)), tunnelled(packet.udp(C, A, 53, 1000))
    assert asked.thrice(asking).connection == State.STATELESS
    assert asked.thrice(answering).reason == Reason.ACL_TO_PORT
    asked.apply(Desired.of((*asked.state.all(), port("a", "blue", 1, "keen"))))
    assert asked.thrice(answering).reason == Reason.ACL_TO_PORT
    assert asked.thrice(asking).connection == State.NEW
    assert asked.thrice(answering).connection == State.ASSURED
    asked.apply(Desired.of((*asked.state.all(), port("a", "blue", 1, "free"))))
    assert asked.thrice(answering).reason == Reason.NONE, "connections outlive decisions"


# Ends


def test_a_connection_that_is_being_retired_is_busy(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    host, arrival = asked.host, sent("a", packet.udp(A, B, 1000, 53))
    host.run(arrival)
    table, ((index, conn),) = host.datapath.maps["hr_conns"], host.memory.connections().items()
    slot = abi.U32(value=index).pack()
    table.update(slot, replace(conn, id=conn.id | abi.CONN_DEAD).pack())
    assert (host.run(arrival).reason, host.run(arrival).outputs) == (Reason.BUSY, ())
    table.update(slot, conn.pack())
    assert host.run(arrival).replayed


def test_an_entry_of_a_connection_that_is_gone_is_nobodys(twin: MakeTwin) -> None:
    """Somebody wrote a decision while another retired its connection."""
    asked = twin(*STATE)
    host, arrival = asked.host, sent("a", packet.udp(A, B, 1000, 53))
    host.run(arrival)
    table, ((index, conn),) = host.datapath.maps["hr_conns"], host.memory.connections().items()
    table.update(abi.U32(value=index).pack(), replace(conn, id=conn.id + 4096).pack())
    observed = host.run(arrival)
    assert (observed.reason, observed.replayed) == (Reason.NONE, False)
    (fresh,) = (found for found in host.memory.connections().values() if found.id != conn.id + 4096)
    assert host.memory.find(fresh.key[0]) == (fresh, False)


def forge(host: PacketHost, key: abi.FlowKey, owner: abi.Conn) -> bytes:
    """Let a key's entry name somebody else's live connection, as a reused element of the table may for a moment."""
    flows, found = host.datapath.maps["hr_flows"], host.memory.find(owner.key[0])
    assert found == (owner, False)
    value = flows.lookup(owner.key[0].pack()) or b""
    flows.update(key.pack(), value)
    return value


def test_a_new_connection_ends_no_stranger(twin: MakeTwin) -> None:
    """What is found under its key is the key's own connection, or not touched."""
    host = twin(*STATE).host
    host.run(sent("a", packet.udp(A, B, 1000, 53)))
    host.run(sent("b", packet.udp(B, C, 7, 53)))
    table = host.memory.live()
    (index, conn), (_, stranger) = table.items()
    expired = replace(conn, timeout=0, counter=(replace(conn.counter[0], seen=1), conn.counter[1]))
    host.datapath.maps["hr_conns"].update(abi.U32(value=index).pack(), expired.pack())
    wait_until(lambda: len(host.memory.live()) == 1, what="the first is swept")
    forge(host, conn.key[1], stranger)
    for _ in range(2):
        assert host.run(sent("a", packet.udp(A, B, 1000, 53))).reason == Reason.NONE
        assert list(host.memory.live().values()) == [stranger]
    host.datapath.maps["hr_flows"].delete(conn.key[1].pack())
    assert host.run(sent("a", packet.udp(A, B, 1000, 53))).connection == State.NEW
    assert not host.memory.inconsistencies()


def test_an_ended_connection_takes_only_its_own_keys(twin: MakeTwin) -> None:
    host = twin(*STATE).host
    host.run(sent("a", packet.udp(A, B, 1000, 53)))
    host.run(sent("b", packet.udp(B, C, 7, 53)))
    (index, conn), (_, stranger) = host.memory.live().items()
    value = forge(host, conn.key[1], stranger)
    expired = replace(conn, timeout=0, counter=(replace(conn.counter[0], seen=1), conn.counter[1]))
    host.datapath.maps["hr_conns"].update(abi.U32(value=index).pack(), expired.pack())
    wait_until(lambda: len(host.memory.live()) == 1, what="it is swept")
    flows = host.datapath.maps["hr_flows"]
    assert (flows.lookup(conn.key[0].pack()), flows.lookup(conn.key[1].pack())) == (None, value)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_connection_that_lost_a_key_is_replaced(twin: MakeTwin, lost: int) -> None:
    """Once nobody can still be making it, whichever of its keys it lost to a race."""
    asked = twin(*STATE)
    host, ways = asked.host, (sent("a", packet.udp(A, B, 1000, 53)), sent("b", packet.udp(B, A, 53, 1000)))
    host.run(ways[0])
    ((index, conn),) = host.memory.live().items()
    host.datapath.maps["hr_flows"].delete(conn.key[lost].pack())
    assert host.run(ways[lost]).reason == Reason.NONE
    assert list(host.memory.live().values()) == [conn], "it may be in the making"
    settled = replace(conn, created=conn.created - 2_000_000_000)
    host.datapath.maps["hr_conns"].update(abi.U32(value=index).pack(), settled.pack())
    assert host.run(ways[lost]).connection == State.NEW
    (fresh,) = host.memory.live().values()
    assert (fresh.id != conn.id, fresh.key[0]) == (True, conn.key[lost])
    assert host.run(ways[lost]).replayed
    assert not host.memory.inconsistencies()


# The sweeper, which runs by itself from the load on


def test_the_sweeper_takes_what_expired_and_nothing_else(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    host = asked.host
    for number in range(6):
        asked.run(sent("a", packet.udp(A, C, number, 53)))
    before = host.memory.live()
    table = host.datapath.maps["hr_conns"]
    expired = dict(list(before.items())[:4])
    for index, conn in expired.items():
        counter = tuple(replace(one, seen=1) for one in conn.counter)
        table.update(abi.U32(value=index).pack(), replace(conn, timeout=0, counter=counter).pack())
    wait_until(lambda: len(host.memory.live()) <= 2, what="the expired are swept")
    assert host.memory.live() == {index: conn for index, conn in before.items() if index not in expired}
    assert not host.memory.inconsistencies(), "keys and quota are given back"
    assert sorted(host.memory.free()) == sorted(expired)


def test_what_expired_is_nobodys_before_it_is_swept(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    arrival = sent("a", packet.udp(A, C, 1, 53))
    asked.run(arrival)
    (before,) = asked.host.memory.live().values()
    asked.age(30_001)
    assert not asked.run(arrival).replayed
    (after,) = asked.host.memory.live().values()
    assert (after.id != before.id, after.counter[0].packets) == (True, 1)
