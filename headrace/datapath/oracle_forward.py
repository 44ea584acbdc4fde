"""forward: where the destination is; learning what no port owns. docs/pipeline.md, "forward" and "encap"."""

from __future__ import annotations

import msgspec

from headrace.abi import Reason
from headrace.datapath.connection import Connections
from headrace.datapath.decision import Dropped, Place
from headrace.datapath.oracle_admit import Entry
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import Packet
from headrace.model import Port

MOST_BEHIND_A_PORT = 256
"""MACs learnt behind one local port."""
MOST_BEHIND_VTEPS = 1024
"""MACs of one segment learnt behind all VTEPs together."""


class Receiver(msgspec.Struct, frozen=True, kw_only=True):
    """One place to send to: a local ``port``, or the ``vtep`` of another host."""

    place: Place
    port: Port | None = None
    vtep: str | None = None
    text: str = ""


def locate(view: View, connections: Connections, entry: Entry, mac: str) -> Receiver | None:
    """Where a unicast MAC of the segment is."""
    for port in view.ports_of(entry.network):
        if port.mac == mac and reachable(view, port):
            return at_port(view, entry, port, f"{mac} is {port.label()}")
    kind, identity = connections.learnt.get((entry.network.segment.number, mac), ("", ""))
    if kind == "port":
        learnt = view.port_here(identity)
        if learnt is not None and learnt.network == entry.network.id:
            return at_port(view, entry, learnt, f"{mac} was learnt behind {learnt.label()}")
    if kind == "vtep" and identity in map(view.vtep_of, view.state.hosts):
        place = Place("vxlan", entry.network.segment.number)
        return Receiver(place=place, vtep=identity, text=f"{mac} was learnt behind VTEP {identity}")
    return None


def reachable(view: View, port: Port) -> bool:
    """Whether this host can place a port: here, or behind a VTEP it can send to."""
    assert port.host is not None
    return port.host == view.host or view.vtep_of(port.host) is not None


def at_port(view: View, entry: Entry, port: Port, text: str) -> Receiver | None:
    if port.host == view.host:
        return Receiver(place=Place("port", port.id), port=port, text=text)
    assert port.host is not None
    return at_host(view, entry, port.host, f"{text} on host {port.host}")


def at_host(view: View, entry: Entry, host: str, text: str) -> Receiver | None:
    vtep = view.vtep_of(host)
    if vtep is None:
        return None
    return Receiver(place=Place("vxlan", entry.network.segment.number), vtep=vtep, text=text)


def learn(view: View, connections: Connections, entry: Entry) -> None:
    """Keep where the frame's source MAC is, unless it is a port's own."""
    mac = entry.packet.source
    if any(port.mac == mac and reachable(view, port) for port in view.ports_of(entry.network)):
        return
    where = ("port", entry.port.id) if entry.port is not None else ("vtep", view.vtep_of(entry.host or "") or "")
    vni, most = entry.network.segment.number, MOST_BEHIND_A_PORT if entry.port is not None else MOST_BEHIND_VTEPS
    others = [
        place
        for (segment, other), place in connections.learnt.items()
        if other != mac and (place == where if entry.port is not None else place[0] == "vtep" and segment == vni)
    ]
    if len(others) < most:
        connections.learnt[vni, mac] = where


def forward(entry: Entry, receiver: Receiver | None) -> Receiver:
    """Check the one receiver of a unicast frame; raises Dropped."""
    if receiver is None:
        raise Dropped(Reason.UNKNOWN_MAC, f"nobody on {entry.network.label()} has {entry.packet.destination}")
    if receiver.port is None:
        if entry.port is None:
            raise Dropped(Reason.TUNNEL_LOOP, f"{receiver.text}, and it came by tunnel")
        return receiver
    if not receiver.port.admin_up:
        raise Dropped(Reason.PORT_DOWN, f"{receiver.port.label()} is administratively down")
    if entry.port is not None and receiver.port.id == entry.port.id:
        raise Dropped(Reason.HAIRPIN, f"{receiver.text}, where it came from")
    return receiver


def flood(view: View, entry: Entry) -> list[Receiver]:
    """Everybody else on the segment: local ports, and from a local port every other VTEP with ports of it."""
    receivers = []
    hosts = set()
    for port in view.ports_of(entry.network):
        if port.host != view.host:
            hosts.add(port.host or "")
        elif entry.port is None or port.id != entry.port.id:
            receivers.append(Receiver(place=Place("port", port.id), port=port))
    if entry.port is not None:
        found = [at_host(view, entry, host, f"host {host}") for host in sorted(hosts)]
        receivers += [receiver for receiver in found if receiver is not None]
    return receivers


def outer_tos(packet: Packet) -> int:
    """TOS or traffic class of the outer header: RFC 6040 section 4.1, normal mode."""
    return packet.ip.tos if packet.ip is not None else 0
