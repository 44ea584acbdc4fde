"""What is done about a trunk, case by case; no server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from neutron_lib.services.trunk import constants as trunk_constants

from headrace.neutron.follow import Change, Member, Trunk, changes, release, status


def bound(id_: str, host: str = "h1", **more: Any) -> Member:
    given: dict[str, Any] = {"status": "ACTIVE", "host": host, "vif_type": "tap", "ours": True} | more
    return Member(id=id_, **given)


def sub(id_: str, tag: int, host: str = "h1", **more: Any) -> tuple[int, Member]:
    given: dict[str, Any] = {"profile": {"parent_name": "p", "tag": tag}, "device_owner": "trunk:subport"} | more
    return tag, bound(id_, host, **given)


def free(id_: str, status: str = "DOWN", **more: Any) -> Member:
    return Member(id=id_, status=status, **more)


PARENT = bound("p")
FOREIGN = bound("p", vif_type="ovs", ours=False)
FAILED: dict[str, Any] = {"status": "DOWN", "vif_type": "binding_failed", "ours": False}


def trunk(parent: Member, *subports: tuple[int, Member], status: str = "OLD") -> Trunk:
    return Trunk(id="t", status=status, parent=parent, subports=subports)


def to(port: str, tag: int, host: str, **more: Any) -> Change:
    return Change(port=port, host=host, device_owner="trunk:subport", profile={"parent_name": "p", "tag": tag} | more)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (trunk(PARENT), []),
        (trunk(PARENT, sub("a", 1), sub("b", 2)), []),
        (trunk(PARENT, (1, free("a"))), [to("a", 1, "h1")]),
        (trunk(PARENT, (1, free("a", profile={"x": 1}))), [to("a", 1, "h1", x=1)]),
        (trunk(PARENT, sub("a", 1, "h2"), sub("b", 2)), [to("a", 1, "h1")]),
        (trunk(PARENT, (3, sub("a", 1)[1])), [to("a", 3, "h1")]),
        (trunk(PARENT, sub("a", 1, device_owner="")), [to("a", 1, "h1")]),
        # Refused there: tried again when the host learns something, not here.
        (trunk(PARENT, sub("a", 1, **FAILED)), []),
        # Another driver's, on whichever side.
        (trunk(PARENT, sub("a", 1, "h2", vif_type="ovs", ours=False)), []),
        (trunk(FOREIGN, (1, free("a")), sub("b", 2, "h2")), []),
        # A parent that is nowhere.
        (trunk(free("p"), sub("a", 1)), [to("a", 1, "")]),
        (trunk(free("p", host="h1", vif_type="binding_failed"), sub("a", 1)), [to("a", 1, "")]),
        (trunk(free("p"), sub("a", 1, "", vif_type="unbound", ours=False)), []),
    ],
)
def test_sub_ports_are_brought_to_their_parent(given: Trunk, wanted: list[Change]) -> None:
    assert changes(given) == wanted
    assert changes(after(given, wanted), again=True) == []


def after(given: Trunk, done: list[Change]) -> Trunk:
    """The trunk once the changes are made, and bound where they say."""
    made = {change.port: change for change in done}
    subports = tuple(
        (tag, bound(change.port, change.host, **kept(change)) if (change := made.get(port.id)) else port)
        for tag, port in given.subports
    )
    return msgspec.structs.replace(given, subports=subports)


def kept(change: Change) -> dict[str, Any]:
    there = {} if change.host else {"vif_type": "unbound", "ours": False}
    return {"profile": change.profile, "device_owner": change.device_owner} | there


def test_what_nobody_bound_is_tried_again_but_not_at_every_mark() -> None:
    stuck = trunk(PARENT, sub("a", 1, vif_type="unbound", ours=False))
    assert changes(stuck) == []
    assert changes(stuck, again=True) == [to("a", 1, "h1")]


def test_a_port_that_is_none_any_more_is_free() -> None:
    _, left = sub("a", 1)
    left = msgspec.structs.replace(left, profile=left.profile | {"x": 1})
    assert release(left) == Change(port="a", host="", device_owner="", profile={"x": 1})
    assert release(bound("a", device_owner="compute:nova")) is None
    assert release(msgspec.structs.replace(left, vif_type="ovs", ours=False)) is None


WAITING: dict[str, Any] = {"status": "DOWN", "blocked": True}
DOWN: dict[str, Any] = {"status": "DOWN"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (trunk(PARENT), "ACTIVE"),
        (trunk(PARENT, sub("a", 1), sub("b", 2)), "ACTIVE"),
        (trunk(PARENT, sub("a", 1, status="DOWN", admin_up=False)), "ACTIVE"),
        (trunk(PARENT, sub("a", 1), sub("b", 2, **WAITING)), "BUILD"),
        (trunk(PARENT, (1, free("a"))), "BUILD"),
        (trunk(bound("p", **WAITING), sub("a", 1)), "BUILD"),
        (trunk(bound("p", **WAITING), sub("a", 1, **FAILED)), "BUILD"),
        (trunk(PARENT, sub("a", 1), sub("b", 2, **FAILED)), "DEGRADED"),
        (trunk(PARENT, sub("a", 1, **WAITING), sub("b", 2, status="ERROR")), "DEGRADED"),
        (trunk(PARENT, sub("a", 1, **DOWN)), "DEGRADED"),
        (trunk(PARENT, sub("a", 1, vif_type="ovs", ours=False, status="BUILD")), "DEGRADED"),
        (trunk(bound("p", **DOWN), sub("a", 1)), "DOWN"),
        (trunk(bound("p", status="ERROR"), sub("a", 1)), "DOWN"),
        (trunk(free("p"), sub("a", 1)), "DOWN"),
        (trunk(free("p", host="h1", vif_type="binding_failed")), "DOWN"),
        (trunk(FOREIGN, sub("a", 1)), "OLD"),
    ],
)
def test_a_trunk_says_how_far_it_got(given: Trunk, wanted: str) -> None:
    assert status(given) == wanted
    assert wanted == "OLD" or wanted in {
        value for name, value in vars(trunk_constants).items() if name.endswith("_STATUS")
    }
