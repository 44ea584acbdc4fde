"""The oracle's track: docs/pipeline.md, by that heading."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.abi import Reason, State
from headrace.datapath.connection import Connection
from headrace.datapath.decision import Arrival, Decision, Place
from headrace.model import Rule, Segment
from headrace.testing import packet
from headrace.testing.packet import Somewhere
from headrace.testing.world import ANY, OUT, World, group, network, port, rule

A = Somewhere("02:00:00:00:00:01", ("10.0.0.1", "fd00::1"))
B = Somewhere("02:00:00:00:00:02", ("10.0.0.2", "fd00::2"))
C = Somewhere("02:00:00:00:00:03", ("10.0.0.3", "fd00::3"))


@pytest.fixture
def world() -> World:
    return World(
        network("blue"),
        group("client", *OUT),
        group("server", rule("in4", "ingress"), rule("in6", "ingress", ethertype="IPv6"), *OUT),
        group("loose", *ANY, stateful=False),
        port("a", "blue", 1, "client"),
        port("b", "blue", 2, "server"),
        port("c", "blue", 3, "client"),
    )


def send(world: World, frame: bytes, name: str = "a", **fields: Any) -> Decision:
    return world.send(name, frame, **fields).hops[0].decision


def forth(world: World, flags: str, **fields: Any) -> Decision:
    return send(world, packet.tcp(A, B, 1000, 80, flags, **fields))


def back(world: World, flags: str, **fields: Any) -> Decision:
    return send(world, packet.tcp(B, A, 80, 1000, flags, **fields), "b")


def only(world: World, host: str = "h1") -> Connection:
    """The host's only connection."""
    found = {id(connection): connection for connection in world.memory[host].flows.values()}
    assert len(found) == 1
    return next(iter(found.values()))


def test_a_tcp_connection_from_open_to_close(world: World) -> None:
    steps = [
        (forth, "S", State.SYN_SENT),
        (forth, "S", State.SYN_SENT),
        (back, "SA", State.SYN_RECEIVED),
        (back, "SA", State.SYN_RECEIVED),
        (back, "A", State.SYN_RECEIVED),
        (forth, "A", State.ESTABLISHED),
        (forth, "S", State.ESTABLISHED),
        (back, "SA", State.ESTABLISHED),
        (back, "PA", State.ESTABLISHED),
        (back, "FA", State.CLOSING),
        (forth, "A", State.CLOSING),
        (back, "FA", State.CLOSING),
        (forth, "FA", State.TIME_WAIT),
        (back, "A", State.TIME_WAIT),
        (back, "R", State.CLOSED),
        (forth, "A", State.CLOSED),
        (forth, "FA", State.CLOSED),
    ]
    for number, (way, flags, state) in enumerate(steps):
        decision = way(world, flags)
        assert (number, decision.reason, decision.connection) == (number, Reason.NONE, state)
    assert sum(only(world).packets) == len(steps)


@pytest.mark.parametrize(
    ("way", "flags", "state"),
    [
        (back, "S", State.SYN_RECEIVED),
        (back, "A", State.SYN_SENT),
        (forth, "A", State.SYN_SENT),
        (forth, "FA", State.CLOSING),
        (back, "RA", State.CLOSED),
        (forth, "R", State.CLOSED),
    ],
)
def test_from_syn_sent(world: World, way: Any, flags: str, state: State) -> None:
    forth(world, "S")
    assert way(world, flags).connection == state


@pytest.mark.parametrize(
    ("flags", "state"),
    [("S", State.SYN_SENT), ("A", State.SYN_SENT), ("PA", State.SYN_SENT), ("FA", State.CLOSING), ("R", None)],
)
def test_new_segments(world: World, flags: str, state: State | None) -> None:
    decision = forth(world, flags)
    assert (decision.reason, decision.connection) == (Reason.NONE, state)
    assert len(world.memory["h1"]) == (2 if state else 0)
    if state:
        assert only(world).adopted == (flags in {"A", "PA", "FA"})


