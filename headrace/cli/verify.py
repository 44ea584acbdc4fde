"""``headrace host verify``: whether the datapath is as the agent wrote it, and mending it."""

from __future__ import annotations

import sys

import click

from headrace.cli.local import Local, on_this_host
from headrace.cli.output import output_option, show_list

COLUMNS = ("kind", "place", "key", "state", "found", "wanted")


@click.command()
@click.option("--repair", is_flag=True, help="Make it as it was.")
@output_option
@on_this_host
def verify(local: Local, output: str, *, repair: bool) -> None:
    """Whether this host's datapath is as its agent wrote it: tables, pins, programs, guard, devices.

    The agent looks by itself every minute (`verify` in agent.toml) and repairs; this looks now, by asking it. Exit
    status 1 when something differs - with --repair, when something still does.

    \b
    headrace host verify --repair
    """
    import msgspec

    from headrace.agent.control import Request, ask
    from headrace.errors import Unavailable

    answer = ask(local.run(), Request(verify=True, repair=repair))
    if answer is None:
        raise Unavailable("no agent runs here; start it: that compares everything with desired state, and repairs it")
    rows = [msgspec.to_builtins(difference) for difference in answer.differences]
    show_list(output, COLUMNS, rows, "all is as it should be")
    if rows and repair and output == "table":
        click.echo(f"{len(rows) - len(answer.left)} of {len(rows)} repaired", err=True)
    if answer.left:
        if repair and output == "table":
            click.echo(f"{len(answer.left)} cannot be repaired from here", err=True)
        sys.exit(1)
