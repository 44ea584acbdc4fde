"""``headrace network learnt``: MACs that no port owns, and where this host saw them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.local import Local, on_this_host, port_label
from headrace.cli.output import output_option, show_list

if TYPE_CHECKING:
    from headrace import abi
    from headrace.agent.names import Names

COLUMNS = ("network", "mac", "place", "age")


@click.command()
@click.argument("networks", metavar="[NETWORK]...", nargs=-1)
@output_option
@on_this_host
def learnt(local: Local, networks: tuple[str, ...], output: str) -> None:
    """MACs of this host's networks (by id; by default of all) that no port owns, and where they were last seen.

    A place is a port here, the VTEP of another host, or the wire of a physical network. AGE, in seconds, is since a
    packet that took the walk showed it on a wire, within 16 s; what is silent there for 300 s is forgotten.
    """
    from headrace.errors import NotFound

    with local.open() as (reader, names):
        known = set(names.segments.values())
        if strange := sorted(set(networks) - known):
            have = ", ".join(sorted(known)) or "none"
            raise NotFound(f"network {strange[0]} has no port on host {names.host}; here are: {have}")
        now = int(time.monotonic())
        rows = [row(key, found, names, now) for key, found in reader.learnt_macs()]
    chosen = [one for one in rows if not networks or one["network"] in networks]
    show_list(output, COLUMNS, sorted(chosen, key=lambda one: (one["network"], one["mac"])), "nothing learnt")


def row(key: abi.FdbKey, found: abi.Learnt, names: Names, now: int) -> dict[str, Any]:
    """One MAC."""
    wire = names.wires.get(str(found.vtep)) if found.vtep else None
    if wire is not None:
        place = f"wire of {wire}"
    elif found.vtep:
        place = f"vtep {names.vteps.get(str(found.vtep), found.vtep)}"
    else:
        place = f"port {port_label(names, found.endpoint)}"
    age = (now - found.seen) & 0xFFFF
    return {
        "network": names.segments.get(str(key.segment), hex(key.segment)),
        "mac": key.mac.hex(":"),
        "place": place,
        "age": None if wire is None else 0 if age > 0x8000 else age,
    }
