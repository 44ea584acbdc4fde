"""What an agent believes of a controller that has another database."""

from __future__ import annotations

from pathlib import Path

from headrace.agent.desired import Desired, Mirror, covers, restore, save
from headrace.controller.desired import encode
from headrace.model import Network, Object, Port, Record, SecurityGroup, Segment, State

PORT = Port(id="p", network="n", mac="02:00:00:00:00:01", host="h1", security_groups=("g",))
ELSEWHERE = Port(id="q", network="n", mac="02:00:00:00:00:02", host="h2")
NETWORK, GROUP = Network(id="n", segment=Segment(id=5)), SecurityGroup(id="g")


def desired(epoch: str, *objects: Object) -> Desired:
    return Desired(state=State.of(objects), epoch=epoch)


KNOWN = desired("one", NETWORK, GROUP, PORT, ELSEWHERE)


def test_the_same_database_may_take_ports_away() -> None:
    assert covers(desired("one"), KNOWN, "h1")


def test_an_empty_database_is_doubted() -> None:
    assert not covers(desired("two"), KNOWN, "h1")


def test_a_database_that_is_told_half_is_doubted() -> None:
    assert not covers(desired("two", NETWORK, PORT), KNOWN, "h1"), "its group is missing: everything would be cut"


def test_a_database_with_all_that_this_host_carries_is_believed() -> None:
    assert covers(desired("two", NETWORK, GROUP, PORT), KNOWN, "h1")


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    mirror = Mirror()
    for item in (NETWORK, GROUP, PORT, ELSEWHERE):
        mirror.learn(True, Record(type=item.type, id=item.id, writer="cli", body=encode(item), stored=3))
    mirror.learn(False, Record(type="port", id="q", writer="cli"))
    told = mirror.desired("one", 7)
    save(tmp_path / "desired.json", told)
    back = restore(tmp_path / "desired.json")
    assert back == told
    assert back is not None
    assert back.state == State.of([NETWORK, GROUP, PORT])
    assert (back.epoch, back.revision, back.stored) == ("one", 7, {"p": 3})
    save(tmp_path / "empty.json", Mirror().desired("none", 0))
    assert restore(tmp_path / "empty.json") == Mirror().desired("none", 0)