def test_keys(world: World) -> None:
    forth(world, "S")
    connection = only(world)
    assert connection.original == (
        *(connection.original.source, connection.original.destination, 6, 1000, 80),
        Place("port", "a on blue"),
    )
    assert connection.reply is not None
    assert (connection.reply.sport, connection.reply.dport, connection.reply.where) == (
        80,
        1000,
        Place("port", "b on blue"),
    )
    assert (connection.tracks_from, connection.tracks_to) == (True, True)


def test_keys_over_the_wire(world: World) -> None:
    world.put(port("b", "blue", 2, "server", host="h2"))
    forth(world, "S")
    near, there = only(world, "h1"), only(world, "h2")
    assert near.reply is not None
    assert there.reply is not None
    assert (near.original.where, near.reply.where) == (Place("port", "a on blue"), Place("segment", Segment(id=100)))
    assert (there.original.where, there.reply.where) == (Place("segment", Segment(id=100)), Place("port", "b on blue"))
    assert (near.tracks_from, near.tracks_to) == (True, False)
    assert (there.tracks_from, there.tracks_to) == (False, True)
    journey = world.send("b", packet.tcp(B, A, 80, 1000, "SA"))
    assert [hop.decision.connection for hop in journey.hops] == [State.SYN_RECEIVED] * 2


@pytest.mark.parametrize("flags", ["FA", "R"])
def test_a_syn_reopens_what_is_finished(world: World, flags: str) -> None:
    forth(world, "S")
    back(world, flags)
    forth(world, flags)
    assert only(world).state in {State.TIME_WAIT, State.CLOSED}
    assert back(world, "SA").connection != State.SYN_SENT
    assert forth(world, "S").connection == State.SYN_SENT
    assert only(world).packets == [1, 0]


def test_a_syn_in_the_other_direction_is_judged_as_new(world: World) -> None:
    forth(world, "S")
    forth(world, "R")
    assert back(world, "S").reason == Reason.ACL_TO_PORT, "the client lets nobody in"
    assert not world.memory["h1"].flows
    world.put(port("a", "blue", 1, "server"))
    assert back(world, "S").connection == State.SYN_SENT
    assert only(world).original.where == Place("port", "b on blue")


def test_what_is_dropped_changes_nothing(world: World) -> None:
    forth(world, "S")
    world.put(port("b", "blue", 2, "server", admin_up=False))
    assert forth(world, "R").reason == Reason.PORT_DOWN
    assert only(world).state == State.SYN_SENT
    assert only(world).packets == [1, 0]


TIMEOUTS = [
    (["S"], 120_000),
    (["S", "<SA"], 60_000),
    (["S", "<SA", "A"], 432_000_000),
    (["A"], 120_000),
    (["A", "<A"], 432_000_000),
    (["A", "FA"], 240_000),
    (["A", "FA", "<FA"], 120_000),
    (["A", "R"], 10_000),
]


@pytest.mark.parametrize(("segments", "timeout"), TIMEOUTS)
def test_silence_ends_tcp(world: World, segments: list[str], timeout: int) -> None:
    for segment in segments:
        if segment[0] == "<":
            back(world, segment[1:])
        else:
            forth(world, segment)
    world.now += timeout
    assert back(world, "A").reason == Reason.NONE
    world.now += only(world).timeout + 1
    assert back(world, "A").reason == Reason.ACL_TO_PORT
    assert not world.memory["h1"].flows


@pytest.mark.parametrize(
    ("one", "other", "new", "assured"),
    [
        (packet.udp(A, B, 1, 53), packet.udp(B, A, 53, 1), 30_000, 180_000),
        (packet.icmp(A, B, 8), packet.icmp(B, A, 0), 30_000, 30_000),
        (packet.icmp(A, B, 128, family=6), packet.icmp(B, A, 129, family=6), 30_000, 30_000),
        (packet.sctp(A, B, 1, 9), packet.sctp(B, A, 9, 1), 600_000, 600_000),
        (packet.other(A, B, 47), packet.other(B, A, 47), 600_000, 600_000),
    ],
    ids=["udp", "icmp", "icmpv6", "sctp", "gre"],
)
def test_others_are_new_until_answered(world: World, one: bytes, other: bytes, new: int, assured: int) -> None:
    assert send(world, one).connection == State.NEW
    assert send(world, one).connection == State.NEW
    assert only(world).timeout == new
    world.now += new
    assert send(world, other, "b").connection == State.ASSURED
    assert send(world, one).connection == State.ASSURED
    assert only(world).timeout == assured
    world.now += assured + 1
    assert send(world, other, "b").reason == Reason.ACL_TO_PORT


