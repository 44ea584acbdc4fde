"""Whose decisions a change of tables may have made wrong: the indices whose epoch the agent raises.

Only what takes away counts: a new permission makes no decision wrong, because a denied packet leaves no entry. An
address that leaves a policy concerns all ports of that policy, not just who had it: behind a router or an address pair,
and to any MAC that a workload likes, packets with that address carry another MAC, hence another index.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from headrace import abi
from headrace.stages.view import Tables


def concerned(old: Tables, lost: Tables, gained: Mapping[str, Collection[abi.Packed]] | None = None) -> set[int]:
    """Indices whose flows must be decided again when tables lose entries of ``old``, or have others in their place.

    ``gained``: keys of what is here, and new. It may have been on a physical network's wire by not being here.
    """
    indices: set[int] = set()
    wires = old.get("hr_wires", {})
    for key in (gained or {}).get("hr_fdbs", ()):
        if isinstance(key, abi.FdbKey) and isinstance(wire := wires.get(abi.U32(value=key.segment)), abi.Wire):
            indices.add(wire.endpoint)
    wired = any(
        isinstance(one, abi.Adjacency) and one.flags & abi.AdjacencyFlag.WIRE
        for one in lost.get("hr_adjacencies", {}).values()
    )
    if (
        lost.get("hr_configs") or lost.get("hr_vteps") or lost.get("hr_wires") or wired
    ):  # what came from a VTEP has the index of who sent it
        indices |= local_ports(old)
    indices |= local_ports(lost)
    indices.update(key.port for key in lost.get("hr_sources", {}) if isinstance(key, abi.SourceKey))
    indices.update(value.endpoint for value in lost.get("hr_fdbs", {}).values() if isinstance(value, abi.Fdb))
    policies = {key.policy for key in lost.get("hr_acl_services", {}) if isinstance(key, abi.AclServiceKey)}
    gone = (*lost.get("hr_acl_remotes", {}), *lost.get("hr_acl_addresses", {}))
    remotes = {key.remotes for key in gone if isinstance(key, abi.AclRemoteKey | abi.AclAddressKey)}
    if remotes:
        for key, service in old.get("hr_acl_services", {}).items():
            if service.remotes in remotes:  # type: ignore[attr-defined]
                policies.add(key.policy)  # type: ignore[attr-defined]
    if policies:
        for key, port in old.get("hr_ports", {}).items():
            if isinstance(key, abi.U32) and isinstance(port, abi.Port) and port.policy in policies:
                indices.add(key.value)
    return indices


def local_ports(tables: Tables) -> set[int]:
    """Indices of the host's own ports: every flow has one."""
    return {key.value for key in tables.get("hr_ports", {}) if isinstance(key, abi.U32)}
