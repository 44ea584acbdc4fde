"""Networks of every type: what Neutron makes of them, where their ports may be, and what is refused whole."""

from __future__ import annotations

from typing import Any

import openstack.exceptions
import pytest

from headrace.model import WireStatus
from headrace.testing.wait import wait_until
from tests.neutron.lab import SOON, Controller, Host, up
from tests.neutron.test_port import agent, held_host, status

TUNNELS = ("vxlan", "geneve", "gre", "mpls", "nsh")
EVERY: dict[str, Any] = {
    "network_types": ("flat", "vlan", *TUNNELS),
    "physical_networks": ("physnet1",),
    "wires": {"physnet1": WireStatus(device="eth1", mtu=1500)},
    "mtu": 1500,
}
DETAILS = {"port_filter": True, "connectivity": "l2", "bound_drivers": {"0": "headrace"}}


def segment(controller: Controller, network: str) -> Any:
    record = controller.record("network", network)
    return record and (record.body or {}).get("segment")


@pytest.mark.parametrize(
    ("given", "mtu", "carried"),
    [
        ({"type": "flat", "physical_network": "physnet1"}, 1500, {}),
        ({"type": "vlan", "physical_network": "physnet1"}, 1500, {}),
        ({"type": "vxlan"}, 1450, {}),
        ({"type": "geneve"}, 1450, {}),
        ({"type": "gre"}, 1458, {}),
        ({"type": "mpls"}, 1454, {"transport": "udp"}),
        ({"type": "nsh"}, 1442, {"transport": "gpe"}),
    ],
    ids=lambda given: given.get("type", "") if isinstance(given, dict) else str(given),
)
def test_a_port_on_a_network_of_every_type(
    admin: Any, controller: Controller, host: str, equal: Any, given: Any, mtu: int, carried: Any
) -> None:
    """Made from the configured ranges, with the MTU that its headers leave of 1500, bound, active."""
    net = admin.create_network(**{f"provider_{'network_type' if k == 'type' else k}": v for k, v in given.items()})
    try:
        admin.create_subnet(network_id=net.id, ip_version=4, cidr="10.0.0.0/24")
        assert net.mtu == mtu
        with Host(controller, host, **EVERY) as played:
            wait_until(lambda: agent(admin, host), SOON)
            port = admin.create_port(network_id=net.id, binding_host_id=host)
            assert (port.binding_vif_type, port.binding_vif_details) == ("tap", DETAILS)
            wait_until(lambda: held_host(controller, port) == host, SOON)
            wanted = given | carried | ({"id": net.provider_segmentation_id} if given["type"] != "flat" else {})
            if given["type"] == "vxlan":
                del wanted["type"]
            assert segment(controller, net.id) == wanted
            played.report(up(port.id))
            wait_until(lambda: status(admin, port) == "ACTIVE", SOON)
            equal()
            admin.delete_port(port.id)
    finally:
        admin.delete_network(net.id)


@pytest.mark.parametrize(
    ("kind", "number", "reason"),
    [
        ("mpls", 15, "15 is no label; give 16 to 1048575"),
        ("mpls", 1 << 20, "1048576 is no label"),
        ("nsh", 1 << 24, "16777216 is no service path identifier; give 1 to 16777215"),
    ],
)
def test_what_no_header_has_room_for_is_no_network(admin: Any, kind: str, number: int, reason: str) -> None:
    with pytest.raises(openstack.exceptions.BadRequestException, match=reason):
        admin.create_network(provider_network_type=kind, provider_segmentation_id=number)


def test_an_identifier_is_given_once(admin: Any) -> None:
    """Also outside the configured ranges; and it can be had again when its network is gone."""
    wanted = {"provider_network_type": "mpls", "provider_segmentation_id": 777_777}
    net = admin.create_network(**wanted)
    with pytest.raises(openstack.exceptions.ConflictException):
        admin.create_network(**wanted)
    admin.delete_network(net.id)
    net = admin.create_network(**wanted)
    admin.delete_network(net.id)
    with pytest.raises(openstack.exceptions.BadRequestException, match="physical_network"):
        admin.create_network(provider_network_type="nsh", provider_physical_network="physnet1")


def test_an_agent_shows_what_its_host_can(admin: Any, controller: Controller, host: str) -> None:
    with Host(controller, host, **EVERY):
        found = wait_until(lambda: agent(admin, host), SOON).configuration
    assert found["network_types"] == ["flat", "vlan", *TUNNELS]
    assert found["tunnel_types"] == list(TUNNELS)
    assert found["bridge_mappings"] == {"physnet1": "eth1"}
    assert (found["physical_networks"], found["physical_mtus"]) == (["physnet1"], {"physnet1": 1500})
    assert found["mtu"] == 1500


def test_a_port_waits_until_its_physical_network_is_connected(admin: Any, controller: Controller, host: str) -> None:
    net = admin.create_network(provider_network_type="vlan", provider_physical_network="physnet1")
    with Host(controller, host, network_types=TUNNELS) as played:
        wait_until(lambda: agent(admin, host), SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host)
        assert port.binding_vif_type == "binding_failed"
        told = wait_until(lambda: controller.refusals().get(port.id), SOON)
        assert f"physical network physnet1 is not connected on host {host}; there, set physical_networks" in str(told)
        assert held_host(controller, port) is None
        played.report(**EVERY)
        wait_until(lambda: admin.get_port(port.id).binding_vif_type == "tap", SOON)
        wait_until(lambda: held_host(controller, port) == host, SOON)
    admin.delete_port(port.id)


def test_a_network_of_several_segments_is_refused_whole(
    admin: Any, controller: Controller, host: str, equal: Any
) -> None:
    """Its ports are known, as members of groups, and on no host."""
    segments = [
        {"provider:network_type": "vxlan"},
        {"provider:network_type": "vlan", "provider:physical_network": "physnet1"},
    ]
    net = admin.create_network(segments=segments)
    admin.create_subnet(network_id=net.id, ip_version=4, cidr="10.0.0.0/24")
    with Host(controller, host, **EVERY):
        wait_until(lambda: agent(admin, host), SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host)
        assert port.binding_vif_type == "binding_failed"
        told = wait_until(lambda: controller.refusals().get(port.id), SOON)
        assert "has 2 segments; Headrace carries networks of exactly one" in str(told)
        equal()
        assert controller.record("network", net.id) is None
        record = controller.record("port", port.id)
        assert record is not None
        assert "host" not in (record.body or {})
    admin.delete_port(port.id)
    admin.delete_network(net.id)


def test_a_key_that_no_segment_has_is_refused(admin: Any, controller: Controller, host: str) -> None:
    """Neutron's GRE keys have 31 bits here, ours 28."""
    net = admin.create_network(provider_network_type="gre", provider_segmentation_id=1 << 28)
    with Host(controller, host, **EVERY):
        wait_until(lambda: agent(admin, host), SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host)
        assert port.binding_vif_type == "binding_failed"
        told = wait_until(lambda: controller.refusals().get(port.id), SOON)
        assert "268435456 is out of range; give one from 1 to 268435455" in str(told)
    admin.delete_port(port.id)
    admin.delete_network(net.id)