@pytest.mark.parametrize(("question", "answer"), [(8, 0), (13, 14), (15, 16), (17, 18)])
def test_icmp_queries(world: World, question: int, answer: int) -> None:
    assert send(world, packet.icmp(B, A, answer, ident=7), "b").reason == Reason.ACL_TO_PORT
    send(world, packet.icmp(A, B, question, 5, ident=7))
    assert send(world, packet.icmp(B, A, answer, 5, ident=8), "b").reason == Reason.ACL_TO_PORT
    assert send(world, packet.icmp(B, A, answer, 0, ident=7), "b").reason == Reason.ACL_TO_PORT
    assert send(world, packet.icmp(B, A, answer, 5, ident=7), "b").rule_to == "ESTABLISHED"


def test_an_answer_opens_no_way_for_questions(world: World) -> None:
    assert send(world, packet.icmp(A, B, 0, ident=7)).reason == Reason.NONE
    assert only(world).reply is None
    assert send(world, packet.icmp(B, A, 8, ident=7), "b").reason == Reason.ACL_TO_PORT
    assert send(world, packet.icmp(A, B, 42)).connection == State.NEW


def test_without_a_reply_key_the_receiver_has_no_part(world: World) -> None:
    answer = packet.icmp(A, B, 0, ident=7)
    send(world, answer)
    assert send(world, error(B, A, answer), "b").reason == Reason.ICMP_UNRELATED
    world.put(group("server"))
    assert send(world, answer).reason == Reason.ACL_TO_PORT
    assert only(world).state == State.NEW


def test_discovery_and_implicit_make_no_connection(world: World) -> None:
    world.put(port("b", "blue", 2, port_security=False))
    send(world, packet.na(A, B, "fd00::1"))
    send(world, packet.icmp(A, B, 143, family=6))
    send(world, packet.udp(A, B, 68, 67))
    send(world, packet.udp(B, A, 67, 68), "b")
    assert not world.memory["h1"].flows


def test_stateless_connections_go_one_way(world: World) -> None:
    world.put(port("a", "blue", 1, "loose"), port("b", "blue", 2, "loose"))
    assert forth(world, "S").connection == State.STATELESS
    assert back(world, "SA").connection == State.STATELESS
    assert forth(world, "R").connection == State.STATELESS
    assert len(world.memory["h1"]) == 2
    assert only_original(world) == {Place("port", "a on blue"), Place("port", "b on blue")}
    world.now += 30_001
    assert forth(world, "R").connection is None


def only_original(world: World) -> set[Place]:
    connections = world.memory["h1"].flows.values()
    assert all(connection.reply is None for connection in connections)
    return {connection.original.where for connection in connections}


def test_a_port_that_becomes_stateful_starts_to_track(world: World) -> None:
    world.put(port("a", "blue", 1, "loose"), port("b", "blue", 2, "loose"))
    forth(world, "S")
    back(world, "SA")
    world.put(port("a", "blue", 1, "client"))
    assert forth(world, "A").connection == State.SYN_SENT, "adopted"
    assert only(world).tracks_from
    assert back(world, "A").rule_to == "ESTABLISHED"


def test_a_side_that_becomes_stateful_joins(world: World) -> None:
    world.put(port("b", "blue", 2, "loose"))
    forth(world, "S")
    assert (only(world).tracks_from, only(world).tracks_to) == (True, False)
    world.put(port("b", "blue", 2, "server"))
    forth(world, "S")
    assert (only(world).tracks_from, only(world).tracks_to) == (True, True)


def test_counters(world: World) -> None:
    data = packet.tcp(A, B, 1000, 80, "PA", payload=bytes(3000))
    segments = send(world, data, gso_size=1400)
    assert (segments.packets, segments.octets) == (3, 3054 + 2 * 54)
    reply = back(world, "A")
    assert (reply.packets, reply.octets) == (1, 54)
    assert (only(world).packets, only(world).octets) == ([3, 1], [3054 + 108, 54])
    exact = send(world, packet.udp(A, B, 1, 2, payload=bytes(2800)), gso_size=1400)
    assert (exact.packets, exact.octets) == (2, 2842 + 42)


