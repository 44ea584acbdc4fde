"""Whose decisions a change of tables may have made wrong: the indices whose epoch the agent raises.

Only what takes away counts: a new permission makes no decision wrong, because a denied packet leaves no entry. An
address that leaves a policy concerns all ports of that policy, not just who had it: behind a router or an address pair,
and to any MAC that a workload likes, packets with that address carry another MAC, hence another index.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace import abi
from headrace.stages.view import Tables


def concerned(old: Tables, new: Tables) -> set[int]:
    """Indices whose flows must be decided again when ``old`` becomes ``new``."""
    indices: set[int] = set()
    if old.get("hr_configs", {}) != new.get("hr_configs", {}):
        indices |= local_ports(old)
    indices.update(key.value for key, _ in lost(old, new, "hr_ports") if isinstance(key, abi.U32))
    indices.update(key.port for key, _ in lost(old, new, "hr_sources") if isinstance(key, abi.SourceKey))
    for _, value in lost(old, new, "hr_fdbs"):
        indices.add(value.endpoint)  # type: ignore[attr-defined]
    if any(True for _ in lost(old, new, "hr_vteps")):  # what came from there has the index of who sent it
        indices |= local_ports(old)
    policies = {key.policy for key, _ in lost(old, new, "hr_acl_services") if isinstance(key, abi.AclServiceKey)}
    policies |= {key.policy for key, _ in lost(old, new, "hr_acl_remotes") if isinstance(key, abi.AclRemoteKey)}
    if policies:
        for key, value in old.get("hr_ports", {}).items():
            if value.policy in policies:  # type: ignore[attr-defined]
                indices.add(key.value)  # type: ignore[attr-defined]
    return indices


def lost(old: Tables, new: Tables, name: str) -> Iterator[tuple[abi.Packed, abi.Packed]]:
    """Entries of ``old`` that ``new`` lacks or has otherwise."""
    after = new.get(name, {})
    return ((key, value) for key, value in old.get(name, {}).items() if after.get(key) != value)


def local_ports(tables: Tables) -> set[int]:
    """Indices of the host's own ports: every flow has one."""
    return {key.value for key in tables.get("hr_ports", {}) if isinstance(key, abi.U32)}
