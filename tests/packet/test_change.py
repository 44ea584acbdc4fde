"""Between any two writes of a change of policy, a packet gets what it got before or what it will get after.

What is allowed before and after is never refused meanwhile, and what is allowed in neither never passes. Every entry is
written by itself here, and new flows walk after each; the oracle says what the old and the new state allow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import pytest

from headrace import abi
from headrace.abi import Reason
from headrace.datapath.connection import Connections
from headrace.datapath.decision import Arrival
from headrace.datapath.oracle import decide
from headrace.errors import DatapathError
from headrace.model import AddressGroup, Segment, State
from headrace.stages.compile import ORDER
from headrace.testing import packet
from headrace.testing.choice import Chooser, Seeded, some
from headrace.testing.host import PacketHost
from headrace.testing.observation import TC_ACT_REDIRECT, TC_ACT_SHOT, skb_context
from headrace.testing.strategy_end import has
from headrace.testing.strategy_state import (
    ADDRESS_GROUPS,
    HOST,
    REMOTES,
    STATEFUL,
    STATELESS,
    draw_group,
    draw_state,
)
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, group, network, port, rule

SEEDS = range(20)
CASES = 8
"""Packets after each write, those first that a change concerns."""

SERVICES = (80, 53, 1500)
HERE = ("p1", "p2")
IPS = ("IPv4", "IPv6")


def policy_change(choose: Chooser, state: State) -> State:
    """One to three changes at once: of rules, of who is in a group, of an address group."""
    for _ in range(choose.number(1, 3)):
        kind = choose.pick(("rules", "members", "addresses"))
        if kind == "rules":
            busy = [name for port in HERE for name in state.ports[port].security_groups]
            name = choose.pick(busy or (*STATEFUL, *STATELESS))
            new = draw_group(choose, name, stateful=name in STATEFUL)
            kept = tuple(rule for rule in state.security_groups[name].rules if choose.chance(60))
            known = {rule.id for rule in kept}
            rules = (*kept, *(rule for rule in new.rules if rule.id not in known))
            state = State.of((*state.all(), msgspec.structs.replace(new, rules=rules)))
        elif kind == "members":
            port = choose.pick(sorted(state.ports.values(), key=lambda port: port.id))
            groups = some(choose, choose.pick((STATEFUL, STATELESS)), 60)
            state = State.of((*state.all(), msgspec.structs.replace(port, security_groups=groups)))
        else:
            cidrs = some(choose, [*REMOTES["IPv4"], *REMOTES["IPv6"]], 40)
            state = State.of((*state.all(), AddressGroup(id=choose.pick(ADDRESS_GROUPS), addresses=cidrs)))
    return state


def plain(state: State) -> State:
    """The same on VXLAN alone and without trunks: what changes here is policy."""
    networks = sorted(state.networks)
    ports = [msgspec.structs.replace(port, parent=None, vlan=None) for port in state.ports.values()]
    moved = [
        msgspec.structs.replace(state.networks[name], segment=Segment(id=100 + number))
        for number, name in enumerate(networks)
    ]
    return State.of((*state.all(), *moved, *ports))


def arrivals(state: State) -> list[Arrival]:
    """First packets of flows to and from the ports that are always here."""
    found = []
    vtep = state.hosts["h2"].vteps[0]
    for name in HERE:
        here = state.ports[name]
        for other in state.ports.values():
            if other.network != here.network or other.id == name:
                continue
            for family in (4, 6):
                if has(here, family) and has(other, family):
                    for service in SERVICES:
                        found.append(sent(name, packet.udp(here, other, 9, service, family=family)))
                        if other.host == "h2" and (":" in vtep) <= (":" in "".join(state.hosts[HOST].vteps)):
                            frame = packet.udp(other, here, 9, service, family=family)
                            found.append(tunnelled(frame, vtep=vtep, vni=state.networks[here.network].segment.number))
    return found


def allows(state: State, arrival: Arrival) -> bool:
    return decide(state, HOST, Connections(), arrival).reason == Reason.NONE


class Prober:
    """Lets the same first packets in, again and again."""

    def __init__(self, host: PacketHost, before: State, after: State) -> None:
        self.host = host
        self.seen: Counter[str] = Counter()
        cases = [(one, allows(before, one), allows(after, one)) for one in arrivals(before)]
        self.cases = sorted(cases, key=lambda case: case[1] == case[2])[:CASES]

    def __call__(self, what: str) -> None:
        for arrival, before, after in self.cases:
            forget(self.host)
            program = "hr_from_uplink" if arrival.port is None else "hr_from_port"
            with self.host.stand.inside():
                context = skb_context(self.host.entrance(arrival))
                verdict = self.host.datapath.programs[program].test_run(self.host.outer(arrival), ctx=context).retval
            assert verdict in {TC_ACT_REDIRECT, TC_ACT_SHOT}
            passed = verdict == TC_ACT_REDIRECT
            self.seen[f"{before}, then {after}"] += 1
            if before == after:
                assert passed is before, f"after {what}: {arrival} passed {passed}; before and after {before}"


def forget(host: PacketHost) -> None:
    """No connection is known: one was made at most."""
    tables = host.datapath.maps
    tables["hr_flows"].delete_many(list(tables["hr_flows"].keys()))
    tables["hr_conns"].update(bytes(4), bytes(tables["hr_conns"].value_size))
    for cursor in (abi.Cursor.FRESH, abi.Cursor.USED):
        tables["hr_cursors"].update(abi.U32(value=cursor).pack(), bytes(8))
    for name in HERE:
        if name in host.ports:
            counts = tables["hr_conn_counts"]
            counts.update(abi.U32(value=host.ports[name]).pack(), bytes(counts.value_size))


@contextmanager
def singly(host: PacketHost, then: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every entry that the agent writes or deletes is one write, and something happens after it."""
    with monkeypatch.context() as patch:
        for name in ORDER:
            table = host.datapath.maps[name]

            def update_many(
                items: Sequence[tuple[bytes, bytes]], flags: int = 0, *, name: str = name, update: Callable[..., None]
                = table.update
            ) -> None:  # fmt: skip
                for key, value in items:
                    update(key, value, flags)
                    then(f"put in {name}")

            def delete_many(
                keys: Sequence[bytes], *, name: str = name, delete: Callable[..., bool] = table.delete
            ) -> int:
                for key in keys:
                    assert delete(key)
                    then(f"delete in {name}")
                return len(keys)

            patch.setattr(table, "update_many", update_many)
            patch.setattr(table, "delete_many", delete_many)
        yield


