"""What a port may have of the table of connections, and who gives way. docs/pipeline.md, track, "A full table"."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from headrace import abi
from headrace.abi import Reason, State
from headrace.model import Port
from headrace.model import State as Desired
from headrace.testing import packet
from headrace.testing.host import CONNECTIONS, PacketHost
from headrace.testing.memory import Memory
from headrace.testing.observation import Observed
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, OUT, group, network, port, rule

MakeTwin = Callable[..., Twin]

BLUE = network("blue")
A, B, C = port("a", "blue", 1, "any"), port("b", "blue", 2, "any"), port("c", "blue", 3, "any", host="h2")
STATE = (BLUE, group("any", *ANY), A, B, C)
OVER = ((">FA", "<FA"), (">S", "<RA"))
TRIES = 16
"""HR_EVICT_TRIES of bpf/room.h."""
APART = 21
"""Milliseconds by which the clocks of two objects differ at most: a tick each, of 100 Hz (bpf/lib/clock.h)."""
TIGHT = CONNECTIONS * 7 // 8
"""HR_TIGHT of bpf/room.h."""


class Had(NamedTuple):
    """What a port has of the table."""

    live: int
    evicted: int


def had(host: PacketHost, name: str) -> Had:
    value = host.datapath.maps["hr_conn_counts"].lookup(abi.U32(value=host.ports[name]).pack())
    count = abi.ConnCount.unpack(value or b"")
    return Had(count.live, count.evicted)


def ring(host: PacketHost, name: str) -> abi.HalfOpen:
    return abi.HalfOpen.unpack(host.datapath.maps["hr_half_open"].lookup(abi.U32(value=host.ports[name]).pack()) or b"")


def put_ring(host: PacketHost, name: str, head: int, *, tail: int, conn: dict[int, int]) -> None:
    """Make a port remember these indices by slot."""
    slots = tuple(conn.get(slot, 0) for slot in range(abi.HALF_OPEN))
    value = abi.HalfOpen(head=head, tail=tail, conn=slots)
    host.datapath.maps["hr_half_open"].update(abi.U32(value=host.ports[name]).pack(), value.pack())


def ask(host: PacketHost, number: int) -> Observed:
    """A new question from A to B."""
    return host.run(sent("a", packet.udp(A, B, number, 53)))


def answer(host: PacketHost, number: int) -> Observed:
    return host.run(sent("b", packet.udp(B, A, 53, number)))


def asked_for(memory: Memory) -> dict[int, State]:
    """Source port -> state of the connections there are."""
    return {conn.key[0].sport: State(conn.state) for conn in memory.live().values()}


def index_of(memory: Memory, sport: int) -> int:
    return next(index for index, conn in memory.live().items() if conn.key[0].sport == sport)


# A port's quota


def test_a_port_keeps_its_answered_connections_and_is_refused_more(twin: MakeTwin) -> None:
    asked = twin(*STATE, quota=3)
    for number in range(3):
        assert asked.run(sent("a", packet.udp(A, B, 1000 + number, 53))).reason == Reason.NONE
        assert asked.run(sent("b", packet.udp(B, A, 53, 1000 + number))).connection == State.ASSURED
    refused = ask(asked.host, 1003)
    assert (refused.reason, refused.outputs) == (Reason.QUOTA, ())
    assert refused.counts.reasons == {("a", Reason.QUOTA): 1}
    assert asked.run(sent("a", packet.udp(A, B, 1000, 53))).replayed
    assert asked.run(sent("b", packet.udp(B, C, 1000, 53))).reason == Reason.NONE, "each port has its own"
    assert had(asked.host, "a") == (3, 0)


def test_the_oldest_that_nobody_answered_gives_way(twin: MakeTwin) -> None:
    host = twin(*STATE, quota=3).host
    for number in range(3):
        ask(host, number)
    answer(host, 0)
    for number in range(3, 6):
        assert ask(host, number).reason == Reason.NONE
        assert asked_for(host.memory) == {0: State.ASSURED, number - 1: State.NEW, number: State.NEW}
        assert not host.memory.inconsistencies()
    assert had(host, "a") == (3, 3)
    assert answer(host, 2).reason != Reason.NONE or asked_for(host.memory)[0] == State.ASSURED
    assert ask(host, 0).replayed


def test_tcp_that_is_half_open_or_over_gives_way_and_no_other(twin: MakeTwin) -> None:
    """Each connection in a state of its own, oldest first; then as many new ones as can find room."""
    asked = twin(*STATE, quota=7)
    host = asked.host

    def segment(sport: int, way: str) -> None:
        ends = (A, B, sport, 80) if way[0] == ">" else (B, A, 80, sport)
        assert host.run(sent(ends[0].id, packet.tcp(*ends, way[1:]))).reason == Reason.NONE, way

    for sport, story in enumerate(
        ((">S", "<SA", ">A"), (">S", "<SA"), (">S",), (">S", "<SA", ">A", "<FA"), (">FA",), *OVER)
    ):
        for way in story:
            segment(sport, way)
    states = asked_for(host.memory)
    assert list(states.values()) == [
        State.ESTABLISHED, State.SYN_RECEIVED, State.SYN_SENT, State.CLOSING, State.CLOSING,
        State.TIME_WAIT, State.CLOSED,
    ]  # fmt: skip
    for sport in range(8, 12):
        segment(sport, ">S")
    assert sorted(asked_for(host.memory)) == [0, 3, 4, 8, 9, 10, 11]
    segment(8, "<SA")
    segment(8, ">A")
    segment(12, ">S")
    assert sorted(asked_for(host.memory)) == [0, 3, 4, 8, 10, 11, 12]


def test_what_was_decided_by_stateless_groups_gives_way(twin: MakeTwin) -> None:
    ends = (port("a", "blue", 1, "free"), port("b", "blue", 2, "free"))
    host = twin(BLUE, group("free", *ANY, stateful=False), *ends, quota=2).host
    for number in range(4):
        assert ask(host, number).connection == State.STATELESS
    assert sorted(asked_for(host.memory)) == [2, 3]


def test_a_connection_that_was_cut_stays_cut(twin: MakeTwin) -> None:
    """It is kept to deny what its other side still sends; a flood must not shake it off."""
    web = rule("web", "ingress", 6, 80)
    asked = twin(BLUE, group("out", *OUT), group("web", web), A, B, quota=2)
    asked.apply(Desired.of((*asked.state.all(), port("a", "blue", 1, "out"), port("b", "blue", 2, "web"))))
    segment = sent("a", packet.tcp(A, B, 1000, 80))
    assert asked.run(segment).connection == State.SYN_SENT
    asked.apply(Desired.of((*asked.state.all(), group("web", rule("web", "ingress", 17, 53)))))
    assert asked.run(segment).reason == Reason.CONNECTION_CUT
    for number in range(4):
        assert ask(asked.host, number).reason == Reason.NONE
    assert sorted(asked_for(asked.host.memory)) == [3, 1000]
    assert asked.host.run(segment).reason == Reason.CONNECTION_CUT


def test_by_tunnel_the_receiver_pays(twin: MakeTwin) -> None:
    asked = twin(*STATE, quota=1)
    assert asked.run(tunnelled(packet.udp(C, B, 1, 53))).reason == Reason.NONE
    assert asked.run(sent("b", packet.udp(B, C, 53, 1))).connection == State.ASSURED
    refused = asked.host.run(tunnelled(packet.udp(C, B, 2, 53)))
    assert (refused.reason, refused.counts.reasons) == (Reason.QUOTA, {("", Reason.QUOTA): 1})
    assert asked.run(tunnelled(packet.udp(C, A, 2, 53))).reason == Reason.NONE
    assert asked.host.run(tunnelled(packet.udp(C, A, 3, 53))).reason == Reason.NONE
    assert (had(asked.host, "a"), had(asked.host, "b")) == ((1, 1), (1, 0))


def test_what_makes_no_connection_needs_no_quota(twin: MakeTwin) -> None:
    asked = twin(*STATE, quota=1)
    asked.run(sent("a", packet.udp(A, B, 1000, 53)))
    assert asked.run(sent("a", packet.tcp(A, B, 1000, 80, "R"))).reason == Reason.NONE
    assert asked.run(sent("a", packet.udp(A, B, 68, 67))).reason == Reason.NONE
    assert had(asked.host, "a") == (1, 0)


def test_an_ended_connection_gives_its_place_back(twin: MakeTwin) -> None:
    asked = twin(*STATE, quota=1)
    for _ in range(3):
        for flags in ("S", "R"):
            assert asked.run(sent("a", packet.tcp(A, B, 1000, 80, flags))).reason == Reason.NONE
    assert had(asked.host, "a") == (1, 0)


# What a port remembers


@pytest.mark.parametrize("start", [0, 1, abi.HALF_OPEN - 1, (1 << 32) - 2])
def test_the_ring_goes_round(twin: MakeTwin, start: int) -> None:
    host = twin(*STATE, quota=3).host
    put_ring(host, "a", start, tail=start, conn={})
    for number in range(8):
        assert ask(host, number).reason == Reason.NONE
    assert sorted(asked_for(host.memory)) == [5, 6, 7]
    found = ring(host, "a")
    assert ((found.head - start) % (1 << 32), (found.tail - start) % (1 << 32)) == (8, 5)


def test_what_was_overwritten_is_forgotten(twin: MakeTwin) -> None:
    """The ring went round three times since anything was taken: its oldest is the one in the next slot."""
    host = twin(*STATE, quota=4).host
    for number in range(4):
        ask(host, number)
    behind = 3 * abi.HALF_OPEN + 5
    slots = {5: index_of(host.memory, 2), 6: index_of(host.memory, 1)}
    put_ring(host, "a", behind, tail=7, conn=slots)
    ask(host, 4)
    assert sorted(asked_for(host.memory)) == [0, 1, 3, 4]
    found = ring(host, "a")
    assert (found.head, found.tail) == (behind + 1, behind - abi.HALF_OPEN + 1)


def test_what_the_ring_names_is_judged_by_its_connection(twin: MakeTwin) -> None:
    """Ended, reborn for another port, never there, being retired, answered: none of these is touched."""
    asked = twin(*STATE, quota=4)
    host = asked.host
    assert host.run(sent("b", packet.udp(B, C, 7, 53))).reason == Reason.NONE
    for number in range(4):
        ask(host, number)
    answer(host, 1)
    table, busy = host.datapath.maps["hr_conns"], index_of(host.memory, 3)
    slot = abi.U32(value=busy).pack()
    conn = abi.Conn.unpack(table.lookup(slot) or b"")
    table.update(slot, replace(conn, id=conn.id | abi.CONN_DEAD).pack())
    stale = (index_of(host.memory, 7), 900, 1 << 31, 0xFFFFFFFF, busy, index_of(host.memory, 1))
    named = dict(enumerate((*stale, index_of(host.memory, 2))))
    put_ring(host, "a", len(named), tail=0, conn=named)
    assert ask(host, 4).reason == Reason.NONE
    table.update(slot, conn.pack())
    assert sorted(asked_for(host.memory)) == [0, 1, 3, 4, 7]
    assert not host.memory.inconsistencies()
    assert (had(host, "a"), had(host, "b")) == ((4, 1), (1, 0))


def test_a_search_is_bounded_and_goes_on_with_the_next_packet(twin: MakeTwin) -> None:
    host = twin(*STATE, quota=1).host
    ask(host, 0)
    named = dict.fromkeys(range(TRIES), 900) | {TRIES: index_of(host.memory, 0)}
    put_ring(host, "a", TRIES + 1, tail=0, conn=named)
    assert ask(host, 1).reason == Reason.QUOTA
    assert ask(host, 1).reason == Reason.NONE
    assert list(asked_for(host.memory)) == [1]


# The host's table


def fill(host: PacketHost, sender: str, receiver: str, first: int = 0, *, limit: int = CONNECTIONS) -> int:
    """Ask until there are ``limit`` connections; returns the number after the last."""
    ends = {"a": A, "b": B, "c": C}
    whole = packet.udp(ends[sender], ends[receiver], 0, 53)
    number = first
    while host.memory.cursor(abi.Cursor.USED) < limit:
        for _ in range(limit - host.memory.cursor(abi.Cursor.USED)):
            observed = host.run(sent(sender, whole[:34] + number.to_bytes(2, "big") + whole[36:]))
            assert observed.reason == Reason.NONE
            number += 1
    return number


def test_a_full_table(twin: MakeTwin) -> None:
    """Half-open ones of the port that has most give way, to it and to others; answered ones never; then it is full."""
    host = twin(*STATE).host
    for number in range(3):
        ask(host, number)
        answer(host, number)
    end = fill(host, "a", "c", first=3, limit=TIGHT + 1)
    assert had(host, "a") == (TIGHT + 1, 0)
    assert ask(host, end).reason == Reason.NONE
    assert had(host, "a") == (TIGHT + 1, 1), "one for one"
    assert 3 not in asked_for(host.memory)
    hog = host.ports["a"]
    wait_until(lambda: host.memory.cursor(abi.Cursor.HOG) == hog, what="the census names the hog")
    last = fill(host, "b", "c") - 1
    some = last + 1
    assert (had(host, "a"), had(host, "b")) == ((TIGHT + 1, 1), (some, 0)), "the last eighth is for the other"
    for number in range(some, some + 5):
        assert host.run(sent("b", packet.udp(B, C, number, 53))).reason == Reason.NONE, "the hog's give way to it"
    assert (had(host, "a"), had(host, "b")) == ((TIGHT - 4, 6), (some + 5, 0))
    put_ring(host, "a", 0, tail=0, conn={})
    assert host.run(sent("b", packet.udp(B, C, some + 5, 53))).reason == Reason.NONE, "where the hog has none, its own"
    assert (had(host, "a"), had(host, "b")) == ((TIGHT - 4, 6), (some + 5, 1))
    assert ask(host, 0).replayed
    assert ask(host, end + 1).reason == Reason.QUOTA
    put_ring(host, "b", 0, tail=0, conn={})
    refused = host.run(sent("b", packet.udp(B, C, some + 6, 53)))
    assert (refused.reason, refused.outputs) == (Reason.TABLE_FULL, ())
    assert refused.counts.reasons == {("b", Reason.TABLE_FULL): 1}
    assert ask(host, 0).replayed
    assert not host.memory.inconsistencies()
    assert len(host.memory.free()) <= CONNECTIONS // abi.CONN_REST


def test_ports_that_fill_the_table_leave_the_last_eighth_to_others(twin: MakeTwin) -> None:
    """Four at their quota each, all answered, would have it all; nobody else has any connection yet."""
    crowd = [port(f"p{number}", "blue", 10 + number, "any") for number in range(4)]
    asked = twin(*STATE, *crowd, quota=CONNECTIONS // 4)
    host = asked.host

    def opens(one: Port, number: int) -> Reason:
        """An answered connection, if it may have one more."""
        asking = sent(one.id, packet.udp(one, C, number, 53))
        foretold = host.ask(asking)
        reason = host.run(asking).reason
        assert foretold is not None
        assert foretold.reason == reason
        if reason == Reason.NONE:
            assert host.run(tunnelled(packet.udp(C, one, 53, number))).connection == State.ASSURED
        return reason

    for number in range(200):
        assert {opens(one, number) for one in crowd} == {Reason.NONE}
    wait_until(lambda: host.memory.cursor(abi.Cursor.OWNERS) == 4, what="the census has counted them")
    for number in range(200, 224):
        assert {opens(one, number) for one in crowd} == {Reason.NONE}
    assert host.memory.cursor(abi.Cursor.USED) == TIGHT
    assert [opens(one, 224) for one in crowd] == [Reason.NONE, *[Reason.QUOTA] * 3]
    for number in range(30):
        assert opens(A, number) == opens(B, number) == Reason.NONE
    assert opens(crowd[0], 225) == Reason.QUOTA
    assert host.memory.cursor(abi.Cursor.USED) == TIGHT + 61
    assert not any(had(host, one.id).evicted for one in (*crowd, A, B))
    assert host.run(sent("p0", packet.udp(crowd[0], C, 0, 53))).replayed, "what they have stays"
    assert not host.memory.inconsistencies()


def test_an_index_rests_before_it_is_used_again(twin: MakeTwin) -> None:
    asked = twin(*STATE, quota=1)
    seen: list[int] = []
    for number in range(3 * CONNECTIONS // abi.CONN_REST):
        ask(asked.host, number)
        (index,) = asked.host.memory.live()
        assert index not in seen[-(CONNECTIONS // abi.CONN_REST) :]
        seen.append(index)
    assert len(set(seen)) == CONNECTIONS // abi.CONN_REST + 1, "and those that rested are used again"


# Ports that are pressed


def pressed(host: PacketHost) -> dict[int, int]:
    """Source port -> timeout."""
    return {conn.key[0].sport: conn.timeout for conn in host.memory.live().values()}


def test_connections_of_a_pressed_port_expire_sooner(twin: MakeTwin) -> None:
    """At quota it is pressed, below 7/8 of it no more; its timeouts follow, those of others do not."""
    asked = twin(*STATE, quota=8)
    host = asked.host
    for ends, flags in (((A, C, 1, 80), "S"), ((C, A, 80, 1), "SA"), ((A, C, 1, 80), "A"), ((A, C, 2, 80), "FA")):
        frame = packet.tcp(*ends, flags)
        asked.run(tunnelled(frame) if ends[0] == C else sent("a", frame))
    ask(host, 3)
    answer(host, 3)
    ask(host, 4)
    host.run(sent("b", packet.udp(B, C, 5, 53)))
    usual = {1: 432_000_000, 2: 240_000, 3: 180_000, 4: 30_000, 5: 30_000}
    assert pressed(host) == usual
    for number in range(10, 14):
        ask(host, number)
    soon = {1: 300_001, 2: 5001, 3: 60_001, 4: 5001, 5: 30_000, **dict.fromkeys(range(10, 14), 5001)}
    wait_until(lambda: pressed(host) == soon, what="the pressed port's timeouts are short")
    assert host.run(sent("a", packet.tcp(A, C, 1, 80, "A"))).replayed
    table = host.datapath.maps["hr_conns"]
    for number in (12, 13):
        index = index_of(host.memory, number)
        conn = host.memory.live()[index]
        old = tuple(replace(one, seen=1) for one in conn.counter)
        table.update(abi.U32(value=index).pack(), replace(conn, counter=old).pack())
    wait_until(lambda: not {12, 13} & pressed(host).keys(), what="what expired is swept")
    again = usual | dict.fromkeys((10, 11), 30_000)
    wait_until(lambda: pressed(host) == again, what="the pressure is over")
    assert not host.memory.inconsistencies()


def test_no_port_is_pressed_for_what_others_hold(twin: MakeTwin) -> None:
    """A tight table presses those that have more than their share."""
    host = twin(*STATE).host
    host.run(sent("b", packet.udp(B, C, 1, 53)))
    fill(host, "a", "c", first=10, limit=TIGHT + 1)
    wait_until(lambda: host.memory.cursor(abi.Cursor.OWNERS) == 2, what="both are counted")
    wait_until(lambda: set(pressed(host).values()) == {30_000, 5001}, what="the hog is pressed")
    assert pressed(host)[1] == 30_000


def test_a_cut_connection_is_not_pressed(twin: MakeTwin) -> None:
    web = rule("web", "ingress", 6, 80)
    asked = twin(BLUE, group("any", *ANY), group("web", web), A, port("b", "blue", 2, "web"), quota=1)
    segment = sent("a", packet.tcp(A, B, 1000, 80))
    asked.run(segment)
    wait_until(lambda: pressed(asked.host) == {1000: 5001}, what="the port is pressed")
    asked.apply(Desired.of((*asked.state.all(), group("web"))))
    assert asked.run(segment).reason == Reason.CONNECTION_CUT
    owners = abi.U32(value=abi.Cursor.OWNERS).pack()
    asked.host.datapath.maps["hr_cursors"].update(owners, bytes(8))
    wait_until(lambda: asked.host.memory.cursor(abi.Cursor.OWNERS) == 1, what="the sweeper comes by")
    assert pressed(asked.host) == {1000: 300_000}


def test_what_pressure_made_expire_gets_another_second(twin: MakeTwin) -> None:
    """Somebody who read the longer timeout may be about to refresh it."""
    host = twin(*STATE, quota=8).host
    ask(host, 1)
    (index,) = host.memory.live()
    table, slot = host.datapath.maps["hr_conns"], abi.U32(value=index).pack()
    conn = abi.Conn.unpack(table.lookup(slot) or b"")
    old = replace(conn.counter[0], seen=conn.counter[0].seen - 20_000_000_000)
    table.update(slot, replace(conn, counter=(old, conn.counter[1])).pack())
    for number in range(2, 9):
        ask(host, number)
    wait_until(lambda: pressed(host).get(1, 1) % 2 == 1, what="it is pressed, or gone already")
    found = pressed(host).get(1)
    assert found is None or 21_000 - APART <= found < 30_000
    wait_until(lambda: 1 not in pressed(host), what="then it is swept")
    assert not host.memory.inconsistencies()
