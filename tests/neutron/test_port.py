"""Binding, and what hosts say of ports. The hosts are played (lab.Host); the demo has real agents."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

import pytest

from headrace.model import PortStatus
from headrace.testing.wait import wait_until
from tests.neutron.lab import SOON, Controller, Host, down, up


@pytest.fixture
def net(cloud: Any) -> Any:
    net = cloud.create_network(name="net")
    cloud.create_subnet(network_id=net.id, ip_version=4, cidr="10.0.0.0/24")
    return net


def agent(admin: Any, host: str) -> Any:
    """The host's agent as Neutron's API shows it, or None."""
    return next(iter(admin.agents(host=host)), None)


def status(admin: Any, port: Any) -> str:
    return str(admin.get_port(port.id).status)


def held_host(controller: Controller, port: Any) -> Any:
    record = controller.record("port", port.id)
    return record and (record.body or {}).get("host")


def test_active_means_the_datapath_has_acknowledged(admin: Any, controller: Controller, net: Any, host: str) -> None:
    """From bound to up, down, in trouble, and up again: never ahead of what the host says."""
    with Host(controller, host, vteps=("192.0.2.1",)) as played:
        wait_until(lambda: agent(admin, host), SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host, device_owner="compute:nova", device_id="vm")
        assert port.binding_vif_type == "tap"
        assert port.binding_vif_details == {
            "port_filter": True,
            "connectivity": "l2",
            "bound_drivers": {"0": "headrace"},
        }
        assert port.status == "DOWN"
        wait_until(lambda: held_host(controller, port) == host, SOON)
        heard(admin, played)
        assert status(admin, port) == "DOWN"
        played.report(up(port.id))
        wait_until(lambda: status(admin, port) == "ACTIVE", SOON)
        played.report(down(port.id))
        wait_until(lambda: status(admin, port) == "DOWN", SOON)
        played.report(PortStatus(id=port.id, state="error", reason="tap is in another namespace"))
        wait_until(lambda: status(admin, port) == "ERROR", SOON)
        played.report(up(port.id))
        wait_until(lambda: status(admin, port) == "ACTIVE", SOON)
        played.forget(port.id)
        wait_until(lambda: status(admin, port) == "DOWN", SOON)


def heard(admin: Any, played: Host) -> None:
    """Return when Neutron has drawn its conclusions from the host's last word.

    What a host can do is written down before its ports are judged, one word after the other: when the second of two
    new words is seen, the first has been judged.
    """
    for _ in range(2):
        version = uuid.uuid4().hex
        played.report(version=version)
        wait_until(lambda version=version: agent(admin, played.name).configuration["version"] == version, SOON)  # type: ignore[misc]


def test_a_drained_host_takes_no_ports(admin: Any, controller: Controller, net: Any, host: str) -> None:
    """Neutron shows its agent as administratively down; a port that asked for it is bound when it takes ports again."""
    with Host(controller, host) as played:
        wait_until(lambda: agent(admin, host), SOON)
        played.report(drained=True)
        wait_until(lambda: not agent(admin, host).is_admin_state_up, SOON)
        heard(admin, played)
        port = admin.create_port(network_id=net.id, binding_host_id=host)
        assert port.binding_vif_type == "binding_failed"
        played.report(drained=False)
        wait_until(lambda: agent(admin, host).is_admin_state_up, SOON)
        wait_until(lambda: admin.get_port(port.id).binding_vif_type == "tap", SOON)


def test_dhcp_delays_no_port(admin: Any, controller: Controller, cloud: Any, host: str) -> None:
    """Subnets with DHCP of every kind, and no DHCP agent anywhere: nothing but the datapath is waited for."""
    net = cloud.create_network()
    cloud.create_subnet(network_id=net.id, ip_version=4, cidr="10.0.0.0/24", is_dhcp_enabled=True)
    modes = {"ipv6_ra_mode": "dhcpv6-stateful", "ipv6_address_mode": "dhcpv6-stateful"}
    cloud.create_subnet(network_id=net.id, ip_version=6, cidr="fd00::/64", **modes)
    with Host(controller, host) as played:
        wait_until(lambda: agent(admin, host), SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host)
        wait_until(lambda: held_host(controller, port) == host, SOON)
        played.report(up(port.id))
        wait_until(lambda: status(admin, port) == "ACTIVE", SOON)
        assert not [each for each in admin.ports(network_id=net.id) if each.device_owner == "network:dhcp"]


def test_an_old_word_does_not_count(admin: Any, controller: Controller, net: Any, host: str) -> None:
    """A host that has not yet applied the binding says `up` of the port's former life there."""
    with Host(controller, host) as played:
        wait_until(lambda: agent(admin, host), SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host)
        wait_until(lambda: held_host(controller, port) == host, SOON)
        played.report(up(port.id))
        wait_until(lambda: status(admin, port) == "ACTIVE", SOON)
        behind = controller.ask(lambda client: client.health()).revision
        played.behind = behind
        admin.update_port(port.id, binding_host_id="")
        port = admin.update_port(port.id, binding_host_id=host)
        assert (port.binding_vif_type, port.status) == ("tap", "DOWN")
        heard(admin, played)
        assert status(admin, port) == "DOWN"
        played.behind = None
        wait_until(lambda: status(admin, port) == "ACTIVE", SOON)


