"""encap, VXLAN: the other hosts' tunnel endpoints and the outer headers towards them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from headrace import abi
from headrace.model import Host
from headrace.stages.memo import Entry
from headrace.stages.view import Address, Parts, View, address_octets


class Remote(NamedTuple):
    """Another host with the VTEP it is reached by; ``own``: this host's, by IP version."""

    host: Host
    vtep: Address
    number: int
    endpoint: int
    own: dict[int, Address]
    tunnel_port: int
    whole: bool


def compile_parts(view: View) -> Parts:
    """hr_vteps, hr_adjacencies. Next hops are found by the walk; what is compiled is UNRESOLVED."""
    own: dict[int, Address] = {vtep.version: vtep for vtep in reversed(view.vteps)}
    remotes: dict[str, Remote] = {}
    for host in sorted(view.state.hosts.values(), key=lambda host: host.id):
        vtep = None if host.id == view.host else view.vtep_of(host.id)
        if vtep is not None:
            number, endpoint = view.index.vtep(str(vtep)), view.index.endpoint(f"vtep {vtep}")
            remotes[host.id] = Remote(host, vtep, number, endpoint, own, view.tunnel_port, view.whole)
    return {
        "hr_vteps": {"": view.memo.spread("hr_vteps", remotes, compile_sources)},
        "hr_adjacencies": {"": view.memo.spread("hr_adjacencies", remotes, compile_adjacencies)},
    }


def compile_sources(remote: Remote) -> Iterator[Entry]:
    """A host may send from any of its addresses of a family that we have; it is reached by the first of them."""
    place = abi.Vtep(vtep=remote.number, endpoint=remote.endpoint)
    for source in map(ipaddress.ip_address, remote.host.vteps):
        if source.version in remote.own:
            yield abi.VtepKey(addr=address_octets(source)), place


def compile_adjacencies(remote: Remote) -> Iterator[Entry]:
    """The paths towards a host."""
    adjacency = abi.Adjacency(
        state=abi.AdjacencyState.UNRESOLVED,
        saddr=address_octets(remote.own[remote.vtep.version]),
        daddr=address_octets(remote.vtep),
        port=remote.tunnel_port,
        flags=abi.AdjacencyFlag.WHOLE if remote.whole else 0,
    )
    for path in range(abi.PATHS):
        yield abi.U32(value=remote.number * abi.PATHS + path), adjacency
