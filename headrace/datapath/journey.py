"""A packet's way over several hosts: the oracle asked on each, from the sender to every final delivery."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Mapping

import msgspec

from headrace.abi import Reason
from headrace.datapath.connection import Connections
from headrace.datapath.decision import Arrival, Decision, Output
from headrace.datapath.oracle import Surroundings, decide
from headrace.datapath.oracle_view import View
from headrace.datapath.packet import mac
from headrace.datapath.wires import vlan
from headrace.errors import NotFound
from headrace.model import Segment, State


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """What one host does with the packet."""

    host: str
    arrival: Arrival
    decision: Decision


class Journey(msgspec.Struct, frozen=True, kw_only=True):
    """All hops, the sender's host first."""

    hops: tuple[Hop, ...]

    @property
    def receivers(self) -> list[str]:
        """The ports that get the packet, or the answer to it."""
        return [output.port for hop in self.hops for output in hop.decision.outputs if output.port is not None]

    @property
    def wires(self) -> list[Segment]:
        """The physical networks' segments on whose wires it leaves for somewhere that is no host of ours."""
        outputs = (output for hop in self.hops for output in hop.decision.outputs)
        found = [output.segment for output in outputs if output.segment is not None and output.segment.is_physical]
        return [] if len(self.hops) > 1 else found

    @property
    def arrives(self) -> bool:
        """Whether anybody gets it, for all that is known."""
        return bool(self.receivers or self.wires)

    @property
    def reason(self) -> Reason:
        """Why the last host that had it did what it did."""
        return self.hops[-1].decision.reason


def follow(
    state: State,
    arrival: Arrival,
    memory: Mapping[str, Connections] | None = None,
    now_ms: int = 0,
    surroundings: Surroundings | None = None,
) -> Journey:
    """Send a frame from ``arrival.port`` and follow it.

    ``memory``: each host's connections, kept up; fresh if None. ``surroundings``: of every host.
    Raises NotFound if no host has the port.
    """
    port = state.ports.get(arrival.port or "")
    if port is None:
        raise NotFound(f"port {arrival.port} does not exist")
    if port.host is None:
        raise NotFound(f"{port.label()} is not bound to a host; nothing can enter there")
    remembered: Mapping[str, Connections] = defaultdict(Connections) if memory is None else memory

    def hop(host: str, entry: Arrival) -> Hop:
        decision = decide(state, host, remembered[host], entry, now_ms, surroundings)
        return Hop(host=host, arrival=entry, decision=decision)

    first = hop(port.host, by_device(state, arrival))
    left = [output for output in first.decision.outputs if output.port is None]
    reached = [place for output in left for place in emerge(state, port.host, output, arrival.gso_size)]
    return Journey(hops=(first, *(hop(*place) for place in reached)))


def by_device(state: State, arrival: Arrival) -> Arrival:
    """An arrival from a port as it comes by a device: what a sub-port sends has its tag, and comes by its trunk's."""
    port = state.ports[arrival.port or ""]
    if port.parent is None:
        return arrival
    return msgspec.structs.replace(arrival, port=port.parent, frame=vlan.put(arrival.frame, port.vlan))


def emerge(state: State, sender: str, output: Output, gso_size: int = 0) -> list[tuple[str, Arrival]]:
    """Where an output to elsewhere comes out: hosts, and its arrivals there."""
    assert output.segment is not None
    if output.vtep is None:
        return on_wire(state, sender, output, output.segment, gso_size)
    wanted = ipaddress.ip_address(output.vtep)
    for host in state.hosts.values():
        if host.id != sender and wanted in map(ipaddress.ip_address, host.vteps):
            own = own_vtep(state, sender, host.id, output.segment, wanted.version)
            come = Arrival(frame=output.frame, vtep=own, segment=output.segment, tos=output.tos, gso_size=gso_size)
            return [(host.id, come)]
    raise NotFound(f"no host has the VTEP {output.vtep}")


def own_vtep(state: State, sender: str, receiver: str, segment: Segment, version: int) -> str:
    """The sender's address as its receiver sees it; over Ethernet there is none, but the one it is known by."""
    if segment.wire == "nsh-ethernet":
        return View(state, receiver).vtep_of(sender) or ""
    return next(text for text in state.hosts[sender].vteps if ipaddress.ip_address(text).version == version)


def on_wire(state: State, sender: str, output: Output, segment: Segment, gso_size: int) -> list[tuple[str, Arrival]]:
    """The other hosts with ports that a frame on the wire of a physical network is for."""
    networks = {network.id for network in state.networks.values() if network.segment.place == segment.place}
    ports = [port for port in state.ports.values() if port.network in networks and port.host not in {None, sender}]
    everybody, address = bool(output.frame[0] & 1), mac(output.frame[0:6])
    hosts = {port.host or "": None for port in ports if everybody or port.mac == address}
    frame = vlan.put(output.frame, segment.id, segment.service_vlan)
    return [(name, Arrival(frame=frame, physical=segment.physical_network, gso_size=gso_size)) for name in hosts]
