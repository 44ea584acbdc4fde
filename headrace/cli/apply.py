"""``headrace apply``: desired state from YAML, without a cloud.

One or many documents; each a mapping of top-level lists named after the object types, with fields
exactly those of `headrace.model`:

    networks:
      - {id: blue, segment: {id: 100}, mtu: 1450}
    security_groups:
      - id: web
        rules:
          - {id: http, direction: ingress, protocol: 6, port_min: 80, port_max: 80, remote_cidr: 0.0.0.0/0}
    ports:
      - {id: web-1, network: blue, mac: "02:00:00:00:00:01", addresses: [10.0.0.1], security_groups: [web], host: h1}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

import click

from headrace.cli.output import output_option, show_json
from headrace.cli.reach import Reach, reaching

if TYPE_CHECKING:
    from headrace.controller.client import Client
    from headrace.model import Record

SIGNS = {"new": "+", "changed": "~", "deleted": "-", "unchanged": "="}
STYLES = {"new": "green", "changed": "yellow", "deleted": "red"}


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--prune", is_flag=True, help="Delete what was applied before and is not in FILE.")
@click.option("--yes", is_flag=True, help="With --prune: also if FILE holds nothing, and all goes that was applied.")
@click.option("--dry-run", is_flag=True, help="Show what would change; change nothing.")
@output_option
@reaching
def apply(reach: Reach, file: IO[bytes], output: str, *, prune: bool, yes: bool, dry_run: bool) -> None:
    """Bring desired state in line with a YAML FILE (`-`: standard input), as one transaction.

    \b
    networks:
      - {id: blue, segment: {id: 100}}
    ports:
      - {id: p1, network: blue, mac: "02:00:00:00:00:01", addresses: [10.0.0.1], host: h1}

    Lists: networks, subnets, security_groups, address_groups, hosts, ports. Applying twice changes nothing.
    """
    from headrace.cli.clash import refuse_clashes
    from headrace.errors import InvalidInput
    from headrace.model.document import read

    name = getattr(file, "name", "<stdin>")
    wanted = read(file.read(), name)
    if prune and not wanted and not (yes or dry_run):
        raise InvalidInput(f"{name} holds no object, so --prune would delete all that was applied; add --yes to do so")

    async def question(client: Client) -> tuple[list[Change], int | None]:
        have = await stored(client)
        changes = compare(wanted, have, prune=prune)
        refuse_clashes(wanted, have, {(c.record.type, c.record.id) for c in changes if c.kind == "deleted"})
        records = [change.record for change in changes if change.kind != "unchanged"]
        if dry_run or not records:
            return changes, None
        return changes, (await client.batch(records)).revision

    changes, revision = reach.ask(question)
    if output == "json":
        show_json(
            {
                "revision": revision,
                "changes": [
                    {"kind": c.kind, "type": c.record.type, "id": c.record.id, "fields": c.fields} for c in changes
                ],
            }
        )
    else:
        report(changes, revision, dry_run=dry_run)


class Change:
    """One object, and what applying does to it."""

    def __init__(self, kind: str, record: Record, fields: Iterable[str] = ()) -> None:
        self.kind = kind
        self.record = record
        self.fields = tuple(fields)


async def stored(client: Client) -> dict[tuple[str, str], Record]:
    """What the controller has."""
    from headrace.model import TYPES

    return {(name, record.id): record for name in TYPES for record in (await client.list(name)).items}


def compare(wanted: Iterable[Any], have: dict[tuple[str, str], Record], *, prune: bool) -> list[Change]:
    """What applying changes. Raises Conflict for what belongs to another writer."""
    from headrace.controller.desired import CLI, accept, encode
    from headrace.model import Record

    changes = []
    named = set()
    for item in wanted:
        key = (item.type, item.id)
        named.add(key)
        record = Record(type=item.type, id=item.id, writer=CLI, body=encode(item))
        before = have.get(key)
        if accept(before, record) is None:
            changes.append(Change("unchanged", record))
        elif before is None:
            changes.append(Change("new", record))
        else:
            old, new = before.body or {}, record.body or {}
            fields = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            changes.append(Change("changed", record, fields))
    for (type_name, id_), before in have.items():
        if prune and before.writer == CLI and (type_name, id_) not in named:
            changes.append(Change("deleted", Record(type=type_name, id=id_, writer=CLI)))
    return changes


def report(changes: list[Change], revision: int | None, *, dry_run: bool) -> None:
    """A line per change, and a summary."""
    counts = dict.fromkeys(SIGNS, 0)
    for change in changes:
        counts[change.kind] += 1
        if change.kind != "unchanged":
            fields = f": {', '.join(change.fields)}" if change.fields else ""
            label = f"{change.record.type.replace('_', ' ')} {change.record.id}"
            click.secho(f"{SIGNS[change.kind]} {label}{fields}", fg=STYLES[change.kind])
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    end = "; dry run, nothing was changed" if dry_run else f"; revision {revision}" if revision else ""
    click.echo(summary + end)