@pytest.mark.parametrize("family", [4, 6])
class TestFragments:
    def parts(self, family: int, **fields: Any) -> list[bytes]:
        return packet.fragments(packet.udp(A, B, 1000, 53, payload=bytes(40), family=family), 16, **fields)

    def test_later_ones_take_the_ports_of_the_first(self, world: World, family: int) -> None:
        world.put(group("client", rule("dns", "egress", 17, 53, ethertype=f"IPv{family}")))
        for part in self.parts(family):
            assert send(world, part).rule_from == "dns"
        assert only(world).packets == [3, 0]
        assert only(world).original.dport == 53

    def test_in_any_order_after_the_first(self, world: World, family: int) -> None:
        first, second, third = self.parts(family)
        assert send(world, second).reason == Reason.FRAGMENT_ORPHAN
        assert [send(world, part).reason for part in (first, third, second)] == [Reason.NONE] * 3

    def test_each_packet_and_place_by_itself(self, world: World, family: int) -> None:
        send(world, self.parts(family)[0])
        assert send(world, self.parts(family, ident=0x4321)[1]).reason == Reason.FRAGMENT_ORPHAN
        moved = packet.fragments(packet.udp(C, B, 1000, 53, payload=bytes(40), family=family), 16)[1]
        assert send(world, moved, "c").reason == Reason.FRAGMENT_ORPHAN

    def test_kept_for_30_seconds(self, world: World, family: int) -> None:
        first, second, third = self.parts(family)
        send(world, first)
        world.now += 30_000
        assert send(world, second).reason == Reason.NONE
        world.now += 1
        assert send(world, third).reason == Reason.FRAGMENT_ORPHAN

    def test_overlap(self, world: World, family: int) -> None:
        first = packet.fragments(packet.udp(A, B, 1000, 53, payload=bytes(40), family=family), 24)[0]
        send(world, first)
        assert send(world, self.parts(family)[1]).reason == Reason.FRAGMENT_OVERLAP
        assert send(world, self.parts(family)[2]).reason == Reason.NONE

    @pytest.mark.parametrize("side", ["from", "to"])
    def test_a_first_one_that_is_denied_leaves_no_trace(self, world: World, family: int, side: str) -> None:
        denying, direction = ("client", "egress") if side == "from" else ("server", "ingress")
        world.put(group(denying, rule("other", direction, 17, 54, ethertype=f"IPv{family}")))
        denied = Reason.ACL_FROM_PORT if side == "from" else Reason.ACL_TO_PORT
        reasons = [send(world, part).reason for part in self.parts(family)]
        assert reasons == [denied, Reason.FRAGMENT_ORPHAN, Reason.FRAGMENT_ORPHAN]
        assert not world.memory["h1"].fragments

    def test_a_newer_one_that_is_denied_replaces_none(self, world: World, family: int) -> None:
        world.put(group("client", rule("dns", "egress", 17, 53, ethertype=f"IPv{family}")))
        send(world, self.parts(family)[0])
        other = packet.fragments(packet.udp(A, B, 1000, 54, payload=bytes(40), family=family), 16)
        assert send(world, other[0]).reason == Reason.ACL_FROM_PORT
        assert send(world, other[1]).rule_from == "dns"

    def test_a_flood_is_remembered_once_anybody_gets_it(self, world: World, family: int) -> None:
        frame = packet.udp(A, B, 1000, 53, payload=bytes(40), family=family, dmac=packet.BROADCAST)
        parts = packet.fragments(frame, 16)
        world.put(group("server", *OUT))
        assert [send(world, part).reason for part in parts[:2]] == [Reason.FLOODED, Reason.FRAGMENT_ORPHAN]
        world.put(group("server", rule("dns", "ingress", 17, 53, ethertype=f"IPv{family}")))
        for part in parts:
            assert [output.port for output in send(world, part).outputs] == ["b"]

    def test_later_ones_make_no_connection(self, world: World, family: int) -> None:
        first, second = packet.fragments(packet.tcp(A, B, 1000, 80, "R", payload=bytes(8), family=family), 24)
        assert send(world, first).reason == Reason.NONE
        assert send(world, second).reason == Reason.NONE
        assert not world.memory["h1"].flows

    def test_by_tunnel(self, world: World, family: int) -> None:
        world.put(port("b", "blue", 2, "server", host="h2"))
        for part in self.parts(family):
            assert world.send("a", part).receivers == ["b"]

    def test_a_first_fragment_changes_tcp_state_and_a_later_one_does_not(self, world: World, family: int) -> None:
        send(world, packet.tcp(A, B, 1000, 80, "A", family=family))
        first, second = packet.fragments(packet.tcp(A, B, 1000, 80, "FA", payload=bytes(8), family=family), 24)
        assert send(world, first).connection == State.CLOSING
        send(world, packet.tcp(B, A, 80, 1000, "FA", family=family), "b")
        assert send(world, second).connection == State.TIME_WAIT