def test_an_administratively_down_port_is_never_active(admin: Any, controller: Controller, net: Any, host: str) -> None:
    with Host(controller, host) as played:
        wait_until(lambda: agent(admin, host), SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host)
        played.report(up(port.id))
        wait_until(lambda: status(admin, port) == "ACTIVE", SOON)
        admin.update_port(port.id, is_admin_state_up=False)
        wait_until(lambda: status(admin, port) == "DOWN", SOON)
        admin.update_port(port.id, is_admin_state_up=True)
        wait_until(lambda: status(admin, port) == "ACTIVE", SOON)


def test_agents_are_listed_and_die(admin: Any, controller: Controller, host: str) -> None:
    """`openstack network agent list`, from heartbeats alone."""
    with Host(controller, host, vteps=("192.0.2.7",), version="1.2") as played:
        found = wait_until(lambda: agent(admin, host), SOON)
        assert (found.agent_type, found.binary, found.is_alive) == ("Headrace agent", "headrace-agent", True)
        assert found.configuration["vteps"] == ["192.0.2.7"]
        played.report(version="1.3")
        wait_until(lambda: agent(admin, host).configuration["version"] == "1.3", SOON)
        played.die()
        wait_until(lambda: not agent(admin, host).is_alive, SOON)


@pytest.mark.parametrize(
    ("abilities", "change", "reason"),
    [
        (None, {}, "no Headrace agent has reported from host"),
        ({"network_types": ("gre", "mpls")}, {}, "network type vxlan is not available"),
        ({}, {"binding_vnic_type": "direct"}, "vnic type direct is not supported"),
        ({"mtu": 1499}, {}, "its mtu 1450 needs 1500 on the uplinks of host"),
        ({"mtu": 1500, "vteps": ("2001:db8::7",)}, {}, "its mtu 1450 needs 1520 on the uplinks of host"),
    ],
    ids=["no agent", "network type", "vnic type", "mtu", "mtu over IPv6"],
)
def test_what_a_host_cannot_honour_is_refused_with_the_reason(
    admin: Any, controller: Controller, net: Any, host: str, abilities: Any, change: Any, reason: str
) -> None:
    """Neutron says only binding_failed; the reason is where `headrace port show` finds it."""
    with played(controller, host, abilities):
        if abilities is not None:
            wait_until(lambda: agent(admin, host), SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host, **change)
        assert port.binding_vif_type == "binding_failed"
        told = wait_until(lambda: controller.refusals().get(port.id), SOON)
        assert reason in str(told)
        assert held_host(controller, port) is None
        admin.delete_port(port.id)
        wait_until(lambda: port.id not in controller.refusals(), SOON)


def played(controller: Controller, host: str, abilities: Any) -> Any:
    """A host with these abilities, or none at all."""
    return contextlib.nullcontext() if abilities is None else Host(controller, host, **abilities)


def test_a_refused_port_is_bound_when_its_host_can(admin: Any, controller: Controller, net: Any, host: str) -> None:
    """An agent that appears, or learns a network type, finds its ports without anyone asking again."""
    early = admin.create_port(network_id=net.id, binding_host_id=host)
    assert early.binding_vif_type == "binding_failed"
    with Host(controller, host, network_types=()) as later:
        wait_until(lambda: agent(admin, host), SOON)
        wait_until(lambda: "not available" in controller.refusals().get(early.id, ""), SOON)
        later.report(network_types=("vxlan",))
        wait_until(lambda: admin.get_port(early.id).binding_vif_type == "tap", SOON)
        wait_until(lambda: held_host(controller, early) == host, SOON)
        wait_until(lambda: early.id not in controller.refusals(), SOON)
        later.report(up(early.id))
        wait_until(lambda: status(admin, early) == "ACTIVE", SOON)


def test_nothing_is_bound_where_the_agent_is_dead(admin: Any, controller: Controller, net: Any, host: str) -> None:
    with Host(controller, host) as played:
        wait_until(lambda: agent(admin, host), SOON)
        played.die()
        wait_until(lambda: not agent(admin, host).is_alive, SOON)
        port = admin.create_port(network_id=net.id, binding_host_id=host)
        assert port.binding_vif_type == "binding_failed"
        told = wait_until(lambda: controller.refusals().get(port.id), SOON)
        assert f"the Headrace agent on host {host} is dead" in str(told)


def test_a_port_that_cannot_be_expressed_is_refused_whole(
    admin: Any, controller: Controller, net: Any, equal: Any, host: str
) -> None:
    """A multicast MAC address is one that Neutron takes and the datapath does not; the others are not held up."""
    with Host(controller, host):
        wait_until(lambda: agent(admin, host), SOON)
        port = admin.create_port(network_id=net.id, mac_address="03:00:00:00:00:01", binding_host_id=host)
        assert port.binding_vif_type == "binding_failed"
        wait_until(lambda: "multicast" in controller.refusals().get(port.id, ""), SOON)
        other = admin.create_port(network_id=net.id, binding_host_id=host)
        wait_until(lambda: held_host(controller, other) == host, SOON)
        assert controller.record("port", port.id) is None
        admin.delete_port(port.id)
        equal()
