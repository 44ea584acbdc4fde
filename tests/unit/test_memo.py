"""Compiling from what was compiled before gives what compiling anew gives, and a change writes only what it changes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import abi
from headrace.datapath.delta import Delta
from headrace.errors import DatapathError
from headrace.model import Host, Object, Port, Rule, SecurityGroup, State, decode
from headrace.stages import Device, Memo, Parts, Tables, View, compile_parts, compile_tables
from headrace.stages.compile import ORDER
from headrace.stages.memo import Entry
from headrace.stages.view import flat
from headrace.testing import world
from headrace.testing.choice import Chooser, Drawn
from headrace.testing.index import Counting
from headrace.testing.strategy_state import HOST, draw_change, draw_port, draw_state

ROOM = dict.fromkeys(ORDER, 1 << 20)
MANY = 10_000


def devices(state: State) -> dict[str, Device]:
    return {port: Device(ifindex=number, name=port) for number, port in enumerate(sorted(state.ports_on(HOST)), 5)}


def view(state: State, index: Counting, memo: Memo | None = None) -> View:
    own = state.hosts[HOST].vteps if HOST in state.hosts else ()
    return View(state, HOST, index, devices(state), own, memo=memo)


def change(choose: Chooser, state: State) -> State:
    """What the strategy of packet tests does, and ports that come and go."""
    kind = choose.number(0, 5)
    if kind > 2:
        return draw_change(choose, state)
    if kind == 2:
        gone = choose.pick(("", *sorted(state.ports.keys() - {"p1", "p2"})))
        return State.of(item for item in state.all() if item.id != gone)
    network = choose.pick(("n1", "n2"))
    port = draw_port(choose, f"x{choose.number(1, 3)}", network, choose.number(1, 4))
    if kind == 1:  # with a MAC that another has, as a state file may have it
        port = msgspec.structs.replace(port, mac=choose.pick(sorted(port.mac for port in state.ports.values())))
    return State.of((*state.all(), port))


def carry_out(delta: Delta, tables: Tables) -> None:
    for name, entries in delta.puts():
        tables[name].update(entries)
    for name, keys in (*delta.deletes(), *delta.leftovers()):
        for key in keys:
            del tables[name][key]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_step_by_step_is_as_from_nothing(data: st.DataObject) -> None:
    choose = Drawn(data.draw)
    state, index, memo = draw_state(choose), Counting(), Memo()
    actual: Tables = {name: {} for name in ORDER}
    applied: Parts | None = None
    for _ in range(choose.number(1, 8)):
        gone = choose.pick(("", "", *sorted(item.id for item in state.all())))  # for this step only
        seen = State.of(item for item in state.all() if item.id != gone)
        parts = compile_parts(view(seen, index, memo))
        wanted = compile_tables(view(seen, index))
        assert flat(parts) == wanted
        assert {name: sum(map(len, held.values())) for name, held in parts.items()} == {
            name: len(table) for name, table in wanted.items()
        }, "two parts have a key in common"
        step, whole = Delta(actual, parts, applied), Delta(actual, {name: {"": wanted[name]} for name in ORDER})
        assert dict(step.puts()) == dict(whole.puts())
        assert step.epochs == whole.epochs
        carry_out(step, actual)
        assert actual == wanted
        applied, state = parts, change(choose, state)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcdef"), st.frozensets(st.integers(0, 9), max_size=4), max_size=6), max_size=8
    )
)
def test_a_table_spread_over_elements(steps: list[dict[str, frozenset[int]]]) -> None:
    """Keys of several elements are the last one's, also when others come and go."""

    def make(element: tuple[str, frozenset[int]]) -> list[Entry]:
        return [(abi.U32(value=key), abi.U32(value=ord(element[0]))) for key in element[1]]

    memo = Memo()
    for step in steps:
        memo.turn()
        elements = {name: (name, step[name]) for name in sorted(step)}
        plain = {key: value for element in elements.values() for key, value in make(element)}
        assert memo.spread("table", elements, make) == plain


def test_a_memo_forgets_what_nobody_asks_for() -> None:
    memo, made = Memo(), []

    def make(what: str) -> str:
        made.append(what)
        return what

    for name in ("a", "a", "b", "a"):
        memo.turn()
        memo.of(name, make, name)
    assert made == ["a", "b", "a"]