def error(source: Somewhere, target: Somewhere, quoted: bytes, **fields: Any) -> bytes:
    return packet.icmp_error(source, target, quoted, **fields)


@pytest.mark.parametrize("family", [4, 6])
class TestErrors:
    """Port a lets nothing in but what belongs to its connections."""

    def flow(self, world: World, family: int) -> bytes:
        frame = packet.udp(A, B, 1000, 53, payload=bytes(8), family=family)
        assert send(world, frame).reason == Reason.NONE
        return frame

    @pytest.mark.parametrize("kind", range(1, 14))
    def test_which_types(self, world: World, family: int, kind: int) -> None:
        frame = error(B, A, self.flow(world, family), kind=kind, code=0, family=family)
        errors = {4: {3, 4, 5, 11, 12}, 6: {1, 2, 3, 4}}[family]
        expected = Reason.NONE if kind in errors else Reason.ACL_TO_PORT
        assert send(world, frame, "b").reason == expected

    def test_they_belong_to_what_they_quote_and_change_nothing(self, world: World, family: int) -> None:
        quoted = self.flow(world, family)
        before = only(world).packets.copy()
        decision = send(world, error(B, A, quoted, family=family), "b")
        assert (decision.rule_from, decision.rule_to, decision.connection) == ("ESTABLISHED", "ESTABLISHED", None)
        assert (only(world).state, only(world).packets) == (State.NEW, before)

    def test_about_a_reply(self, world: World, family: int) -> None:
        self.flow(world, family)
        reply = packet.udp(B, A, 53, 1000, family=family)
        assert send(world, reply, "b").reason == Reason.NONE
        decision = send(world, error(A, B, reply, family=family))
        assert (decision.course, decision.rule_from, decision.rule_to) == ("original", "ESTABLISHED", "ESTABLISHED")

    @pytest.mark.parametrize(
        "quote",
        [
            lambda family: packet.udp(A, B, 1001, 53, payload=bytes(8), family=family),
            lambda family: packet.tcp(A, B, 1000, 53, family=family),
            lambda family: packet.udp(B, A, 53, 1000, payload=bytes(8), family=family),
            lambda family: packet.udp(C, B, 1000, 53, payload=bytes(8), family=family),
            lambda family: packet.fragments(packet.udp(A, B, 1000, 53, payload=bytes(99), family=family), 8)[1],
        ],
        ids=["port", "protocol", "not sent by the receiver", "another's", "later fragment"],
    )
    def test_quotes_of_nothing_known(self, world: World, family: int, quote: Any) -> None:
        self.flow(world, family)
        assert send(world, error(B, A, quote(family), family=family), "b").reason == Reason.ICMP_UNRELATED

    def test_a_quote_of_too_little(self, world: World, family: int) -> None:
        quoted = self.flow(world, family)
        enough = {4: 28, 6: 48}[family]
        for room in (0, 10, enough - 1):
            frame = error(B, A, quoted, room=room, family=family)
            assert send(world, frame, "b").reason == Reason.ICMP_UNRELATED
        assert send(world, error(B, A, quoted, room=enough, family=family), "b").reason == Reason.NONE

    def test_somebody_who_has_no_part_in_it(self, world: World, family: int) -> None:
        quoted = self.flow(world, family)
        assert send(world, error(C, A, quoted, family=family), "c").reason == Reason.ICMP_UNRELATED
        world.put(port("c", "blue", 3, port_security=False))
        assert send(world, error(C, A, quoted, family=family), "c").rule_to == "ESTABLISHED", "a router may"

    def test_without_tracking_rules_decide(self, world: World, family: int) -> None:
        world.put(port("a", "blue", 1, "loose"), port("b", "blue", 2, "loose"))
        frame = error(B, A, self.flow(world, family), family=family)
        assert send(world, frame, "b").rule_to == f"in{family}"
        world.put(group("loose", *OUT, stateful=False))
        assert send(world, frame, "b").reason == Reason.ACL_TO_PORT

    def test_over_the_wire(self, world: World, family: int) -> None:
        world.put(port("b", "blue", 2, "server", host="h2"))
        quoted = packet.udp(A, B, 1000, 53, payload=bytes(8), family=family)
        assert world.send("a", quoted).receivers == ["b"]
        journey = world.send("b", error(B, A, quoted, family=family))
        assert journey.receivers == ["a"]
        assert world.send("b", error(B, A, packet.udp(A, B, 9, 9, family=family), family=family)).reason == (
            Reason.ICMP_UNRELATED
        )

    def test_no_longer_allowed(self, world: World, family: int) -> None:
        quoted = self.flow(world, family)
        world.put(group("client"))
        assert send(world, error(B, A, quoted, family=family), "b").reason == Reason.CONNECTION_CUT
        assert not world.memory["h1"].flows

    def test_echo_quoted(self, world: World, family: int) -> None:
        echo = packet.icmp(A, B, {4: 8, 6: 128}[family], ident=7, family=family)
        send(world, echo)
        assert send(world, error(B, A, echo, family=family), "b").reason == Reason.NONE
        errant = error(A, B, echo, family=family)
        assert send(world, error(B, A, errant, family=family), "b").reason == Reason.ICMP_UNRELATED, "of an error"

    def test_expired(self, world: World, family: int) -> None:
        quoted = self.flow(world, family)
        world.now += 30_001
        assert send(world, error(B, A, quoted, family=family), "b").reason == Reason.ICMP_UNRELATED


