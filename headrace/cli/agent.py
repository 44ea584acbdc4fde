"""``headrace agent``: the host daemon."""

from __future__ import annotations

import asyncio
import sys

import click


@click.command()
@click.option("--config", type=click.Path(dir_okay=False), required=True, help="Configuration file (agent.toml).")
def agent(config: str) -> None:
    """Run the host agent: bring this host's datapath in line with desired state.

    Stopping it stops nothing else: the datapath forwards on, and the next start finds everything as it is.

    \b
    headrace agent --config /etc/headrace/agent.toml
    """
    from headrace.agent.config import AgentConfig
    from headrace.agent.run import serve
    from headrace.config import load
    from headrace.errors import InvalidInput, NotSupported
    from headrace.log import set_up

    try:
        settings = load(config, AgentConfig)
        set_up(settings.log)
        asyncio.run(serve(settings))
    except (InvalidInput, NotSupported) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(78)  # EX_CONFIG: systemd does not try again what only an operator can mend
