"""``headrace controller``: the service itself, and the authority behind its certificates."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import click

from headrace.cli.output import output_option, show_one
from headrace.cli.reach import DIRECTORY, Reach, reaching

directory_option = click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), default=DIRECTORY, show_default=True
)


@click.group(invoke_without_command=True)
@click.option("--config", type=click.Path(dir_okay=False), help="Configuration file; run the service with it.")
@click.pass_context
def controller(ctx: click.Context, config: str | None) -> None:
    """Run the controller, or make its certificates.

    \b
    headrace controller init --name controller.example.org
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


@controller.command()
@directory_option
@click.option("--name", "names", multiple=True, help="A name or address that clients reach the controller by (repeat).")
def init(directory: Path, names: tuple[str, ...]) -> None:
    """Make the authority, and the certificates of the controller and of its operator.

    Once made, the authority stays; run again, this renews the two certificates, and the controller keeps its names.
    """
    from headrace.controller.identity import Authority, Files, expiry, names_in

    known = (directory / "ca.key").exists()
    authority = Authority.load(directory) if known else Authority.create(directory)
    own = ("localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn())
    earlier = names_in(Files.at(directory, "controller").certificate)
    names = tuple(dict.fromkeys([*names, *(name for name in earlier if name not in own), *own]))
    files = authority.issue(directory, "controller", "controller", names[0], names)
    authority.issue(directory, "client", "operator", "cli")
    click.echo(f"{directory}: authority {'kept' if known else 'made'}; certificates for the controller and operator")
    click.echo(f"the controller is reached as {', '.join(names)}; valid until {expiry(files.certificate):%Y-%m-%d}")


@controller.command()
@click.argument("name")
@directory_option
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="Where to write them.  [default: ./NAME]")
@click.option("--operator", is_flag=True, help="For an operator instead of a writer.")
def issue(name: str, directory: Path, to: Path | None, *, operator: bool) -> None:
    """Make a certificate for a writer (`neutron`) or an operator, on the controller's machine."""
    from headrace.controller.identity import Authority, expiry

    file_name = "client" if operator else name
    role = "operator" if operator else "writer"
    files = Authority.load(directory).issue(to or Path(name), file_name, role, name)  # type: ignore[arg-type]
    click.echo(f"{role} {name}: certificate valid until {expiry(files.certificate):%Y-%m-%d}")
    click.echo(f"copy {files.authority}, {files.certificate}, {files.key} to where it runs")


@controller.command()
@output_option
@reaching
def status(reach: Reach, output: str) -> None:
    """How the controller is."""
    import msgspec

    show_one(output, msgspec.structs.asdict(reach.ask(lambda client: client.health())))
