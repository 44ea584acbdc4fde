"""forward: where the destination is; learning what no port owns. docs/pipeline.md, "forward" and "encap"."""

from __future__ import annotations

import msgspec

from headrace.abi import Reason
from headrace.datapath.connection import Connections
from headrace.datapath.decision import Dropped, Place
from headrace.datapath.oracle_admit import Entry, place_of
from headrace.datapath.oracle_view import View
from headrace.datapath.wires import vlan
from headrace.model import Port

MOST_BEHIND_A_PORT = 256
"""MACs learnt behind one local port."""
MOST_BEHIND_VTEPS = 1024
"""MACs of one segment learnt behind all VTEPs together, or on its wire."""


class Receiver(msgspec.Struct, frozen=True, kw_only=True):
    """One place to send to: a local ``port``, the ``vtep`` of another host, or, with neither, the wire."""

    place: Place
    port: Port | None = None
    vtep: str | None = None
    text: str = ""


def locate(view: View, connections: Connections, entry: Entry, mac: str) -> Receiver | None:
    """Where a unicast MAC of the segment is."""
    for port in view.ports_of(entry.network):
        if port.mac == mac and reachable(view, port):
            return at_port(view, entry, port, f"{mac} is {port.label()}")
    where = connections.learnt.get((entry.network.segment.plain, mac), ("", ""))
    learnt = view.learnt_here(where, entry.network)
    if learnt is not None:
        return at_port(view, entry, learnt, f"{mac} was learnt behind {learnt.label()}")
    if entry.network.segment.is_physical:
        return on_wire(entry, f"{mac} is not here, and so it is on the wire")
    if where[0] == "vtep" and where[1] in map(view.vtep_of, view.state.hosts):
        text = f"{mac} was learnt behind VTEP {where[1]}"
        return Receiver(place=place_of(entry.network), vtep=where[1], text=text)
    return None


def reachable(view: View, port: Port) -> bool:
    """Whether this host can place a port: here, behind a VTEP it can send to, or on the wire."""
    assert port.host is not None
    physical = view.state.networks[port.network].segment.is_physical
    return physical or port.host == view.host or view.vtep_of(port.host) is not None


def at_port(view: View, entry: Entry, port: Port, text: str) -> Receiver | None:
    if port.host == view.host:
        return Receiver(place=Place("port", port.attachment), port=port, text=text)
    assert port.host is not None
    if entry.network.segment.is_physical:
        return on_wire(entry, f"{text} on the wire")
    return at_host(view, entry, port.host, f"{text} on host {port.host}")


def at_host(view: View, entry: Entry, host: str, text: str) -> Receiver | None:
    vtep = view.vtep_of(host)
    if vtep is None:
        return None
    return Receiver(place=place_of(entry.network), vtep=vtep, text=text)


def on_wire(entry: Entry, text: str) -> Receiver:
    return Receiver(place=place_of(entry.network), text=text)


def learn(view: View, connections: Connections, entry: Entry, now: int) -> None:
    """Keep where the frame's source MAC is, unless it is a port's own."""
    mac, segment = entry.packet.source, entry.network.segment.plain
    if any(port.mac == mac and reachable(view, port) for port in view.ports_of(entry.network)):
        return
    most = MOST_BEHIND_VTEPS
    if entry.port is not None:
        where, most = ("port", entry.port.attachment), MOST_BEHIND_A_PORT
    elif entry.by_wire:
        where = ("wire", "")
    elif entry.host is not None:
        where = ("vtep", view.vtep_of(entry.host) or "")
    else:
        return
    others = [
        place
        for (on, other), place in connections.learnt.items()
        if other != mac and (place == where if where[0] == "port" else place[0] != "port" and on == segment)
    ]
    if len(others) < most:
        connections.learn(segment, mac, where, now)
    elif entry.by_wire:
        connections.forget(segment, mac)


def forward(view: View, entry: Entry, receiver: Receiver | None) -> Receiver:
    """Check the one receiver of a unicast frame; raises Dropped."""
    if receiver is None:
        raise Dropped(Reason.UNKNOWN_MAC, f"nobody on {entry.network.label()} has {entry.packet.destination}")
    if receiver.port is None:
        if entry.port is None:
            raise Dropped(Reason.TUNNEL_LOOP, f"{receiver.text}, and it came from elsewhere")
        return receiver
    if not view.is_up(receiver.port):
        raise Dropped(Reason.PORT_DOWN, f"{receiver.port.label()} is administratively down, or without a device")
    if entry.port is not None and receiver.port.id == entry.port.id:
        raise Dropped(Reason.HAIRPIN, f"{receiver.text}, where it came from")
    return receiver


def flood(view: View, entry: Entry) -> list[Receiver]:
    """Everybody else on the segment: local ports; from one also every other VTEP with ports of it, or its wire."""
    receivers = []
    hosts = set()
    for port in view.ports_of(entry.network):
        if port.host != view.host:
            hosts.add(port.host or "")
        elif entry.port is None or port.id != entry.port.id:
            receivers.append(Receiver(place=Place("port", port.attachment), port=port))
    if entry.port is None:
        return receivers
    if entry.network.segment.is_physical:
        return [*receivers, on_wire(entry, "the wire")]
    found = [at_host(view, entry, host, f"host {host}") for host in sorted(hosts)]
    return receivers + [receiver for receiver in found if receiver is not None]


def outer_tos(entry: Entry, receiver: Receiver) -> int:
    """TOS or traffic class of the outer IP header, if there is one: RFC 6040 section 4.1, normal mode."""
    ip = entry.packet.ip
    has_outer = receiver.vtep is not None and entry.network.segment.wire != "nsh-ethernet"
    return ip.tos if ip is not None and has_outer else 0


def tagged(port: Port, frame: bytes) -> bytes:
    """A frame as it goes to a port: a sub-port's has its tag."""
    return vlan.put(frame, port.vlan) if port.parent is not None else frame
