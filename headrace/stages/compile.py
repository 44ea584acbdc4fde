"""All tables of a host."""

from __future__ import annotations

from headrace.stages import acl, admit, anti_spoof, encap_vxlan, forward, respond
from headrace.stages.view import Tables, View

ORDER = (
    "hr_adjacencies",
    "hr_vteps",
    "hr_acl_matches",
    "hr_acl_services",
    "hr_acl_remotes",
    "hr_sources",
    "hr_neighbours",
    "hr_fdbs",
    "hr_ports",
    "hr_floods",
    "hr_configs",
    "hr_devices",
)
"""The order in which entries are put, and the reverse of that in which they go: what is referred to comes first."""


def compile_tables(view: View) -> Tables:
    """Every table that the agent writes, from desired state alone."""
    tables: Tables = {name: {} for name in ORDER}
    for stage in (admit, anti_spoof, respond, acl, forward, encap_vxlan):
        for name, entries in stage.compile_tables(view).items():
            tables[name].update(entries)
    return tables
