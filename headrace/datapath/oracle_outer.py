"""admit, what is around a frame: outer headers, tags, and whose frame it is. docs/pipeline.md, "admit"."""

from __future__ import annotations

import ipaddress

import msgspec

from headrace.abi import Reason
from headrace.datapath.connection import Connections
from headrace.datapath.decision import Arrival, Dropped
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4, IPV6, UDP, mac, number
from headrace.datapath.wires import TUNNELS, gre, vlan
from headrace.model import Network, Port
from headrace.model.segment import Wire

GRE = 47
UDP_HEADER = 8
GRE_HEADER = 4


class Approach(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that is ours to admit, without what was around it.

    From a ``port``; by tunnel from ``source`` on ``wire`` with ``id``, ``tos`` of the outer header; or from the wire of
    ``network``, a physical network's. ``vlan``: a tag that none of these explains. ``shared``: the kernel has it too.
    """

    frame: bytes
    port: Port | None = None
    source: str | None = None
    wire: Wire = "physical"
    id: int = 0
    tos: int = 0
    network: Network | None = None
    vlan: int | None = None
    shared: bool = False


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """What an outer IP header says: between whom, and how. ``first``: of several fragments."""

    source: str
    destination: str
    tos: int
    protocol: int
    first: bool
    payload: bytes


def approach(view: View, connections: Connections, arrival: Arrival) -> Approach | None:
    """Find whose a frame is, and take off what is around it; None if it is the kernel's. Raises Dropped."""
    if arrival.port is not None:
        return from_port(view, arrival, arrival.port)
    if arrival.vtep is not None:
        assert arrival.segment is not None, "an arrival by tunnel names its segment"
        wire, _, _, identity = arrival.segment.place
        if wire not in view.wires:
            return None
        return Approach(frame=arrival.frame, source=arrival.vtep, wire=wire, id=identity, tos=arrival.tos)
    by_uplink = arrival.physical is None or arrival.physical in view.surroundings.shared
    if by_uplink and arrival.vlan is None and (found := take_outer(view, arrival.frame)) is not None:
        return found
    return None if arrival.physical is None else from_wire(view, connections, arrival, arrival.physical)


def from_port(view: View, arrival: Arrival, name: str) -> Approach:
    """A frame from a port's device: the port's own or, by its tag, a sub-port's."""
    port = view.port_here(name)
    if port is None or port.parent is not None:
        raise Dropped(Reason.NO_PORT, f"no device of a port {name} on host {view.host}")
    frame = whole(arrival)
    kind, vid = vlan.tag_of(frame)
    sub_port = view.sub_port(port, vid) if kind == vlan.CUSTOMER and vid and not frame[6] & 1 else None
    if sub_port is None:
        return Approach(frame=arrival.frame, port=port, vlan=arrival.vlan)
    return Approach(frame=vlan.without(frame), port=sub_port)


def from_wire(view: View, connections: Connections, arrival: Arrival, physical: str) -> Approach | None:
    """A frame from the device of a physical network; None if it is the kernel's alone."""
    tags = vlan.take(whole(arrival)) if len(arrival.frame) >= ETHERNET else None
    if tags is None:
        return None
    service, vid, frame = tags
    network = view.network_at(("physical", physical, service, vid))
    multicast = bool(frame[0] & 1)
    if network is None or mac(frame[0:6]) == view.surroundings.wire_macs.get(physical):
        return None
    if not multicast and not is_here(view, connections, network, mac(frame[0:6])):
        return None
    return Approach(frame=frame, network=network, shared=multicast)


def is_here(view: View, connections: Connections, network: Network, address: str) -> bool:
    """Whether a MAC of a network is a local port's own, or was learnt behind one."""
    learnt = connections.learnt.get((network.segment.plain, address), ("", ""))
    own = (port for port in view.here.values() if port.network == network.id)
    return view.learnt_here(learnt, network) is not None or any(port.mac == address for port in own)


def whole(arrival: Arrival) -> bytes:
    """The frame with the tag in it that is beside it."""
    if arrival.vlan is None or len(arrival.frame) < ETHERNET:
        return arrival.frame
    return vlan.with_tag(arrival.frame, arrival.vlan_type, arrival.vlan)


def take_outer(view: View, frame: bytes) -> Approach | None:
    """Take the outer headers off a frame on an uplink; None if it is no tunnel's that ends here. Raises Dropped."""
    if number(frame[12:14]) == TUNNELS["nsh-ethernet"].number:
        return take_ethernet(view, frame)
    outer = read_ip(frame)
    own = [str(ipaddress.ip_address(address)) for address in view.vteps(view.host)]
    if outer is None or outer.destination not in own:
        return None
    wire, start = wire_of(view, outer)
    if wire is None:
        return None
    if outer.first:
        raise Dropped(Reason.OUTER_FRAGMENT, f"the outer packet from {outer.source} is a fragment")
    identity, inner = TUNNELS[wire].take(outer.payload[start:])
    return Approach(frame=inner, source=outer.source, wire=wire, id=identity, tos=outer.tos)


def take_ethernet(view: View, frame: bytes) -> Approach | None:
    """The same where there is no outer IP header."""
    own = view.surroundings.mac
    if "nsh-ethernet" not in view.wires or own not in {None, mac(frame[0:6])}:
        return None
    identity, inner = TUNNELS["nsh-ethernet"].take(frame[ETHERNET:])
    return Approach(frame=inner, source=mac(frame[6:12]), wire="nsh-ethernet", id=identity)


def read_ip(frame: bytes) -> Carried | None:
    """The outer IP header, if it is one that tunnels have: no options, no extension headers, no later fragment."""
    ethertype = number(frame[12:14])
    if ethertype == ETHERTYPE_IPV4:
        header, payload = frame[ETHERNET : ETHERNET + IPV4], frame[ETHERNET + IPV4 :]
        if len(header) < IPV4 or header[0] != 0x45 or number(header[6:8]) & 0x1FFF:
            return None
        return Carried(
            source=str(ipaddress.IPv4Address(header[12:16])),
            destination=str(ipaddress.IPv4Address(header[16:20])),
            tos=header[1],
            protocol=header[9],
            first=bool(header[6] & 0x20),
            payload=payload,
        )
    header, payload = frame[ETHERNET : ETHERNET + IPV6], frame[ETHERNET + IPV6 :]
    if ethertype != ETHERTYPE_IPV6 or len(header) < IPV6 or header[0] >> 4 != 6:
        return None
    return Carried(
        source=str(ipaddress.IPv6Address(header[8:24])),
        destination=str(ipaddress.IPv6Address(header[24:40])),
        tos=number(header[0:2]) >> 4 & 0xFF,
        protocol=header[6],
        first=False,
        payload=payload,
    )


def wire_of(view: View, outer: Carried) -> tuple[Wire | None, int]:
    """The wire that an outer packet is of, if it is used here, and where that one's headers start."""
    if outer.protocol == UDP and len(outer.payload) >= UDP_HEADER:
        carrier, named, start = "udp", number(outer.payload[2:4]), UDP_HEADER
    elif outer.protocol == GRE and len(outer.payload) >= GRE_HEADER and not number(outer.payload[0:2]) & gre.NOT_OURS:
        carrier, named, start = "gre", number(outer.payload[2:4]), 0
    else:
        return None, 0
    found = (wire for wire in view.wires - {"physical"} if TUNNELS[wire][:2] == (carrier, named))
    return next(found, None), start
