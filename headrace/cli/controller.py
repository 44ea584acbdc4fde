"""``headrace controller``: the service itself, and the authority behind its certificates."""

from __future__ import annotations

import sys

import click

DIRECTORY = "/etc/headrace"


@click.group(invoke_without_command=True)
@click.option("--config", type=click.Path(dir_okay=False), help="Configuration file; run the service with it.")
@click.pass_context
def controller(ctx: click.Context, config: str | None) -> None:
    r"""Run the controller, or make its certificates.

    \b
    headrace controller --config /etc/headrace/controller.toml
    """
    if ctx.invoked_subcommand is not None:
        return
    if config is None:
        raise click.UsageError("give --config FILE to run the service, or a command")
    from headrace.controller.serve import EX_CONFIG, main
    from headrace.errors import InvalidInput
    from headrace.store import StoreBroken

    try:
        main(config)
    except (InvalidInput, StoreBroken) as error:
        # A status of its own: systemd does not try again what only an operator can mend.
        click.echo(f"error: {error}", err=True)
        sys.exit(EX_CONFIG)
