"""What a port is offered by DHCP and router advertisements, for ``headrace port show``."""

from __future__ import annotations

from typing import Any

from headrace.agent.dhcp_option import encode_all
from headrace.model import Network, Port, State, Subnet
from headrace.model.offer import Surroundings


def offered(port: Port, state: State) -> dict[str, Any]:
    """By DHCPv4, by DHCPv6 and by router advertisements; None where that is not told from here."""
    network = state.networks.get(port.network)
    if network is None:
        return {"dhcpv4": None, "dhcpv6": None, "advert": None}
    offer = Surroundings.of(state.subnets.values(), state.ports.values()).offer(port)
    faults = [fault for version in (4, 6) for fault in encode_all(port.dhcp_options, version)[1]]
    options = {version: own(port, version) for version in (4, 6)}
    return {
        "dhcpv4": [
            told(network, lease.subnet, address=f"{lease.address}/{lease.subnet.prefix.prefixlen}")
            | {"router": lease.subnet.gateway, "mtu": network.mtu}
            | {"routes": [f"{route.destination} via {route.nexthop}" for route in lease.subnet.host_routes]}
            | {"options": options[4]}
            for lease in offer.dhcp4
        ]
        or None,
        "dhcpv6": [
            told(network, lease.subnet, address=str(lease.address) if is_stateful(lease.subnet) else None)
            | {"options": options[6]}
            for lease in offer.dhcp6
        ]
        or None,
        "advert": [
            told(network, subnet, prefix=subnet.cidr, mode=subnet.ipv6_ra_mode) | {"mtu": network.mtu}
            for subnet in {lease.subnet.id: lease.subnet for lease in offer.advert}.values()
        ]
        or None,
        "dhcp_faults": faults,
    }


def told(network: Network, subnet: Subnet, **first: Any) -> dict[str, Any]:
    """What all three tell alike."""
    return first | {"dns": subnet.dns_nameservers, "domain": network.dns_domain or None}


def own(port: Port, version: int) -> dict[str, str]:
    """The port's own options of one IP version."""
    return {option.name: option.value for option in port.dhcp_options if option.ip_version == version}


def is_stateful(subnet: Subnet) -> bool:
    """Whether DHCPv6 gives addresses, and not only information."""
    return subnet.ipv6_address_mode != "dhcpv6-stateless"
