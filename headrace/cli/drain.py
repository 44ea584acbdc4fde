"""``headrace host drain``: have this host take no new ports, before it is taken out."""

from __future__ import annotations

import click

from headrace.cli.local import Local, on_this_host


@click.command()
@click.option("--undo", is_flag=True, help="Take new ports again.")
@on_this_host
def drain(local: Local, *, undo: bool) -> None:
    """Have this host take no new ports; run on the host itself.

    Ports that are here stay, and forward on. The host says that it is drained: `headrace host list` shows it, Neutron
    refuses to bind ports here and shows the host's agent as administratively down. It outlives the agent.
    """
    from pathlib import Path

    from headrace.agent.control import Request, ask
    from headrace.agent.drained import mark_drained

    if ask(local.run(), Request(drain=not undo)) is None:
        mark_drained(Path(local.config().cache), drained=not undo)
        click.echo("no agent runs here; it will know when it starts", err=True)
    click.echo("this host takes new ports" if undo else "this host takes no new ports")
