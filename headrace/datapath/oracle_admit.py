"""admit: which port or VTEP a packet came from, on which network, and is it well formed. docs/pipeline.md, "admit"."""

from __future__ import annotations

import ipaddress

import msgspec

from headrace.abi import Reason
from headrace.datapath.decision import Arrival, Dropped, Place
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import (
    ETHERNET,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4,
    IPV6,
    UDP,
    Packet,
    number,
    parse,
)
from headrace.model import Network, Port

VXLAN_PORT = 4789
UDP_HEADER = 8
VXLAN_HEADER = 8
VXLAN_VALID = 0x08


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted packet: what it is, and where it entered. ``port``: local; ``host``: else the host that sent it."""

    packet: Packet
    place: Place
    network: Network
    port: Port | None = None
    host: str | None = None


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    """What outer headers say of the frame inside."""

    vtep: str
    vni: int
    frame: bytes


def admit(view: View, arrival: Arrival) -> Entry:
    """Admit a frame from a port, or an inner frame by tunnel; raises Dropped."""
    if arrival.port is not None:
        return admit_from_port(view, arrival, arrival.port)
    assert arrival.vtep is not None, "an arrival by tunnel names its VTEP"
    assert arrival.vni is not None, "an arrival by tunnel names its VNI"
    host = view.host_of_vtep(arrival.vtep)
    if host is None:
        raise Dropped(Reason.UNKNOWN_VTEP, f"{arrival.vtep} is no VTEP of another host")
    network = view.network_by_vni(arrival.vni)
    if network is None:
        raise Dropped(Reason.UNKNOWN_SEGMENT, f"no port of host {view.host} is on VNI {arrival.vni}")
    check_ethernet(arrival.frame)
    packet = parse(arrival.frame, arrival.vlan)
    return Entry(packet=packet, place=Place("vxlan", arrival.vni), network=network, host=host)


def admit_from_port(view: View, arrival: Arrival, port_id: str) -> Entry:
    port = view.port_here(port_id)
    if port is None:
        raise Dropped(Reason.NO_PORT, f"no port {port_id} on host {view.host}")
    check_ethernet(arrival.frame)
    if not port.admin_up:
        raise Dropped(Reason.PORT_DOWN, f"{port.label()} is administratively down")
    packet = parse(arrival.frame, arrival.vlan)
    network = view.state.networks[port.network]
    return Entry(packet=packet, place=Place("port", port.id), network=network, port=port)


def check_ethernet(frame: bytes) -> None:
    if len(frame) < ETHERNET:
        raise Dropped(Reason.MALFORMED_ETHERNET, f"{len(frame)} octets are no Ethernet frame")


def take_outer(view: View, frame: bytes) -> Outer | None:
    """Take the outer headers off a frame on the uplink; None if the frame is the kernel's. Raises Dropped."""
    ethertype = number(frame[12:14])
    if ethertype == ETHERTYPE_IPV4:
        header = frame[ETHERNET : ETHERNET + IPV4]
        if len(header) < IPV4 or header[0] != 0x45 or header[9] != UDP:
            return None
        source, destination = str(ipaddress.IPv4Address(header[12:16])), str(ipaddress.IPv4Address(header[16:20]))
        udp = ETHERNET + IPV4
        later, more = bool(number(header[6:8]) & 0x1FFF), bool(header[6] & 0x20)
    elif ethertype == ETHERTYPE_IPV6:
        header = frame[ETHERNET : ETHERNET + IPV6]
        if len(header) < IPV6 or header[0] >> 4 != 6 or header[6] != UDP:
            return None
        source, destination = str(ipaddress.IPv6Address(header[8:24])), str(ipaddress.IPv6Address(header[24:40]))
        udp = ETHERNET + IPV6
        later = more = False
    else:
        return None
    own = [str(ipaddress.ip_address(address)) for address in view.vteps(view.host)]
    if later or destination not in own or len(frame) < udp + UDP_HEADER:
        return None
    if number(frame[udp + 2 : udp + 4]) != VXLAN_PORT:
        return None
    if more:
        raise Dropped(Reason.OUTER_FRAGMENT, f"the outer packet from {source} is a fragment")
    vxlan = frame[udp + UDP_HEADER : udp + UDP_HEADER + VXLAN_HEADER]
    if len(vxlan) < VXLAN_HEADER or not vxlan[0] & VXLAN_VALID:
        raise Dropped(Reason.MALFORMED_TUNNEL, f"no valid VXLAN header in the packet from {source}")
    return Outer(vtep=source, vni=number(vxlan[4:7]), frame=frame[udp + UDP_HEADER + VXLAN_HEADER :])
