"""What is wrong with a port, in words; and which sub-ports no trunk can carry."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import abi
from headrace.agent.config import AgentConfig
from headrace.agent.names import names_of
from headrace.agent.trouble import outward, trouble
from headrace.model import Network, Object, Segment, State
from headrace.stages import Device, View, compile_parts
from headrace.stages.view import flat
from headrace.testing.index import Counting
from headrace.testing.world import HOSTS, network, port

CONFIG = AgentConfig(host="h1", uplinks=("up0",), physical_networks={"one": "eth1", "two": "up0"})
FLAT = Network(id="flat", segment=Segment(type="flat", physical_network="one"))
TRUNK = port("trunk", "blue", 1)


def view(*objects: Object, wires: dict[str, Device] | None = None) -> View:
    return View(
        State.of((*HOSTS, network("blue"), FLAT, *objects)),
        "h1",
        Counting(),
        {"trunk": Device(ifindex=7, name="tap1", xdp=True)},
        ("192.0.2.1",),
        wires=wires,
    )


def sub(name: str, vlan: int, parent: str = "trunk", **fields: Any) -> Object:
    return port(name, fields.pop("on", "blue"), vlan, parent=parent, vlan=vlan, **fields)


def ports(seen: View) -> dict[str, abi.Port]:
    """hr_ports by id of the port."""
    table = flat(compile_parts(seen))["hr_ports"]
    return {one.id: table[abi.U32(value=seen.index.port(one.attachment))] for one in seen.local_ports}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (sub("z", 5, "nobody"), "its parent port nobody is not on this host; bind both to one"),
        (sub("z", 5, "there"), "its parent port there is not on this host; bind both to one"),
        (sub("z", 5, "unwired"), "its parent port unwired cannot be used here; see why"),
        (sub("z", 5, "a"), "its parent port a is a sub-port itself; give it the trunk's own port"),
        (sub("z", 10), "sub-port a of port trunk has VLAN 10; give it another"),
    ],
)
def test_a_sub_port_that_no_trunk_carries_is_down_and_says_why(bad: Any, says: str) -> None:
    seen = view(TRUNK, sub("a", 10), port("there", "blue", 3, host="h2"), port("unwired", "flat", 4), bad)
    assert seen.misfits == {"z": says}
    assert trouble(bad, seen, CONFIG) == says
    held = ports(seen)
    assert not held["z"].flags & abi.PortFlag.UP
    assert held["a"].flags & abi.PortFlag.UP
    table = flat(compile_parts(seen))["hr_subports"]
    assert list(table.values()) == [abi.Subport(port=seen.index.port("a on blue"))]


def test_a_sub_port_has_its_parents_device_and_not_its_hook() -> None:
    seen = view(TRUNK, sub("a", 10))
    held = ports(seen)
    assert (held["a"].ifindex, held["a"].vlan, held["trunk"].vlan) == (7, 10, 0)
    assert held["trunk"].flags & abi.PortFlag.XDP
    assert not held["a"].flags & abi.PortFlag.XDP
    names = names_of(seen, "")
    known = names.ports[str(seen.index.port("a on blue"))]
    assert (known.device, known.vlan) == (TRUNK.device_name, 10)


def test_a_port_on_a_device_that_leads_out_is_refused() -> None:
    assert list(outward(CONFIG)) == ["up0", "eth1"]
    bad = port("p", "blue", 1, device="eth1")
    assert trouble(bad, view(bad), CONFIG) == "device eth1 leads out of this host; give the port one of its own"


def test_what_the_wires_of_physical_networks_are_called() -> None:
    seen = view(port("p", "flat", 1), wires={"one": Device(ifindex=9, name="eth1", mtu=1500)})
    names = names_of(seen, "")
    assert list(names.wires.values()) == list(names.physicals.values()) == ["one"]
    assert names.wires.keys() == {str(seen.index.vtep("wire one"))}
