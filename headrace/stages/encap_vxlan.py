"""encap, VXLAN: the other hosts' tunnel endpoints and the outer headers towards them."""

from __future__ import annotations

import ipaddress

from headrace import abi
from headrace.stages.view import Tables, View, address_octets


def compile_tables(view: View) -> Tables:
    """hr_vteps, hr_adjacencies. Next hops are found by the walk; what is compiled is UNRESOLVED.

    A host may send from any of its addresses of a family that we have; it is reached by the first of them.
    """
    own = {vtep.version: vtep for vtep in reversed(view.vteps)}
    tables: Tables = {"hr_vteps": {}, "hr_adjacencies": {}}
    for host in sorted(view.state.hosts.values(), key=lambda host: host.id):
        vtep = None if host.id == view.host else view.vtep_of(host.id)
        if vtep is None:
            continue
        index = view.index.vtep(str(vtep))
        place = abi.Vtep(vtep=index, endpoint=view.index.endpoint(f"vtep {vtep}"))
        for source in map(ipaddress.ip_address, host.vteps):
            if source.version in own:
                tables["hr_vteps"][abi.VtepKey(addr=address_octets(source))] = place
        for path in range(abi.PATHS):
            tables["hr_adjacencies"][abi.U32(value=index * abi.PATHS + path)] = abi.Adjacency(
                state=abi.AdjacencyState.UNRESOLVED,
                saddr=address_octets(own[vtep.version]),
                daddr=address_octets(vtep),
                port=view.tunnel_port,
                flags=abi.AdjacencyFlag.WHOLE if view.whole else 0,
            )
    return tables
