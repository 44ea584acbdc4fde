"""``headrace host``: the machines that carry ports, and their identities."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.main import Lazy
from headrace.cli.output import age, output_option, show_list, show_one
from headrace.cli.reach import Reach, delete, find, reaching

if TYPE_CHECKING:
    from headrace.controller.client import Client
    from headrace.model import HostStatus, Record

COLUMNS = ("id", "state", "vteps", "ports", "applied", "revision", "heartbeat", "version")

SILENT = 30.0
"""Seconds without a word after which a host counts as silent: six heartbeats."""

COMMANDS: dict[str, tuple[str, str]] = {
    "check": ("headrace.cli.check:check", "Whether this host has what the agent needs."),
    "drain": ("headrace.cli.drain:drain", "Have this host take no new ports."),
    "uninstall": ("headrace.cli.uninstall:uninstall", "Take everything of Headrace off this host's devices."),
    "verify": ("headrace.cli.verify:verify", "Whether this host's datapath is as its agent wrote it."),
}
"""Sub-commands that live elsewhere: name -> (module:function, help)."""


HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
"""As headrace.model.Identity has it."""


@click.group(cls=Lazy, table=COMMANDS)
def host() -> None:
    """Hosts: list, show, delete, enroll; on the host itself: check, verify, drain, uninstall."""


@host.command("list")
@output_option
@reaching
def list_(reach: Reach, output: str) -> None:
    """All hosts: when they last spoke, and how much of desired state (REVISION) they have applied."""

    async def question(client: Client) -> list[dict[str, Any]]:
        listing = await client.list("host")
        statuses = {status.id: status for status in await client.statuses()}
        now = (await client.health()).time
        return [view(record, statuses.get(record.id), listing.revision, now) for record in listing.items]

    show_list(output, COLUMNS, reach.ask(question), "no hosts; `headrace host enroll HOST` makes one known")


@host.command()
@click.argument("name")
@output_option
@reaching
def show(reach: Reach, output: str, name: str) -> None:
    """One host, with what it says of its ports."""

    async def question(client: Client) -> dict[str, Any]:
        record = await find(client, "host", name)
        health = await client.health()
        status = next((status for status in await client.statuses() if status.id == record.id), None)
        row = view(record, status, health.revision, health.time)
        if status:
            row |= {"mtu": status.mtu, "network_types": status.network_types}
            row |= {"physical_networks": status.physical_networks, "repairs": status.repairs}
            row["says_of_ports"] = {
                port.id: port.state + (f": {port.reason}" if port.reason else "") for port in status.ports
            }
        return row

    show_one(output, reach.ask(question))


@host.command("delete")
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Although ports are bound there: nobody will reach them.")
@reaching
def delete_(reach: Reach, names: tuple[str, ...], *, force: bool) -> None:
    """Forget hosts that are gone for good; one whose agent still runs comes back."""
    if not force:
        reach.ask(lambda client: refuse_bound(client, names))
    delete(reach, "host", names)


async def refuse_bound(client: Client, names: tuple[str, ...]) -> None:
    """Raise Conflict naming a port that is bound to one of the hosts."""
    from headrace.errors import Conflict

    hosts = [(await find(client, "host", name)).id for name in names]
    for record in (await client.list("port")).items:
        if record.body and record.body.get("host") in hosts:
            raise Conflict(
                f"host {record.body['host']} has ports, port {record.id} for one; move or unbind them, or give --force"
            )


@host.command()
@click.argument("name", required=False)
@click.option(
    "--directory",
    type=click.Path(file_okay=False),
    help="Where to write ca.crt, host.crt, host.key.  [default: ./NAME]",
)
@click.option("--renew", is_flag=True, help="On the host itself: renew the certificate in --certificates.")
@reaching
def enroll(reach: Reach, name: str | None, directory: str | None, *, renew: bool) -> None:
    """Give a host its identity, or renew it.

    The key is made here; the controller signs. Copy the directory's files to /etc/headrace on the host.
    With --renew, run on the host, its present certificate is what allows it.
    """
    from headrace.controller.identity import Files, common_name, expiry, new_request, write
    from headrace.errors import InvalidInput

    if renew:
        own = Files.at(reach.certificates, "host")
        own.check()
        name, directory = name or common_name(own.certificate), directory or reach.certificates
    if name is None:
        raise click.UsageError("name the host to enroll")
    if not HOST_NAME.fullmatch(name):
        raise InvalidInput(
            f"host {name!r}: a name has letters, digits and _.:- only, and begins with a letter or digit"
        )
    target = Files.at(directory or name, "host")
    if target.key.exists() and not renew:
        raise InvalidInput(f"{target.key} exists; give another --directory, or --renew on the host itself")
    key, request = new_request(name)
    signed = reach.ask(lambda client: client.sign(name, request), identity="host" if renew else "client")
    write(target.key, key, secret=True)
    write(target.certificate, signed.certificate.encode())
    write(target.authority, signed.authority.encode())
    click.echo(f"host {name}: certificate valid until {expiry(target.certificate):%Y-%m-%d}")
    if not renew:
        click.echo(f"copy {', '.join(str(path) for path in (target.authority, target.certificate, target.key))}")
        click.echo(f"to /etc/headrace on {name}, then start its agent")


def silent(status: HostStatus, now: float) -> bool:
    """Whether a host has not spoken for long."""
    return now - status.time > SILENT


def view(record: Record, status: HostStatus | None, revision: int, now: float) -> dict[str, Any]:
    """A host with what it says of itself."""
    row: dict[str, Any] = {"id": record.id, "name": (record.body or {}).get("name")}
    row |= {"vteps": (record.body or {}).get("vteps", []), "revision": revision}
    if status is None:
        return row | {"state": "unknown", "heartbeat": "never"}
    row |= {"state": "silent" if silent(status, now) else "alive", "heartbeat": age(now - status.time)}
    if status.drained:
        row["state"] = "drained" if row["state"] == "alive" else row["state"]
    return row | {"ports": len(status.ports), "applied": status.applied, "version": status.version or None}
