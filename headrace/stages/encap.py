"""encap: the other hosts' tunnel endpoints, the outer headers towards them, and the wires of physical networks."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from headrace import abi
from headrace.model import Host
from headrace.stages.memo import Entry, Table
from headrace.stages.view import Address, Device, Parts, View, address_octets, mac_octets


class Remote(NamedTuple):
    """Another host with the VTEP it is reached by; ``own``: this host's, by IP version; ``mac``: if it is known."""

    host: Host
    vtep: Address
    number: int
    endpoint: int
    own: dict[int, Address]
    tunnel_port: int
    whole: bool
    mac: str | None


class Physical(NamedTuple):
    """A physical network with the device that leads to it; ``number``: of the VTEP that it is like."""

    name: str
    number: int
    device: Device


def compile_parts(view: View) -> Parts:
    """hr_vteps, hr_adjacencies, hr_wires, hr_uplinks. Next hops are found by the walk."""
    own: dict[int, Address] = {vtep.version: vtep for vtep in reversed(view.vteps)}
    remotes: dict[str, Remote] = {}
    for host in sorted(view.state.hosts.values(), key=lambda host: host.id):
        vtep = None if host.id == view.host else view.vtep_of(host.id)
        if vtep is not None:
            number, endpoint = view.index.vtep(str(vtep)), view.index.endpoint(f"vtep {vtep}")
            mac = view.next_hops.get(str(vtep))
            remotes[host.id] = Remote(host, vtep, number, endpoint, own, view.tunnel_port, view.whole, mac)
    wires = {name: Physical(name, view.index.vtep(f"wire {name}"), view.wires[name]) for name in used(view)}
    return {
        "hr_vteps": {"": view.memo.spread("hr_vteps", remotes, compile_sources)},
        "hr_adjacencies": {
            "": view.memo.spread("hr_adjacencies", remotes, compile_adjacencies),
            "wires": view.memo.spread("hr_adjacencies of wires", wires, compile_wire),
        },
        "hr_wires": {"": compile_segments(view)},
        "hr_uplinks": {"": compile_uplinks(view, {wire.device.ifindex: name for name, wire in wires.items()})},
    }


def compile_uplinks(view: View, wires: dict[int, str]) -> Table:
    """Devices that lead out; ``wires``: to physical networks, by ifindex. Tunnels come by the view's uplinks only."""
    return {
        abi.U32(value=ifindex): abi.Uplink(
            physical=view.index.physical(wires[ifindex]) if ifindex in wires else 0, tunnels=ifindex in view.uplinks
        )
        for ifindex in sorted(wires.keys() | view.uplinks)
    }


def used(view: View) -> list[str]:
    """Physical networks that a port here is on."""
    return sorted({network.segment.physical_network or "" for network in view.networks.values()} & view.wires.keys())


def compile_segments(view: View) -> Table:
    """The wires of segments that have ports here."""
    table: Table = {}
    for name, network in view.networks.items():
        if network.segment.physical_network is not None:
            segment = view.segments[name]
            wire = view.index.vtep(f"wire {network.segment.physical_network}")
            table[abi.U32(value=segment)] = abi.Wire(vtep=wire, endpoint=view.index.endpoint(f"wire {segment:x}"))
    return table


def compile_wire(wire: Physical) -> Iterator[Entry]:
    """The paths to a device, all one."""
    adjacency = abi.Adjacency(
        state=abi.AdjacencyState.RESOLVED,
        ifindex=wire.device.ifindex,
        mtu=wire.device.mtu,
        flags=abi.AdjacencyFlag.WIRE,
    )
    for path in range(abi.PATHS):
        yield abi.U32(value=wire.number * abi.PATHS + path), adjacency


def compile_sources(remote: Remote) -> Iterator[Entry]:
    """A host may send from any of its addresses of a family that we have; it is reached by the first of them."""
    place = abi.Vtep(vtep=remote.number, endpoint=remote.endpoint)
    for source in map(ipaddress.ip_address, remote.host.vteps):
        if source.version in remote.own:
            yield abi.VtepKey(addr=address_octets(source)), place
    if remote.mac is not None:
        yield abi.VtepKey(addr=bytes([abi.VTEP_MAC, *bytes(9)]) + mac_octets(remote.mac)), place


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
