"""forward: where the MACs of a segment are, and where its broadcasts go."""

from __future__ import annotations

from collections.abc import Iterator

from headrace import abi
from headrace.model import Port
from headrace.stages.memo import Entry, Table
from headrace.stages.view import Parts, View, mac_octets

Place = tuple[Port, int, int, int]
"""A port, its segment, its index, and the index of the VTEP that it is behind; 0: here."""


def compile_parts(view: View) -> Parts:
    """hr_fdbs and hr_floods, by network. An address pair's MAC has no entry: where it is, is learnt.

    A port elsewhere on a physical network is on the wire, as all that is not here; but nobody here may claim its MAC.
    """
    places: dict[str, dict[str, Place]] = {name: {} for name in view.networks}
    segments = view.segments
    wires = wires_of(view)
    vteps = {vtep: view.index.vtep(str(vtep)) for vtep in {vtep for _, vtep in view.remote_ports}}
    for port, vtep in view.remote_ports:
        if view.networks[port.network].segment.is_physical:
            continue
        index = view.index.endpoint(f"port {port.id}")
        places[port.network][port.id] = port, segments[port.network], index, vteps[vtep]
    for port in view.ports:
        physical = view.networks[port.network].segment.physical_network
        if physical is not None and port.host not in {None, view.host}:
            segment = segments[port.network]
            index, wire = view.index.endpoint(f"wire {segment:x}"), view.index.vtep(f"wire {physical}")
            places[port.network][port.id] = port, segment, index, wire
    for port in view.local_ports:
        places[port.network][port.id] = port, segments[port.network], view.index.port(port.attachment), 0
    memo = view.memo
    return {
        "hr_fdbs": {name: memo.spread(("hr_fdbs", name), found, compile_port) for name, found in places.items()},
        "hr_floods": {
            name: memo.of(
                ("hr_floods", name),
                compile_floods,
                segments[name],
                tuple(sorted({(vtep, 0 if vtep else index) for _, _, index, vtep in found.values()} | wires[name])),
            )
            for name, found in places.items()
        },
    }


def wires_of(view: View) -> dict[str, set[tuple[int, int]]]:
    """By network, the wire of its physical network as a place to flood to."""
    physical = {name: network.segment.physical_network for name, network in view.networks.items()}
    return {name: set() if wire is None else {(view.index.vtep(f"wire {wire}"), 0)} for name, wire in physical.items()}


def compile_port(place: Place) -> Iterator[Entry]:
    """Where a port's MAC is."""
    port, segment, index, vtep = place
    yield abi.FdbKey(segment=segment, mac=mac_octets(port.mac)), abi.Fdb(endpoint=index, vtep=vtep)


def compile_floods(segment: int, places: tuple[tuple[int, int], ...]) -> Table:
    """Slots without gaps, for (VTEP, port) pairs of which one is 0."""
    return {
        abi.FloodKey(segment=segment, slot=slot): abi.Flood(vtep=vtep, port=port)
        for slot, (vtep, port) in enumerate(places)
    }
