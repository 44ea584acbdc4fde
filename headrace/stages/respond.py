"""respond: whom the datapath answers ARP and ND for: fixed addresses of bound ports with port security, no pairs."""

from __future__ import annotations

import ipaddress

from headrace import abi
from headrace.stages.view import Table, Tables, View, address_octets, mac_octets, segment_of


def compile_tables(view: View) -> Tables:
    """hr_neighbours."""
    entries: Table = {}
    for port in view.ports:
        if port.port_security and port.host is not None and not port.is_router:
            segment = segment_of(view.networks[port.network])
            for address in port.addresses:
                key = abi.NeighbourKey(segment=segment, addr=address_octets(ipaddress.ip_address(address)))
                entries[key] = abi.Neighbour(mac=mac_octets(port.mac))
    return {"hr_neighbours": entries}
