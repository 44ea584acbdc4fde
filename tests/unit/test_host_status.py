"""What a host says it can carry."""

from __future__ import annotations

from typing import Any, cast

import pytest

from headrace.agent.config import AgentConfig
from headrace.agent.reconcile import Reconciler
from headrace.datapath.netlink import Link
from headrace.model import HostStatus, WireStatus

TUNNELS = ("vxlan", "geneve", "gre", "mpls", "nsh")


class Devices:
    """What netlink knows."""

    def __init__(self, **mtus: int) -> None:
        self.mtus = mtus

    def links(self) -> list[Link]:
        nothing: dict[str, Any] = dict.fromkeys(("master", "lower", "peer", "peer_nsid"))
        return [
            Link(ifindex=number, name=name, kind="", mac="02:00:00:00:00:01", mtu=mtu, up=True, carrier=True, **nothing)
            for number, (name, mtu) in enumerate(self.mtus.items(), 1)
        ]


def says(tmp_path: Any, devices: Devices, **options: Any) -> HostStatus:
    config = AgentConfig(
        host="h1", state="s", uplinks=("eth0", "eth9"), vteps=("192.0.2.1",), cache=str(tmp_path), **options
    )
    return Reconciler(config, cast("Any", None), cast("Any", devices)).status()


@pytest.mark.parametrize("mapped", [{}, {"a": "eth7"}], ids=["no physical network", "its device is not there"])
def test_tunnels_are_always_offered(tmp_path: Any, mapped: dict[str, str]) -> None:
    status = says(tmp_path, Devices(eth0=9000), physical_networks=mapped)
    assert (status.network_types, status.physical_networks, status.wires) == (TUNNELS, (), {})
    assert (status.mtu, status.vteps) == (9000, ("192.0.2.1",))


def test_flat_and_vlan_are_where_a_physical_network_has_its_device(tmp_path: Any) -> None:
    mapped = {"b": "eth2", "a": "eth1", "c": "eth7"}
    status = says(tmp_path, Devices(eth0=9000, eth1=1500, eth2=2000), physical_networks=mapped)
    assert status.network_types == ("flat", "vlan", *TUNNELS)
    assert status.physical_networks == ("a", "b")
    assert status.wires == {"a": WireStatus(device="eth1", mtu=1500), "b": WireStatus(device="eth2", mtu=2000)}
    assert status.mtu == 9000, "of the uplinks alone"
