"""Epochs rise for whom a change takes something away, and for nobody else."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.datapath.delta import Delta
from headrace.model import Host, Network, Port, Rule, SecurityGroup, Segment, State
from headrace.stages import Device, Parts, Tables, View, compile_tables
from headrace.stages.compile import ORDER
from headrace.testing.index import Counting

INDEX = Counting()


def state(rules: tuple[Rule, ...], **changes: dict[str, Any]) -> State:
    """Ports a1 and a2 here, b1 and b2 on host b, all in group g; ``changes``: port id -> fields."""
    ports = [
        Port(id=f"{host}{number}", network="n", mac=f"02:00:00:00:0{'ab'.index(host)}:0{number}",
             addresses=(f"10.0.{'ab'.index(host)}.{number}",), security_groups=("g",), host=host)
        for host in "ab" for number in (1, 2)
    ]  # fmt: skip
    return State.of(
        [
            Network(id="n", segment=Segment(id=9)),
            Host(id="a", vteps=("192.0.2.1",)),
            Host(id="b", vteps=("192.0.2.2",)),
            Host(id="c", vteps=("192.0.2.3",)),
            SecurityGroup(id="g", rules=rules),
            SecurityGroup(id="h"),
            *(msgspec.structs.replace(port, **changes.get(port.id, {})) for port in ports),
        ]
    )


def compiled(desired: State) -> Tables:
    devices = {"a1": Device(ifindex=5, name="tapa1"), "a2": Device(ifindex=6, name="tapa2")}
    return compile_tables(View(desired, "a", INDEX, devices, ("192.0.2.1",)))


def parts(tables: Tables) -> Parts:
    return {name: {"all": table} for name, table in tables.items()}


def concerned(old: Tables, new: Tables) -> set[int]:
    return Delta(old, parts(new)).epochs


MEMBERS = (Rule(id="r1", direction="ingress", remote_group="g"), Rule(id="e", direction="egress"))
ONE_MORE = (*MEMBERS, Rule(id="r2", direction="ingress", protocol=6, port_min=80, port_max=80))


def local(name: str) -> int:
    return INDEX.port(f"{name} on n")


def remote(name: str) -> int:
    return INDEX.endpoint(f"port {name}")


def test_nothing_changed_concerns_nobody() -> None:
    assert concerned(compiled(state(MEMBERS)), compiled(state(MEMBERS))) == set()


def test_from_nothing_concerns_nobody() -> None:
    assert concerned({}, compiled(state(MEMBERS))) == set()


def test_a_rule_removed_concerns_the_ports_of_the_policy() -> None:
    assert concerned(compiled(state(ONE_MORE)), compiled(state(MEMBERS))) == {local("a1"), local("a2")}


def test_a_member_that_leaves_concerns_the_ports_that_name_its_group() -> None:
    """Not the member's own index: its address may come from a router's or a pair's MAC."""
    after = compiled(state(MEMBERS, b1={"security_groups": ("h",)}))
    assert concerned(compiled(state(MEMBERS)), after) == {local("a1"), local("a2")}


def test_a_member_that_joins_concerns_nobody() -> None:
    before = compiled(state(MEMBERS, b1={"security_groups": ("h",)}))
    assert concerned(before, compiled(state(MEMBERS))) == set()


def test_a_vtep_that_is_gone_concerns_every_port() -> None:
    """What it sent has the index of the sender, not of the VTEP."""
    before = compiled(state(MEMBERS))
    after = {name: dict(table) for name, table in before.items()}
    after["hr_vteps"].clear()
    assert concerned(before, after) >= {local("a1"), local("a2")}


def test_a_port_that_moved_is_one_index() -> None:
    kept = {"b1": {"host": "b"}, "b2": {"host": "c"}}
    assert concerned(compiled(state(MEMBERS)), compiled(state(MEMBERS, **kept))) == {remote("b2")}


def test_a_port_that_is_gone_concerns_itself() -> None:
    after = state(MEMBERS)
    after = State.of(item for item in after.all() if item.id != "b1")
    assert concerned(compiled(state(MEMBERS)), compiled(after)) == {remote("b1"), local("a1"), local("a2")}


def test_an_address_taken_away_concerns_the_port() -> None:
    after = compiled(state(MEMBERS, a1={"addresses": ("10.0.0.9",)}))
    assert local("a1") in concerned(compiled(state(MEMBERS)), after)
    assert remote("b1") not in concerned(compiled(state(MEMBERS)), after)


def test_a_delta_puts_what_is_referred_to_first_and_ends_equal() -> None:
    before, after = compiled(state(MEMBERS)), compiled(state(ONE_MORE, b1={"host": "c"}))
    delta = Delta({name: dict(table) for name, table in before.items()}, parts(after))
    order = [name for name, _ in delta.puts()]
    assert order == sorted(order, key=ORDER.index)
    for deletes in (delta.deletes(), delta.leftovers()):
        gone = [name for name, _ in deletes]
        assert gone == sorted(gone, key=ORDER.index, reverse=True)
    for name, entries in delta.puts():
        before[name].update(entries)
    for name, keys in (*delta.deletes(), *delta.leftovers()):
        for key in keys:
            del before[name][key]
    assert before == after
    assert not Delta(before, parts(after))