def crowd(count: int) -> tuple[Object, ...]:
    """A group of many members on other hosts, and a port here that lets them in."""
    hosts = [Host(id=f"h{number}", vteps=(f"192.0.2.{number}",)) for number in range(1, 50)]
    both = [world.rule(f"in{ip}", "ingress", 6, 80, remote_group="crowd", ethertype=ip) for ip in ("IPv4", "IPv6")]
    ports = [member(number) for number in range(count)]
    return (*hosts, world.network("blue"), world.group("crowd"), world.group("server", *both),
            world.port("p", "blue", 1, "server"), *ports)  # fmt: skip


def member(number: int) -> Port:
    return world.port(f"m{number}", "blue", number + 10, "crowd", host=f"h{2 + number % 40}")


def entries(delta: Delta) -> dict[str, int]:
    return {name: len(table) for name, table in delta.puts()}


@pytest.mark.parametrize("count", [100, MANY])
def test_one_member_more_or_less_is_as_many_writes_in_any_crowd(count: int) -> None:
    before, index, memo = crowd(count), Counting(), Memo()
    one = compile_parts(view(State.of(before), index, memo))
    joined = member(count)
    two = compile_parts(view(State.of((*before, joined)), index, memo))
    delta = Delta(flat(one), two, one)
    assert entries(delta) == {"hr_acl_addresses": 2, "hr_neighbours": 2, "hr_fdbs": 1}
    assert not delta.epochs
    three = compile_parts(view(State.of(before), index, memo))
    back = Delta(flat(two), three, two)
    assert not entries(back)
    assert sum(len(keys) for _, keys in (*back.deletes(), *back.leftovers())) == 5
    assert flat(three) == flat(one)


def test_a_member_that_only_joins_is_one_write_for_each_address() -> None:
    before, index, memo = crowd(MANY), Counting(), Memo()
    outside = msgspec.structs.replace(member(0), security_groups=())
    one = compile_parts(view(State.of((*before, outside)), index, memo))
    two = compile_parts(view(State.of(before), index, memo))
    assert entries(Delta(flat(one), two, one)) == {"hr_acl_addresses": 2}


def test_a_rule_more_does_not_write_the_members_again() -> None:
    before, index, memo = crowd(1000), Counting(), Memo()
    state = State.of(before)
    one = compile_parts(view(state, index, memo))
    more = world.rule("more", "ingress", 17, 53, remote_group="crowd")
    server = msgspec.structs.replace(
        state.security_groups["server"], rules=(*state.security_groups["server"].rules, more)
    )
    two = compile_parts(view(State.of((*before, server)), index, memo))
    written = entries(Delta(flat(one), two, one))
    assert "hr_acl_addresses" not in written
    assert sum(written.values()) < 10


def test_policies_that_speak_of_the_same_group_share_its_members() -> None:
    before = crowd(100)
    other = world.group("other", world.rule("o", "ingress", 17, 53, remote_group="crowd"))
    tables = compile_tables(view(State.of((*before, other, world.port("q", "blue", 2, "other"))), Counting()))
    assert len(tables["hr_acl_addresses"]) == 200


def test_a_table_that_is_full_is_said_before_anything_is_written() -> None:
    index = Counting()
    one, two = (compile_parts(view(State.of(crowd(count)), index)) for count in (10, 20))
    Delta(flat(one), two).fit(ROOM)
    with pytest.raises(DatapathError, match=r"hr_acl_addresses has room for 30 entries, 20 are in use and 20 more"):
        Delta(flat(one), two).fit(ROOM | {"hr_acl_addresses": 30})


def test_rules_that_did_not_change_are_the_same_objects() -> None:
    def body(*ports: int, **more: Any) -> dict[str, Any]:
        rules = [
            {"id": f"r{port}", "direction": "ingress", "protocol": 6, "port_min": port, "port_max": port}
            for port in ports
        ]
        return {"id": "g", "rules": rules, **more}

    old = body(1, 2, 3)
    before = decode("security_group", old)
    new = body(3, 4, 1, name="web")
    new["rules"][2]["protocol"] = 17
    after = decode("security_group", new, (old, before))
    assert after == decode("security_group", new)
    assert isinstance(before, SecurityGroup)
    assert isinstance(after, SecurityGroup)
    assert after.rules[0] is before.rules[2]
    assert isinstance(after.rules[1], Rule)
