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
from headrace.errors import NotFound
from headrace.model import State


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
    def arrives(self) -> bool:
        """Whether anybody gets it."""
        return bool(self.receivers)

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

    first = hop(port.host, arrival)
    tunnelled = [output for output in first.decision.outputs if output.vtep is not None]
    return Journey(hops=(first, *(hop(*emerge(state, port.host, output, arrival.gso_size)) for output in tunnelled)))


def emerge(state: State, sender: str, output: Output, gso_size: int = 0) -> tuple[str, Arrival]:
    """Where a tunnelled output comes out: the host, and its arrival there."""
    wanted = ipaddress.ip_address(output.vtep or "")
    own = next(text for text in state.hosts[sender].vteps if ipaddress.ip_address(text).version == wanted.version)
    for host in state.hosts.values():
        if host.id != sender and wanted in map(ipaddress.ip_address, host.vteps):
            return host.id, Arrival(frame=output.frame, vtep=own, vni=output.vni, gso_size=gso_size)
    raise NotFound(f"no host has the VTEP {output.vtep}")
