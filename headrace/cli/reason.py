"""``headrace reason``: why packets were dropped here or treated specially, and how often. Needs root, but no agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.local import Local, on_this_host, port_index, port_label
from headrace.cli.output import output_option, show_list, show_one

if TYPE_CHECKING:
    from headrace.abi import Reason

COLUMNS = ("reason", "packets", "meaning")


@click.group()
def reason() -> None:
    """Reasons for drops: list, show."""


@reason.command("list")
@click.option("--port", "wanted", help="Count only a port's (id, name, device); `uplink` for what had no port yet.")
@click.option("--all", "every", is_flag=True, help="Also what never occurred. JSON has it always.")
@output_option
@on_this_host
def list_(local: Local, output: str, wanted: str | None, *, every: bool) -> None:
    """Why packets were dropped or treated specially here, and how often."""
    from headrace.abi import Reason

    counts: Mapping[int, Mapping[Reason, int]]
    with local.open() as (reader, names):
        if wanted:
            index = 0 if wanted == "uplink" else port_index(names, wanted)
            counts = {index: reader.port_reasons(index)}
        else:
            counts = reader.reasons()
    totals = {one: sum(count.get(one, 0) for count in counts.values()) for one in Reason}
    rows: list[dict[str, Any]] = [
        {"reason": one.name, "packets": totals[one], "meaning": one.doc}
        for one in Reason
        if one is not Reason.NONE and (totals[one] or every or output == "json")
    ]
    show_list(output, COLUMNS, rows, "nothing was dropped or treated specially; --all lists all reasons that there are")


@reason.command()
@click.argument("name")
@output_option
@on_this_host
def show(local: Local, output: str, name: str) -> None:
    """One reason, with the ports that had it."""
    from headrace.errors import Denied, Unavailable

    known = find(name)
    row: dict[str, Any] = {"reason": known.name, "meaning": known.doc}
    try:
        with local.open() as (reader, names):
            counts = {index: count[known] for index, count in reader.reasons().items() if count.get(known)}
    except (Denied, Unavailable) as error:  # what it means is worth saying anywhere
        click.echo(f"not counted: {error}", err=True)
        show_one(output, row | {"packets": None, "ports": None})
        return
    ports = {port_label(names, index): count for index, count in sorted(counts.items())}
    show_one(output, row | {"packets": sum(counts.values()), "ports": ports})


def find(name: str) -> Reason:
    """The reason of that name, however it is spelt."""
    from headrace.abi import Reason
    from headrace.errors import NotFound
    from headrace.strict import suggestion

    wanted = name.upper().replace("-", "_").removeprefix("HR_REASON_")
    try:
        return Reason[wanted]
    except KeyError:
        raise NotFound(
            f"reason {name} does not exist{suggestion(wanted, [one.name for one in Reason if one.value])}"
        ) from None
