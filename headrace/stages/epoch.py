"""Whose decisions a change of tables may have made wrong: the indices whose epoch the agent raises.

Only what takes away counts: a new permission makes no decision wrong, because a denied packet leaves no entry. And
what takes away raises the epoch of just whom it concerns: a member that leaves a group of ten thousand is one index.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace import abi
from headrace.stages.view import Table, Tables

WHOLE_ADDRESS = abi.REMOTE_PREFIX + 128


def concerned(old: Tables, new: Tables) -> set[int]:
    """Indices whose flows must be decided again when ``old`` becomes ``new``."""
    indices: set[int] = set()
    if old.get("hr_configs", {}) != new.get("hr_configs", {}):
        indices.update(key.value for key in old.get("hr_ports", {}) if isinstance(key, abi.U32))
    indices.update(key.value for key, _ in lost(old, new, "hr_ports") if isinstance(key, abi.U32))
    indices.update(key.port for key, _ in lost(old, new, "hr_sources") if isinstance(key, abi.SourceKey))
    for _, value in lost(old, new, "hr_fdbs"):
        indices.add(value.endpoint)  # type: ignore[attr-defined]
    for _, value in lost(old, new, "hr_vteps"):
        indices.add(value.endpoint)  # type: ignore[attr-defined]
    policies = {key.policy for key, _ in lost(old, new, "hr_acl_services") if isinstance(key, abi.AclServiceKey)}
    owners: dict[bytes, set[int]] | None = None
    for key, _ in lost(old, new, "hr_acl_remotes"):
        if isinstance(key, abi.AclRemoteKey) and key.policy not in policies:
            owners = owners if owners is not None else owners_of(old, owners_of(new))
            if key.prefixlen == WHOLE_ADDRESS and key.addr in owners:
                indices |= owners[key.addr]
            else:
                policies.add(key.policy)
    if policies:
        for key, value in old.get("hr_ports", {}).items():
            if value.policy in policies:  # type: ignore[attr-defined]
                indices.add(key.value)  # type: ignore[attr-defined]
    return indices


def lost(old: Tables, new: Tables, name: str) -> Iterator[tuple[abi.Packed, abi.Packed]]:
    """Entries of ``old`` that ``new`` lacks or has otherwise."""
    after = new.get(name, {})
    return ((key, value) for key, value in old.get(name, {}).items() if after.get(key) != value)


def owners_of(tables: Tables, owners: dict[bytes, set[int]] | None = None) -> dict[bytes, set[int]]:
    """Address -> the endpoints that have it, on whatever segment; added to ``owners``."""
    owners = owners if owners is not None else {}
    fdbs: Table = tables.get("hr_fdbs", {})
    for key, value in tables.get("hr_neighbours", {}).items():
        if isinstance(key, abi.NeighbourKey) and isinstance(value, abi.Neighbour):
            place = fdbs.get(abi.FdbKey(segment=key.segment, mac=value.mac))
            if isinstance(place, abi.Fdb):
                owners.setdefault(key.addr, set()).add(place.endpoint)
    return owners
