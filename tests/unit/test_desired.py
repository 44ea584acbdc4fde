"""What an agent believes of a controller that has another database."""

from __future__ import annotations

from headrace.agent.desired import Desired, covers
from headrace.model import Network, Object, Port, SecurityGroup, Segment, State

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
