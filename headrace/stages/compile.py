"""All tables of a host."""

from __future__ import annotations

from headrace.stages import acl, admit, anti_spoof, encap, forward, respond
from headrace.stages.view import Parts, Tables, View, flat

ORDER = (
    "hr_adjacencies",
    "hr_vteps",
    "hr_wires",
    "hr_acl_matches",
    "hr_acl_services",
    "hr_acl_remotes",
    "hr_acl_addresses",
    "hr_sources",
    "hr_neighbours",
    "hr_fdbs",
    "hr_ports",
    "hr_subports",
    "hr_floods",
    "hr_configs",
    "hr_devices",
    "hr_uplinks",
)
"""The order in which entries are put, and the reverse of that in which they go: what is referred to comes first."""


def compile_parts(view: View) -> Parts:
    """Every table that the agent writes, from desired state alone; parts that the view's memo knows stay the same."""
    view.memo.turn()
    parts: Parts = {name: {} for name in ORDER}
    for stage in (admit, anti_spoof, respond, acl, forward, encap):
        parts.update(stage.compile_parts(view))
    return parts


def compile_tables(view: View) -> Tables:
    """The same, put together."""
    return flat(compile_parts(view))
