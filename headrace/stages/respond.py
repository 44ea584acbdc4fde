"""respond: whom the datapath answers ARP and ND for: fixed addresses of bound ports with port security, no pairs."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from headrace import abi
from headrace.model import Port
from headrace.stages.memo import Entry
from headrace.stages.view import Parts, View, address_octets, mac_octets


def compile_parts(view: View) -> Parts:
    """hr_neighbours by network."""
    found: dict[str, dict[str, tuple[Port, int]]] = {name: {} for name in view.networks}
    segments = view.segments
    for port in view.ports:
        if port.port_security and port.host is not None and not port.is_router:
            found[port.network][port.id] = port, segments[port.network]
    return {
        "hr_neighbours": {
            name: view.memo.spread(("hr_neighbours", name), ports, compile_port) for name, ports in found.items()
        }
    }


def compile_port(own: tuple[Port, int]) -> Iterator[Entry]:
    """A port's addresses."""
    port, segment = own
    neighbour = abi.Neighbour(mac=mac_octets(port.mac))
    for address in port.addresses:
        yield abi.NeighbourKey(segment=segment, addr=address_octets(ipaddress.ip_address(address))), neighbour
