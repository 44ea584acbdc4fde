"""encap, VXLAN: the other hosts' tunnel endpoints and the outer headers towards them."""

from __future__ import annotations

from headrace import abi
from headrace.stages.view import Tables, View, address_octets


def compile_tables(view: View) -> Tables:
    """hr_vteps, hr_adjacencies. Next hops are found by the walk; what is compiled is UNRESOLVED."""
    own = {vtep.version: vtep for vtep in reversed(view.vteps)}
    tables: Tables = {"hr_vteps": {}, "hr_adjacencies": {}}
    for vtep in sorted({vtep for _, vtep in view.remote_ports}, key=lambda vtep: (vtep.version, vtep)):
        index = view.index.vtep(str(vtep))
        key = abi.VtepKey(addr=address_octets(vtep))
        tables["hr_vteps"][key] = abi.Vtep(vtep=index, endpoint=view.index.endpoint(f"vtep {vtep}"))
        for path in range(abi.PATHS):
            tables["hr_adjacencies"][abi.U32(value=index * abi.PATHS + path)] = abi.Adjacency(
                state=abi.AdjacencyState.UNRESOLVED,
                saddr=address_octets(own[vtep.version]),
                daddr=address_octets(vtep),
                port=view.tunnel_port,
            )
    return tables
