"""The command's root: options that all share, and sub-commands imported when they are called."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from headrace import __version__
from headrace.errors import HeadraceError

COMMANDS: dict[str, tuple[str, str]] = {
    "agent": ("headrace.cli.agent:agent", "Run the host agent."),
    "apply": ("headrace.cli.apply:apply", "Bring desired state in line with a YAML file."),
    "controller": ("headrace.cli.controller:controller", "Run the controller, or make its certificates."),
    "drop": ("headrace.cli.drop:drop", "Dropped packets of this host, as they are dropped: watch."),
    "flow": ("headrace.cli.flow:flow", "Connections on this host, and who has most: list, show, top."),
    "host": ("headrace.cli.host:host", "Hosts: list, show, enroll, delete; here: check, verify, drain, uninstall."),
    "network": ("headrace.cli.network:network", "Networks: list, show, delete; on a host: learnt."),
    "port": ("headrace.cli.port:port", "Ports: list, show, delete."),
    "reason": ("headrace.cli.reason:reason", "Why packets were dropped on this host: list, show."),
    "trace": ("headrace.cli.trace:trace", "Follow a packet over all hosts: who gets it, or what drops it and why."),
}
"""Every sub-command: where it is, and what ``--help`` says of it without importing it."""


class Lazy(click.Group):
    """A group whose commands are imported when called: ``headrace --help`` loads none."""

    def __init__(self, *args: object, table: dict[str, tuple[str, str]] | None = None, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.table = table or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.table})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.table[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        rows = {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        rows |= {name: line for name, (_, line) in self.table.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows.items()))


@click.group(
    cls=Lazy,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Environment: HEADRACE_CONTROLLER, HEADRACE_CERTIFICATES stand for the options of those names.",
)
@click.version_option(__version__, prog_name="headrace")
def root() -> None:
    """Headrace: SR-IOV's speed with every feature of a virtual switch."""


def main() -> NoReturn:
    """Run; the one place where an error becomes a message and an exit status."""
    try:
        root(prog_name="headrace")
    except HeadraceError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    sys.exit(0)