def test_no_packet_meets_half_a_change(host: PacketHost, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        choose = Seeded(seed)
        before = plain(draw_state(choose))
        after = policy_change(choose, before)
        host.start(before, HOST)
        prober = Prober(host, before, after)
        prober("nothing")
        with singly(host, prober, monkeypatch):
            host.apply(after)
        assert host.unlike() == []
        seen += prober.seen
    assert min(seen[f"{one}, then {other}"] for one in (True, False) for other in (True, False)) > 50, seen


def test_a_table_that_is_full_keeps_what_was(
    host: PacketHost, twin: Callable[..., Twin], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = port("a", "blue", 1, "any"), port("b", "blue", 2, "server", "crowd")
    server = group("server", rule("in", "ingress", 17, remote_group="any"))
    asked = twin(network("blue"), group("any", *ANY), group("crowd"), server, a, b)
    arrival = sent("a", packet.udp(a, b, 1, 2))
    assert asked.thrice(arrival).reason == Reason.NONE
    table = host.datapath.maps["hr_acl_addresses"]
    monkeypatch.setattr(table, "max_entries", len(host.desired["hr_acl_addresses"]) + 9)
    before, tables = asked.state, {name: dict(host.datapath.read(name)) for name in ORDER}
    many = [port(f"m{number}", "blue", number, "any", host="h2") for number in range(10, 20)]
    with pytest.raises(
        DatapathError, match="hr_acl_addresses has room for 10 entries, 1 are in use and 10 more wanted"
    ):
        host.apply(State.of((*before.all(), *many)))
    assert {name: dict(host.datapath.read(name)) for name in ORDER} == tables
    assert host.apply(before) == 0
    assert asked.thrice(arrival).replayed
    monkeypatch.undo()
    asked.apply(State.of((*before.all(), *many)))
    assert host.unlike() == []
    assert asked.thrice(arrival).replayed


def test_one_member_more_of_ten_thousand_is_two_writes(host: PacketHost, twin: Callable[..., Twin]) -> None:
    """One for each address, as the kernel is asked for them."""
    server = group("server", *(rule(f"in{ip}", "ingress", 17, remote_group="crowd", ethertype=ip) for ip in IPS))
    crowd = [port(f"m{number}", "blue", number, "crowd", host=None) for number in range(10, 10_010)]
    asked = twin(network("blue"), server, group("crowd"), port("b", "blue", 2, "server"), *crowd)
    outside = port("m10", "blue", 10, host=None)
    assert host.apply(State.of((*asked.state.all(), outside))) == 2
    assert host.apply(asked.state) == 2
