"""``headrace port``: what is attached where, and whether the datapath has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from headrace.cli.output import output_option, show_list, show_one
from headrace.cli.reach import Reach, delete, find, reaching

if TYPE_CHECKING:
    from headrace.controller.client import Client
    from headrace.model import HostStatus, Record

COLUMNS = ("id", "name", "network", "mac", "addresses", "host", "state", "reason")


@click.group()
def port() -> None:
    """Ports: list, show, delete."""


@port.command("list")
@click.option("--host", help="Only those of a host.")
@click.option("--network", help="Only those of a network (id).")
@output_option
@reaching
def list_(reach: Reach, output: str, host: str | None, network: str | None) -> None:
    """All ports, with the state their host reports."""

    async def question(client: Client) -> list[dict[str, Any]]:
        records = (await client.list("port")).items
        statuses = {status.id: status for status in await client.statuses()}
        now = (await client.health()).time
        return [view(record, statuses, now) for record in records]

    rows = [
        row
        for row in reach.ask(question)
        if (host is None or row.get("host") == host) and (network is None or row["network"] == network)
    ]
    show_list(output, COLUMNS, rows, "no ports")


@port.command()
@click.argument("name")
@output_option
@reaching
def show(reach: Reach, output: str, name: str) -> None:
    """One port, by id or name, and what it is told by DHCP and router advertisements."""
    from headrace.cli.offer import offered
    from headrace.model import Port, State, decode

    async def question(client: Client) -> dict[str, Any]:
        record = await find(client, "port", name)
        statuses = {status.id: status for status in await client.statuses()}
        row = view(record, statuses, (await client.health()).time)
        around = [await client.list(type_name) for type_name in ("network", "subnet", "port")]
        items = [decode(item.type, item.body) for listing in around for item in listing.items]
        port = decode("port", record.body)
        assert isinstance(port, Port)
        return row | offered(port, State.of(items)) | {"writer": record.writer, "stored": record.stored}

    show_one(output, reach.ask(question))


@port.command("delete")
@click.argument("names", nargs=-1, required=True)
@reaching
def delete_(reach: Reach, names: tuple[str, ...]) -> None:
    """Delete ports that were made with `headrace apply`."""
    delete(reach, "port", names)


def view(record: Record, statuses: dict[str, HostStatus], now: float) -> dict[str, Any]:
    """A port with its state (up, down, error, unknown) and the reason for it."""
    from headrace.model import Port, decode

    item = decode("port", record.body)
    assert isinstance(item, Port)
    row: dict[str, Any] = {"id": item.id, "name": item.name or None, "network": item.network, "mac": item.mac}
    row |= {"addresses": item.addresses, "host": item.host, "device": item.device_name}
    row |= {"security_groups": item.security_groups, "admin_up": item.admin_up, "port_security": item.port_security}
    state, reason = judge(item, record.stored, statuses, now)
    return row | {"state": state, "reason": reason}


def judge(item: Any, stored: int, statuses: dict[str, HostStatus], now: float) -> tuple[str, str | None]:
    """A port's state and reason, from what its host says; or from whoever else could not place it."""
    from headrace.cli.host import silent

    status = statuses.get(item.host)
    said = next((told for told in status.ports if told.id == item.id), None) if status else None
    if status and said:
        if silent(status, now):
            return "unknown", f"host {item.host} is silent; it was {said.state}"
        pending = f"revision {stored} not applied yet" if said.revision < stored and status.applied < stored else None
        return said.state, said.reason or pending
    for other in statuses.values():
        for told in other.ports:
            if told.id == item.id and told.state == "error":
                return "error", f"{other.id}: {told.reason}"
    if item.host is None:
        return "down", "not bound to a host"
    if status is None:
        return "down", f"host {item.host} has not reported"
    return "down", f"host {item.host} says nothing of it"
