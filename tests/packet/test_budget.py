"""budget: walks that leave no entry are paid for by the port that sends. docs/pipeline.md, "budget"."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from headrace import abi
from headrace.abi import Reason, State
from headrace.datapath.decision import Arrival
from headrace.testing import packet
from headrace.testing.host import PacketHost
from headrace.testing.packet import BROADCAST, Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, OUT, group, network, port, rule

MakeTwin = Callable[..., Twin]

BLUE = network("blue")
A, B, C = port("a", "blue", 1, "out"), port("b", "blue", 2, "web"), port("c", "blue", 3, "any", host="h2")
WEB = rule("web", "ingress", 6, 80)
STATE = (BLUE, group("any", *ANY), group("out", *OUT), group("web", *OUT, WEB), A, B, C)
COST_NS = 1_000_000_000 // 20_000
SAVED_NS = 1_000_000_000
LONG_NS = 3600 * 1_000_000_000
TICK_NS = 10_000_000
"""The longest that a kernel has (CONFIG_HZ=100): the programs' clock shows the last tick or the next."""

COARSE = 6
"""CLOCK_MONOTONIC_COARSE, which Python has no name for (linux/time.h)."""
EVERYBODY = Somewhere(mac=BROADCAST, addresses=("10.0.0.255",))

UNPAID: dict[str, tuple[Reason, int, Arrival]] = {
    "denied by the sender's side": (Reason.ACL_FROM_PORT, 1, sent("c2", packet.udp(port("c2", "blue", 9), B, 1, 53))),
    "denied by the receiver's side": (Reason.ACL_TO_PORT, 1, sent("a", packet.udp(A, B, 1, 53))),
    "spoofed": (Reason.SPOOFED_MAC, 1, sent("a", packet.udp(B, C, 1, 53))),
    "malformed": (Reason.MALFORMED_IPV4, 1, sent("a", packet.udp(A, B, 1, 53)[:30])),
    "to nobody": (Reason.UNKNOWN_MAC, 1, sent("a", packet.udp(A, port("x", "blue", 77), 1, 53))),
    "answered": (Reason.ANSWERED, 1, sent("a", packet.arp(A, "10.0.0.2"))),
    "forwarded": (Reason.NONE, 0, sent("a", packet.tcp(A, B, 1, 80))),
    "by tunnel": (Reason.ACL_TO_PORT, 0, tunnelled(packet.udp(C, B, 1, 53))),
}


def purse(host: PacketHost, name: str, *, known: bool) -> bytes:
    return abi.U32(value=host.ports[name] + abi.PORTS * known).pack()


def set_spent(host: PacketHost, name: str, until: int, *, known: bool = False) -> None:
    """Let a port have spent what it earns until a moment of CLOCK_MONOTONIC, in nanoseconds."""
    host.datapath.maps["hr_budgets"].update(purse(host, name, known=known), abi.U64(value=until).pack())


def spent(host: PacketHost, name: str, *, known: bool = False) -> int:
    value = host.datapath.maps["hr_budgets"].lookup(purse(host, name, known=known))
    return abi.U64.unpack(value or b"").value


def cost(asked: Twin, arrival: Arrival, payer: str, *, known: bool = False) -> tuple[Reason, int]:
    """The reason of a packet, and how many walks a port has paid for it from one of its purses."""
    while True:
        before = time.monotonic_ns() + SAVED_NS * 9 // 10
        set_spent(asked.host, payer, before, known=known)
        reason = asked.run(arrival).reason
        if time.monotonic_ns() < before:  # else it earned something meanwhile, and there is nothing to compare
            paid, rest = divmod(spent(asked.host, payer, known=known) - before, COST_NS)
            assert not rest
            return reason, paid


@pytest.mark.parametrize("name", UNPAID)
def test_what_leaves_no_entry_costs_one(twin: MakeTwin, name: str) -> None:
    reason, walks, arrival = UNPAID[name]
    asked = twin(*STATE, port("c2", "blue", 9))
    for _ in range(2):  # the first packet, and again
        assert cost(asked, arrival, arrival.port or "b") == (reason, walks)


