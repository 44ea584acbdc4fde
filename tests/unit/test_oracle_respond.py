"""What the oracle leaves to the agent: docs/pipeline.md, "respond". Answers of its own are in test_oracle_spoof.py."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.abi import Reason
from headrace.model import DhcpOption, Subnet
from headrace.testing import packet
from headrace.testing.packet import Somewhere
from headrace.testing.world import ANY, World, group, network, port

A = Somewhere("02:00:00:00:00:01", ("10.0.0.1", "fd00::1"))
ALL_ROUTERS: dict[str, Any] = {"dst": "ff02::2", "dmac": "33:33:00:00:00:02"}
SERVERS: dict[str, Any] = {"dst": "ff02::1:2", "dmac": "33:33:00:01:00:02"}
QUESTIONS = {
    "DHCPv4": packet.udp(A, A, 68, 67, src="0.0.0.0", dst="255.255.255.255", dmac=packet.BROADCAST),
    "DHCPv6": packet.udp(A, A, 546, 547, family=6, src="fe80::ff:fe00:1", **SERVERS),
    "RA": packet.icmp(A, A, 133, family=6, src="fe80::ff:fe00:1", hlim=255, **ALL_ROUTERS),
}
MODES = ("slaac", "dhcpv6-stateful", "dhcpv6-stateless", None)


def subnet4(**fields: Any) -> Subnet:
    given: dict[str, Any] = {"id": "s4", "network": "blue", "cidr": "10.0.0.0/24", "enable_dhcp": True} | fields
    return Subnet(**given)


def subnet6(**fields: Any) -> Subnet:
    given: dict[str, Any] = {"id": "s6", "network": "blue", "cidr": "fd00::/64", "enable_dhcp": True} | fields
    return Subnet(**given)


@pytest.fixture
def world() -> World:
    return World(
        network("blue"),
        network("red", 200),
        group("any", *ANY),
        port("a", "blue", 1, "any"),
        port("b", "blue", 2, "any"),
        subnet4(),
        subnet6(ipv6_ra_mode="dhcpv6-stateful", ipv6_address_mode="dhcpv6-stateful"),
    )


def punted(world: World, name: str = "a") -> set[str]:
    """Which questions the agent gets."""
    decisions = {what: world.send(name, frame).hops[0].decision for what, frame in QUESTIONS.items()}
    assert {decision.reason for decision in decisions.values()} <= {Reason.PUNTED, Reason.FLOODED}
    for decision in decisions.values():
        assert decision.dropped is False
        assert bool(decision.outputs) is (decision.reason == Reason.FLOODED)
    return {what for what, decision in decisions.items() if decision.reason == Reason.PUNTED}


def test_each_by_its_subnet(world: World) -> None:
    assert punted(world) == {"DHCPv4", "DHCPv6", "RA"}
    world.put(subnet4(enable_dhcp=False))
    assert punted(world) == {"DHCPv6", "RA"}
    world.put(subnet4(), subnet6(enable_dhcp=False, ipv6_ra_mode="slaac"))
    assert punted(world) == {"DHCPv4"}


@pytest.mark.parametrize("ra", MODES)
@pytest.mark.parametrize("address", MODES)
def test_the_modes_of_ipv6(world: World, ra: Any, address: Any) -> None:
    world.put(subnet6(ipv6_ra_mode=ra, ipv6_address_mode=address))
    by_dhcp = address in {"dhcpv6-stateful", "dhcpv6-stateless"} or (ra is None and address is None)
    assert punted(world) - {"DHCPv4"} == ({"DHCPv6"} if by_dhcp else set()) | ({"RA"} if ra else set())


@pytest.mark.parametrize("change", [{"network": "red"}, {"cidr": "10.9.0.0/24"}])
def test_subnets_of_others(world: World, change: dict[str, str]) -> None:
    world.put(subnet4(**change))
    assert punted(world) == {"DHCPv6", "RA"}


def test_dhcp_servers_and_routers_of_the_network(world: World) -> None:
    world.put(port("dhcp", "blue", 9, host=None, device_owner="network:dhcp"))
    assert punted(world) == {"RA"}
    world.put(port("router", "blue", 8, host=None, device_owner="network:router_interface"))
    assert punted(world) == {"RA"}
    world.put(port("router", "blue", 8, host="h2", device_owner="network:router_interface"))
    assert punted(world) == set()


@pytest.mark.parametrize("owner", ["network:router_interface", "network:dhcp"])
def test_they_themselves_get_nothing(world: World, owner: str) -> None:
    world.put(port("a", "blue", 1, "any", device_owner=owner))
    assert punted(world) == set()


def test_a_port_that_wants_none(world: World) -> None:
    world.put(port("a", "blue", 1, "any", dhcp_options=(DhcpOption(name="dhcp_disabled", value="TRUE"),)))
    assert punted(world) == {"DHCPv6", "RA"}
    options = (DhcpOption(name="dhcp_disabled", value="true", ip_version=6), DhcpOption(name="mtu", value="true"))
    world.put(port("a", "blue", 1, "any", dhcp_options=options))
    assert punted(world) == {"DHCPv4", "RA"}


def test_only_from_the_own_mac_and_whole(world: World) -> None:
    world.put(port("a", "blue", 1, port_security=False))
    frame = QUESTIONS["DHCPv4"]
    assert world.send("a", frame).reason == Reason.PUNTED
    other = frame[:6] + bytes.fromhex("020000000099") + frame[12:]
    assert world.send("a", other).hops[0].decision.reason == Reason.FLOODED
    for part in packet.fragments(packet.udp(A, A, 68, 67, payload=bytes(40), dmac=packet.BROADCAST), 24):
        assert world.send("a", part).hops[0].decision.reason == Reason.FLOODED


def test_dhcpv6_to_others_goes_on(world: World) -> None:
    frame = packet.udp(A, world.port("b"), 546, 547, family=6)
    assert world.send("a", frame).receivers == ["b"]


def test_it_is_long_before_it_is_too_big(world: World) -> None:
    frame = packet.udp(A, A, 68, 67, payload=bytes(2000), dst="255.255.255.255", dmac=packet.BROADCAST)
    assert world.send("a", frame).reason == Reason.PUNTED
