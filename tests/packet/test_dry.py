"""The dry programs leave no trace: every table is the same before and after, whatever they are asked.

That they conclude what happens then, each packet of this folder's tests says: Twin.run asks first, then lets it happen.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace import abi
from headrace.abi import Reason
from headrace.datapath.bpfmap import Map, MapType
from headrace.datapath.decision import Arrival
from headrace.datapath.dry import Dry
from headrace.datapath.ringbuf import RingBuffer
from headrace.datapath.sampling import Watch
from headrace.model import AddressPair
from headrace.model import State as Desired
from headrace.testing import packet
from headrace.testing.host import PacketHost
from headrace.testing.outer import put_on
from headrace.testing.packet import Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import OUT, group, network, port, rule, subnet

MakeTwin = Callable[..., Twin]

PAIR = AddressPair(address="10.0.0.100", mac="00:00:5e:00:01:07")
A = port("a", "blue", 1, "g", address_pairs=(PAIR,))
B, DOWN = port("b", "blue", 2, "g"), port("d", "blue", 3, "g", admin_up=False)
OPEN = port("o", "blue", 4, port_security=False)
FAR = port("far", "blue", 8, "g", host="h2")
WEB, DNS = rule("web", "ingress", 6, 80), rule("dns", "ingress", 17, 53)
CLOSED = group("g", *OUT, WEB)
STATE = (network("blue"), subnet("four", "blue"), group("g", *OUT, WEB, DNS), A, B, DOWN, OPEN, FAR)
EVERYBODY = Somewhere("ff:ff:ff:ff:ff:ff", ("10.0.0.255",))
NOBODY = Somewhere("02:00:00:00:00:77", ("10.0.0.77",))
VIRTUAL = Somewhere("00:00:5e:00:01:07", ("10.0.0.100",))
FIRST, LATER, *_ = packet.fragments(packet.udp(A, B, 9, 53, payload=bytes(48)), 16)

KNOWN = (
    sent("a", packet.tcp(A, B, 1, 80, "S")),
    sent("b", packet.tcp(B, A, 80, 1, "SA")),
    sent("a", packet.tcp(A, B, 2, 80, "S")),
    sent("a", packet.tcp(A, B, 2, 80, "R")),
    sent("a", packet.udp(A, B, 3, 53)),
    sent("a", packet.udp(A, FAR, 4, 53)),
    tunnelled(packet.udp(FAR, A, 5, 53)),
)
"""What a connection is made of before anything is asked."""

QUESTIONS: tuple[Arrival, ...] = (
    *KNOWN,  # hits, answers, a SYN that reopens
    sent("b", packet.udp(B, A, 53, 3)),  # the first reply
    sent("a", packet.tcp(A, B, 1, 80, "FA")),
    sent("a", packet.tcp(A, B, 1, 80, "R")),
    sent("a", packet.udp(A, B, 1003, 53)),  # new, to a port and by tunnel
    sent("a", packet.udp(A, FAR, 1004, 53, family=6)),
    tunnelled(packet.udp(FAR, A, 1005, 53)),
    sent("a", packet.udp(A, B, 6, 7)),  # denied, and of the tunnel
    tunnelled(packet.udp(FAR, A, 6, 7)),
    sent("a", packet.udp(B, A, 6, 7)),
    sent("d", packet.udp(DOWN, A, 6, 7)),
    sent("a", packet.udp(A, DOWN, 6, 53)),
    sent("a", packet.udp(A, NOBODY, 6, 53)),
    sent("a", packet.udp(A, A, 6, 53)),
    sent("a", packet.with_octet(packet.udp(A, B, 6, 7), 14, 0x65)),
    sent("a", packet.udp(A, B, 6, 53, payload=bytes(1440))),  # too big
    sent("a", packet.udp(A, EVERYBODY, 6, 53)),  # flooded, refused by some
    sent("a", packet.arp(A, "10.0.0.99")),
    tunnelled(packet.udp(FAR, EVERYBODY, 6, 53)),
    sent("a", packet.arp(A, "10.0.0.2")),  # answered
    sent("a", packet.ns(A, "fd00::2")),
    sent("a", packet.udp(VIRTUAL, B, 7, 53)),  # learnt
    sent("o", packet.udp(NOBODY, B, 7, 53)),
    tunnelled(packet.udp(NOBODY, A, 7, 53)),
    sent("a", FIRST),
    sent("a", LATER),
    tunnelled(packet.fragments(packet.udp(FAR, EVERYBODY, 9, 53, payload=bytes(48)), 16)[0]),
    sent("a", packet.icmp_error(A, B, packet.udp(B, A, 53, 3))),
    sent("b", packet.icmp_error(B, A, packet.udp(A, B, 3, 53))),
    tunnelled(packet.udp(FAR, A, 5, 53), "192.0.2.77"),
    tunnelled(packet.udp(FAR, A, 5, 53), vni=999),
    Arrival(frame=put_on("192.0.2.2", "192.0.2.1", 100, packet.udp(FAR, A, 5, 53))[:60]),
    Arrival(frame=packet.udp(Somewhere("02:00:00:00:00:01", ("198.51.100.1",)), EVERYBODY, 1, 2)),
    Arrival(port="nobody", frame=packet.udp(A, B, 6, 53)),
)

MOVING = {abi.Cursor.SWEEP, abi.Cursor.HOG, abi.Cursor.OWNERS, abi.Cursor.SPENT}
"""Cursors that the sweeper's timer moves by itself."""