def test_each_copy_of_a_flood_costs_one_more(twin: MakeTwin) -> None:
    """Two ports here and a VTEP get it; one port's rules refuse it, and that is no copy."""
    ends = (port("d", "blue", 4, "any"), port("e", "blue", 5, "any"))
    asked = twin(*STATE, *ends)
    flood = sent("a", packet.udp(A, EVERYBODY, 1, 53))
    observed = asked.run(flood)
    assert (len(observed.outputs), [one.port for one in observed.refused]) == (3, ["b"])
    assert cost(asked, flood, "a") == (Reason.FLOODED, 4)


def test_without_budget_nothing_walks(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    host = asked.host
    known, new = sent("a", packet.tcp(A, B, 1, 80, "A")), sent("a", packet.tcp(A, B, 2, 80, "A"))
    assert asked.run(known).connection == State.SYN_SENT
    until = time.monotonic_ns() + LONG_NS
    set_spent(host, "a", until)
    for arrival in (new, sent("a", packet.arp(A, "10.0.0.2")), sent("a", packet.udp(A, B, 1, 53)[:30])):
        for hook in ("tc", "xdp"):
            refused = host.run(arrival, hook)
            assert (refused.reason, refused.outputs) == (Reason.BUDGET, ())
            assert refused.counts.reasons == {("a", Reason.BUDGET): 1}
            assert not any(refused.counts.traffic.values()), "it is counted as no walk"
    assert spent(host, "a") == until, "and costs nothing"
    assert asked.thrice(known).replayed, "what is decided goes on"
    assert asked.run(tunnelled(packet.tcp(C, B, 3, 80))).reason == Reason.NONE, "others are not concerned"
    assert asked.run(sent("b", packet.udp(B, C, 3, 80))).reason == Reason.NONE
    set_spent(host, "a", time.monotonic_ns())
    assert asked.thrice(new).replayed, "it earns some with time"


def test_who_asks_and_takes_no_answer_pays(twin: MakeTwin) -> None:
    """Else it could spend what the one who answers has, and silence it."""
    asker = port("asker", "blue", 5, "deaf")
    deaf = group("deaf", *OUT, stateful=False)
    asked = twin(*STATE, deaf, asker, port("d", "blue", 4, "any"))
    answerer = port("d", "blue", 4, "any")
    assert asked.run(sent("asker", packet.udp(asker, answerer, 7, 8))).reason == Reason.NONE
    refused = sent("d", packet.udp(answerer, asker, 8, 7))
    assert cost(asked, refused, "asker", known=True) == (Reason.ACL_TO_PORT, 1)
    assert cost(asked, refused, "d", known=True) == (Reason.ACL_TO_PORT, 0)
    assert cost(asked, refused, "d") == (Reason.ACL_TO_PORT, 0)


def test_what_is_begun_in_vain_keeps_nobody_from_answering(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    assert asked.run(tunnelled(packet.tcp(C, B, 9, 80))).reason == Reason.NONE
    set_spent(asked.host, "b", time.monotonic_ns() + LONG_NS)
    assert asked.host.run(sent("b", packet.udp(B, C, 3, 80))).reason == Reason.BUDGET
    assert asked.thrice(sent("b", packet.tcp(B, C, 80, 9, "SA"))).reason == Reason.NONE


def test_nobody_saves_more_than_a_second(twin: MakeTwin) -> None:
    """One that was silent for ever has as much as one that was silent for a second."""
    asked = twin(*STATE)
    denied = sent("a", packet.udp(A, B, 1, 53))
    set_spent(asked.host, "a", 1)
    before = time.clock_gettime_ns(COARSE) - TICK_NS
    assert asked.run(denied).reason == Reason.ACL_TO_PORT
    assert before <= spent(asked.host, "a") - COST_NS <= time.monotonic_ns() + TICK_NS


def test_the_last_walk_is_paid_in_advance(twin: MakeTwin) -> None:
    """A walk begins with one left, and a flood may owe for its copies."""
    asked = twin(*STATE, port("d", "blue", 4, "any"))
    host, flood = asked.host, sent("a", packet.udp(A, EVERYBODY, 1, 53))
    last = time.clock_gettime_ns(COARSE) + SAVED_NS - COST_NS
    set_spent(host, "a", last)
    assert host.run(flood).reason == Reason.FLOODED
    assert spent(host, "a") >= last + 2 * COST_NS
