"""``headrace network``: the virtual networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from headrace.cli.main import Lazy
from headrace.cli.output import output_option, show_list, show_one
from headrace.cli.reach import Reach, delete, find, reaching

if TYPE_CHECKING:
    from headrace.controller.client import Client
    from headrace.model import Record

COLUMNS = ("id", "name", "project", "type", "segment", "mtu", "subnets", "ports", "hosts")


COMMANDS: dict[str, tuple[str, str]] = {
    "learnt": ("headrace.cli.learnt:learnt", "MACs that this host learnt, and where."),
}
"""Sub-commands that live elsewhere: name -> (module:function, help)."""


@click.group(cls=Lazy, table=COMMANDS)
def network() -> None:
    """Networks: list, show, delete; on a host: learnt."""


@network.command("list")
@output_option
@reaching
def list_(reach: Reach, output: str) -> None:
    """All networks, with the number of their ports and of the hosts that carry these."""

    async def question(client: Client) -> list[dict[str, Any]]:
        subnets, ports = (await client.list("subnet")).items, (await client.list("port")).items
        return [view(record, subnets, ports) for record in (await client.list("network")).items]

    show_list(output, COLUMNS, reach.ask(question), "no networks")


@network.command()
@click.argument("name")
@output_option
@reaching
def show(reach: Reach, output: str, name: str) -> None:
    """One network, by id or name."""

    async def question(client: Client) -> dict[str, Any]:
        record = await find(client, "network", name)
        row = view(record, (await client.list("subnet")).items, (await client.list("port")).items)
        return row | {"writer": record.writer, "stored": record.stored}

    show_one(output, reach.ask(question))


@network.command("delete")
@click.argument("names", nargs=-1, required=True)
@reaching
def delete_(reach: Reach, names: tuple[str, ...]) -> None:
    """Delete networks that were made with `headrace apply` and have no ports."""
    delete(reach, "network", names)


def view(record: Record, subnets: tuple[Record, ...], ports: tuple[Record, ...]) -> dict[str, Any]:
    """A network with what is on it."""
    from headrace.model import Network, decode

    item = decode("network", record.body)
    assert isinstance(item, Network)
    own = [port.body for port in ports if port.body and port.body["network"] == item.id]
    row: dict[str, Any] = {"id": item.id, "name": item.name or None, "project": item.project or None}
    row |= {"type": item.segment.type, "segment": item.segment.text, "mtu": item.mtu}
    row |= {"subnets": [one.body["cidr"] for one in subnets if one.body and one.body["network"] == item.id]}
    return row | {"ports": len(own), "hosts": len({port["host"] for port in own if "host" in port})}