def contents(table: Map) -> dict[bytes, bytes]:
    """All that a table holds; a queue is emptied and filled again."""
    if table.type == MapType.QUEUE:
        taken = list(iter(table.pop, None))
        for value in taken:
            table.push(value)
        return {number.to_bytes(4, "little"): value for number, value in enumerate(taken)}
    if table.type == MapType.RINGBUF:
        records: list[bytes] = []
        with RingBuffer(table, records.append) as ring:
            ring.consume()
        return {number.to_bytes(4, "little"): value for number, value in enumerate(records)}
    found = dict(table.items())
    if table.name == "hr_cursors":
        found = {key: value for key, value in found.items() if int.from_bytes(key, "little") not in MOVING}
    return found


def tables(host: PacketHost) -> dict[str, dict[bytes, bytes]]:
    return {name: contents(host.datapath.maps[name]) for name in abi.MAPS}


def changed(host: PacketHost, questions: tuple[Arrival, ...]) -> list[str]:
    """Names of the tables that asking changed."""
    before = tables(host)
    for arrival in questions:
        host.ask(arrival)
    after = tables(host)
    return [name for name in before if before[name] != after[name]]


def test_asking_writes_no_table(twin: MakeTwin) -> None:
    asked = twin(*STATE, quota=100)
    for arrival in KNOWN:
        assert asked.run(arrival).reason == Reason.NONE
    answers = [asked.host.ask(arrival) for arrival in QUESTIONS]
    reasons = {answer.reason for answer in answers if answer is not None}
    assert len(reasons) >= 15, reasons
    assert any(answer.replayed for answer in answers if answer)
    assert changed(asked.host, QUESTIONS) == []
    with Watch(asked.host.datapath, lambda _: None) as watch:  # nor shows it a drop to who watches
        assert changed(asked.host, QUESTIONS) == []
        assert watch.ring.consume() == 0


def test_a_connection_that_is_no_longer_allowed_is_not_cut_by_asking(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for arrival in KNOWN:
        asked.run(arrival)
    asked.apply(Desired.of((*asked.state.all(), CLOSED)))
    answer = asked.host.ask(KNOWN[4])
    assert answer is not None
    assert answer.reason == Reason.CONNECTION_CUT
    assert changed(asked.host, QUESTIONS) == []


def test_a_full_quota_is_foretold_and_not_taken(twin: MakeTwin) -> None:
    asked = twin(*STATE, quota=1)
    asked.run(sent("a", packet.sctp(A, OPEN, 1, 2)))
    asked.age(1000)
    assert changed(asked.host, QUESTIONS) == []


def test_two_loads_are_the_same_programs(host: PacketHost, twin: MakeTwin) -> None:
    twin(*STATE)
    with Dry(host.datapath) as dry:
        assert dry.is_what_runs()
