"""What a port is configured with from here, by DHCP and router advertisements (docs/pipeline.md, "respond")."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from headrace.model.object import DEVICE_OWNER_DHCP, Port, Subnet

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SERVED = ("dhcpv6-stateful", "dhcpv6-stateless")
DISABLED = "dhcp_disabled"
"""A port's DHCP option that turns answers off (Neutron: DHCP_DISABLED_OPT of neutron.common.ovn.constants)."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One fixed address of a port, and the subnet that it is in."""

    address: Address
    subnet: Subnet


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What a port is configured with from here: by DHCPv4, by DHCPv6, by router advertisements."""

    dhcp4: tuple[Lease, ...] = ()
    dhcp6: tuple[Lease, ...] = ()
    advert: tuple[Lease, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dhcp4 or self.dhcp6 or self.advert)


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What decides about all ports of a network: its subnets with DHCP, and who else serves there.

    ``links4``: all of its IPv4 subnets, which are on one link.
    """

    subnets: Mapping[str, tuple[Subnet, ...]]
    links4: Mapping[str, tuple[Subnet, ...]]
    dhcp_servers: frozenset[str]
    routers: frozenset[str]

    @classmethod
    def of(cls, subnets: Iterable[Subnet], ports: Iterable[Port]) -> Surroundings:
        """By network, from all that is known."""
        enabled: defaultdict[str, list[Subnet]] = defaultdict(list)
        links4: defaultdict[str, list[Subnet]] = defaultdict(list)
        for subnet in sorted(subnets, key=lambda subnet: subnet.id):
            if subnet.prefix.version == 4:
                links4[subnet.network].append(subnet)
            if subnet.enable_dhcp:
                enabled[subnet.network].append(subnet)
        near = [port for port in ports if port.network in enabled]
        return cls(
            subnets={network: tuple(found) for network, found in enabled.items()},
            links4={network: tuple(found) for network, found in links4.items()},
            dhcp_servers=frozenset(port.network for port in near if port.device_owner == DEVICE_OWNER_DHCP),
            routers=frozenset(port.network for port in near if port.is_router and port.host is not None),
        )

    def of_network(self, network: str) -> Surroundings:
        """The part about one network."""
        return Surroundings(
            subnets={network: self.subnets.get(network, ())},
            links4={network: self.links4.get(network, ())},
            dhcp_servers=self.dhcp_servers & {network},
            routers=self.routers & {network},
        )

    def offer(self, port: Port) -> Offer:
        """What a port is configured with from here."""
        subnets = self.subnets.get(port.network, ())
        if not subnets or port.is_router or port.device_owner == DEVICE_OWNER_DHCP:
            return Offer()
        leases = [
            Lease(address=address, subnet=subnet)
            for address in map(ipaddress.ip_address, port.addresses)
            for subnet in subnets
            if address in subnet.prefix
        ]
        silent = {
            option.ip_version
            for option in port.dhcp_options
            if option.name == DISABLED and option.value.lower() == "true"
        }
        if port.network in self.dhcp_servers:
            silent = {4, 6}
        advertised = port.network not in self.routers
        return Offer(
            dhcp4=tuple(lease for lease in leases if lease.address.version == 4 and 4 not in silent),
            dhcp6=tuple(lease for lease in leases if serves_dhcp6(lease.subnet) and 6 not in silent),
            advert=tuple(lease for lease in leases if lease.subnet.ipv6_ra_mode and advertised),
        )


def serves_dhcp6(subnet: Subnet) -> bool:
    """Whether DHCPv6 is for a subnet: as Neutron's DHCP agent has it, also where no mode is said."""
    if subnet.prefix.version == 4:
        return False
    return subnet.ipv6_address_mode in SERVED or not (subnet.ipv6_address_mode or subnet.ipv6_ra_mode)
