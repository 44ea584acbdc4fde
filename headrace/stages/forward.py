"""forward: where the MACs of a segment are, and where its broadcasts go."""

from __future__ import annotations

from headrace import abi
from headrace.stages.view import Table, Tables, View, mac_octets, segment_of


def compile_tables(view: View) -> Tables:
    """hr_fdbs, hr_floods. An address pair's MAC has no entry: where it is, is learnt."""
    fdbs: Table = {}
    places: dict[int, list[abi.Flood]] = {}
    for port, vtep in view.remote_ports:
        segment, index = segment_of(view.networks[port.network]), view.index.vtep(str(vtep))
        key = abi.FdbKey(segment=segment, mac=mac_octets(port.mac))
        fdbs[key] = abi.Fdb(endpoint=view.index.endpoint(f"port {port.id}"), vtep=index)
        places.setdefault(segment, []).append(abi.Flood(vtep=index))
    for port in view.local_ports:
        segment, index = segment_of(view.networks[port.network]), view.index.port(port.id)
        fdbs[abi.FdbKey(segment=segment, mac=mac_octets(port.mac))] = abi.Fdb(endpoint=index)
        places.setdefault(segment, []).append(abi.Flood(port=index))
    floods: Table = {
        abi.FloodKey(segment=segment, slot=slot): place
        for segment, members in places.items()
        for slot, place in enumerate(sorted(set(members), key=lambda place: (place.vtep, place.port)))
    }
    return {"hr_fdbs": fdbs, "hr_floods": floods}
