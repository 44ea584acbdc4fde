"""``headrace host uninstall``: take everything of Headrace off this host's devices."""

from __future__ import annotations

import click

from headrace.cli.local import CONFIG, Local


@click.command()
@click.option("--config", type=click.Path(dir_okay=False), help=f"The agent's.  [default: {CONFIG}]")
@click.confirmation_option(prompt="Workloads on this host lose their networks and security groups. Go on?")
def uninstall(config: str | None) -> None:
    """Take everything of Headrace off this host: programs, tables, guard. Stop the agent first.

    Devices stay, with nothing of ours on them, for whatever comes next. From then on nothing keeps what workloads send
    from the host's own stack: have the next thing in place, or the devices down. Packages and /etc/headrace stay.
    """
    from headrace.agent.uninstall import uninstall as undo

    for line in undo(Local(config, None, None).config()):
        click.echo(line)
