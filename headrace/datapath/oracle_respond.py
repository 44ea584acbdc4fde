"""respond: answer ARP and ND for the fixed addresses of a segment. docs/pipeline.md, "respond"."""

from __future__ import annotations

import ipaddress

from headrace.datapath.decision import IpAddress
from headrace.datapath.frame import neighbour_advertisement, octets
from headrace.datapath.oracle_admit import Entry
from headrace.datapath.oracle_spoof import NEIGHBOUR_SOLICITATION, icmpv6_type, neighbour
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import ETHERNET, UDP
from headrace.model import Port, Subnet

ARP_REQUEST = 1
ND_BARE = 24
ND_WITH_OPTION = 32
ROUTER_SOLICITATION = 133
DHCP6_SERVERS = ipaddress.ip_address("ff02::1:2")
DHCP_SERVER = "network:dhcp"


def respond(view: View, entry: Entry) -> tuple[bytes, str] | None:
    """The answer that goes back to the port, and whose it is; None if the packet goes on."""
    if entry.port is None:
        return None
    if entry.packet.arp is not None:
        return answer_arp(view, entry)
    if entry.packet.ip is not None and icmpv6_type(entry.packet.ip) == NEIGHBOUR_SOLICITATION:
        return answer_solicitation(view, entry)
    return None


def answer_arp(view: View, entry: Entry) -> tuple[bytes, str] | None:
    packet, arp = entry.packet, entry.packet.arp
    assert arp is not None
    owner = owner_of(view, entry, arp.target)
    if arp.operation != ARP_REQUEST or arp.sender == arp.target or owner is None:
        return None
    message = packet.frame[ETHERNET:]
    answer = (
        octets(packet.source)
        + octets(owner.mac)
        + packet.frame[12:14]
        + message[0:6]
        + b"\x00\x02"
        + octets(owner.mac)
        + arp.target.packed
        + message[8:14]
        + message[14:18]
        + message[28:]
    )
    return answer, f"{arp.target} is at {owner.mac}, {owner.label()}"


def answer_solicitation(view: View, entry: Entry) -> tuple[bytes, str] | None:
    packet, ip = entry.packet, entry.packet.ip
    assert ip is not None
    message = neighbour(packet.frame, ip)
    if message is None or ip.extended or ip.source.is_unspecified:
        return None
    with_option = message.length == ND_WITH_OPTION and message.option is not None and message.option_length == 1
    bare = message.length == ND_BARE and not packet.is_multicast
    owner = owner_of(view, entry, message.target)
    if not (with_option or bare) or owner is None:
        return None
    assert isinstance(ip.source, ipaddress.IPv6Address)
    advertisement = neighbour_advertisement(
        source=message.target, destination=ip.source, mac=owner.mac if with_option else None
    )
    answer = (
        octets(packet.source)
        + octets(owner.mac)
        + packet.frame[12:14]
        + packet.frame[ETHERNET : ETHERNET + 8]
        + message.target.packed
        + ip.source.packed
        + advertisement
        + packet.frame[ip.end :]
    )
    return answer, f"{message.target} is at {owner.mac}, {owner.label()}"


def punt(view: View, entry: Entry) -> str | None:
    """What the agent is asked for, if it is the agent that answers."""
    port, ip = entry.port, entry.packet.ip
    if port is None or ip is None or ip.fragment is not None or entry.packet.source != port.mac:
        return None
    ports = (ip.transport.sport, ip.transport.dport) if ip.protocol == UDP and ip.transport else None
    if ip.version == 4 and ports == (68, 67) and any(by_dhcp4(view, port, one) for one in subnets_of(view, port)):
        return "DHCPv4"
    if ip.version == 6 and ports == (546, 547) and ip.destination == DHCP6_SERVERS:
        return "DHCPv6" if any(by_dhcp6(view, port, one) for one in subnets_of(view, port)) else None
    if icmpv6_type(ip) == ROUTER_SOLICITATION and any(by_advert(view, port, one) for one in subnets_of(view, port)):
        return "a router advertisement"
    return None


def subnets_of(view: View, port: Port) -> list[Subnet]:
    """The subnets with DHCP that a port has fixed addresses in; none for routers and DHCP servers."""
    if port.is_router or port.device_owner == DHCP_SERVER:
        return []
    addresses = [ipaddress.ip_address(address) for address in port.addresses]
    return [
        subnet
        for subnet in view.state.subnets.values()
        if subnet.network == port.network
        and subnet.enable_dhcp
        and any(address in ipaddress.ip_network(subnet.cidr, strict=False) for address in addresses)
    ]


def by_dhcp4(view: View, port: Port, subnet: Subnet) -> bool:
    return ":" not in subnet.cidr and dhcp_is_ours(view, port, 4)


def by_dhcp6(view: View, port: Port, subnet: Subnet) -> bool:
    modes = (subnet.ipv6_address_mode, subnet.ipv6_ra_mode)
    said = modes == (None, None) or modes[0] in {"dhcpv6-stateful", "dhcpv6-stateless"}
    return ":" in subnet.cidr and said and dhcp_is_ours(view, port, 6)


def by_advert(view: View, port: Port, subnet: Subnet) -> bool:
    near = [other for other in view.state.ports.values() if other.network == port.network]
    router = any(other.is_router and other.host is not None for other in near)
    return subnet.ipv6_ra_mode is not None and not router


def dhcp_is_ours(view: View, port: Port, version: int) -> bool:
    """Neither another server's network, nor turned off for the port."""
    near = [other for other in view.state.ports.values() if other.network == port.network]
    off = [option for option in port.dhcp_options if option.name == "dhcp_disabled" and option.value.lower() == "true"]
    return not any(other.device_owner == DHCP_SERVER for other in near) and version not in {
        option.ip_version for option in off
    }


def owner_of(view: View, entry: Entry, address: IpAddress) -> Port | None:
    """The port of the segment that has a fixed address, unless the asker has its MAC."""
    for port in view.ports_of(entry.network):
        if port.port_security and not port.is_router and address in map(ipaddress.ip_address, port.addresses):
            return port if port.mac != entry.packet.source else None
    return None