def test_a_quote_behind_extension_headers_is_not_followed(world: World) -> None:
    frame = packet.padded(packet.udp(A, B, 1000, 53, payload=bytes(8), family=6))
    assert send(world, frame).reason == Reason.NONE
    assert send(world, error(B, A, frame, room=100, family=6), "b").reason == Reason.ICMP_UNRELATED


def test_the_receiver_moves_to_another_host(world: World) -> None:
    forth(world, "S")
    world.put(port("b", "blue", 2, "server", host="h2"))
    answer = Arrival(vtep="192.0.2.2", segment=Segment(id=100), frame=packet.tcp(B, A, 80, 1000, "A"))
    assert world.arrive("h1", answer).reason == Reason.ACL_TO_PORT, "nothing told this host yet"
    assert forth(world, "A").connection == State.SYN_SENT
    assert only(world).reply is not None
    assert world.arrive("h1", answer).rule_to == "ESTABLISHED"


def test_the_receiver_moves_here(world: World) -> None:
    world.put(port("b", "blue", 2, "server", host="h2"))
    forth(world, "S")
    world.put(port("b", "blue", 2, "server"))
    forth(world, "A")
    assert only(world).tracks_to
    assert back(world, "A").rule_from == "ESTABLISHED"


def test_the_sender_moves_here(world: World) -> None:
    world.put(port("b", "blue", 2, "server", host="h2"), port("a", "blue", 1, "server"))
    world.send("b", packet.tcp(B, A, 80, 1000))
    world.put(port("b", "blue", 2, "server"))
    assert send(world, packet.tcp(B, A, 80, 1000, "A"), "b").connection == State.SYN_SENT
    assert only(world).original.where == Place("port", "b on blue"), "the older one gave way"
    assert forth(world, "A").rule_to == "ESTABLISHED"


def test_protocols_of_the_other_family_have_no_identifiers(world: World) -> None:
    world.put(group("server", Rule(id="r", direction="ingress", ethertype="IPv6", protocol=1)))
    assert send(world, packet.other(A, B, 1, payload=bytes(8), family=6)).connection == State.NEW
    assert only(world).original.dport == 0
