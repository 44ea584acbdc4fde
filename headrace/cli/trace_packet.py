"""What a workload would put on its port for a packet in words: the frame, with the MACs it would use."""

from __future__ import annotations

import ipaddress

from headrace.datapath import frame, notation
from headrace.datapath.decision import IpAddress
from headrace.errors import InvalidInput, NotFound
from headrace.model import Port, State

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def find_port(state: State, name: str) -> Port:
    """The port with an id, or else the only one with that name, or whose id begins so."""
    if name in state.ports:
        return state.ports[name]
    found = [port for port in state.ports.values() if port.name == name]
    found = found or [port for port in state.ports.values() if port.id.startswith(name)]
    if not found:
        raise NotFound(f"port {name} does not exist; `headrace port list` shows what does")
    if len(found) > 1:
        choice = ", ".join(sorted(port.id for port in found)[:5])
        raise InvalidInput(f"port {name}: {len(found)} ports are meant by that; give one's id: {choice}")
    return found[0]


def frame_of(state: State, port: Port, text: str, *, from_mac: str | None, to_mac: str | None) -> bytes:
    """The frame of a packet in words. Raises InvalidInput where it cannot tell the destination MAC."""
    line = notation.read(text)
    destination = to_mac or destination_mac(state, port, line)
    return notation.build(line, source=from_mac or port.mac, destination=destination)


def destination_mac(state: State, port: Port, line: notation.Line) -> str:
    """Where a workload sends it: a multicast MAC, its neighbour's, or the gateway's."""
    if line.kind == "arp" and (line.mac is None or line.destination == line.source):
        return frame.BROADCAST
    target = line.destination
    if line.kind == "ns":
        assert isinstance(target, ipaddress.IPv6Address)
        return frame.multicast_mac(frame.solicited_node(target))
    if target.is_multicast:
        return frame.multicast_mac(target)
    if is_broadcast(state, port, target):
        return frame.BROADCAST
    found = mac_of(state, port, target)
    if found is None and not any(target in cidr for cidr, _ in subnets(state, port)):
        found = gateway_mac(state, port, line)
    if found is None:
        raise InvalidInput(
            f"nobody on network {port.network} has {target}; say with --to-mac which MAC {port.label()} would send to"
        )
    return found


def subnets(state: State, port: Port) -> list[tuple[Network, str | None]]:
    """The CIDRs of the port's network, with their gateways."""
    own = [subnet for subnet in state.subnets.values() if subnet.network == port.network]
    return [(ipaddress.ip_network(subnet.cidr, strict=False), subnet.gateway) for subnet in own]


def is_broadcast(state: State, port: Port, target: IpAddress) -> bool:
    if target == ipaddress.ip_address("255.255.255.255"):
        return True
    return target.version == 4 and target in [cidr.broadcast_address for cidr, _ in subnets(state, port)]


def mac_of(state: State, port: Port, target: IpAddress) -> str | None:
    """The MAC of an address on the port's network: a fixed one's first, then an address pair's."""
    neighbours = [other for other in state.ports.values() if other.network == port.network]
    for other in neighbours:
        if target in map(ipaddress.ip_address, other.addresses):
            return other.mac
    for other in neighbours:
        for pair in other.address_pairs:
            if ipaddress.ip_network(pair.address, strict=False) == ipaddress.ip_network(target):
                return pair.mac or other.mac
    return None


def gateway_mac(state: State, port: Port, line: notation.Line) -> str | None:
    """The MAC of the gateway for what is on no subnet of the network: the source's, or else any of the family."""
    gateways = [
        (cidr, gateway) for cidr, gateway in subnets(state, port) if gateway and cidr.version == line.source.version
    ]
    gateways.sort(key=lambda found: line.source not in found[0])
    for _, gateway in gateways:
        found = mac_of(state, port, ipaddress.ip_address(gateway or ""))
        if found is not None:
            return found
    return None
