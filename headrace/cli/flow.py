"""``headrace flow``: what the datapath of this host forwards, read from its tables. Needs root, but no agent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.local import Local, on_this_host, port_index
from headrace.cli.output import age, output_option, show_list, show_one

if TYPE_CHECKING:
    from headrace import abi

FLOWS = ("connection", "direction", "key", "enters", "state", "packets", "octets", "idle", "decision", "goes_to")
CONNECTIONS = (
    *("id", "key", "enters", "state", "packets", "octets", "reply_packets", "reply_octets", "age", "idle"),
    *("goes_to", "allowed_by"),
)
PORTS = ("port", "connections", "quota", "half_open", "evicted", "refused", "walks", "over_budget")
STATES = ("new", "assured", "stateless", "syn_sent", "syn_received", "established", "closing", "time_wait", "closed")
LIMIT = 1000
TOP = 10


@click.group()
def flow() -> None:
    """The flow table of this host: list, show, top."""


@flow.command("list")
@click.option("--port", "wanted", help="Only those of a port (id, name or device).")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES, case_sensitive=False), help="Only those in it."
)
@click.option("--walked", is_flag=True, help="Only those whose next packet takes the walk, which says why.")
@click.option("-c", "--connection", "whole", is_flag=True, help="A row a connection instead of a row a direction.")
@click.option("--limit", type=click.IntRange(0), default=LIMIT, show_default=True, help="At most so many; 0: all.")
@output_option
@on_this_host
def list_(
    local: Local,
    output: str,
    wanted: str | None,
    states: tuple[str, ...],
    limit: int,
    *,
    walked: bool,
    whole: bool,
) -> None:
    """What is forwarded here, with counters, and whether packets replay a decision or take the walk, and why."""
    from headrace.cli.connection import Explainer, matching

    with local.open() as (reader, names):
        explainer = Explainer(reader, names)
        index = port_index(names, wanted) if wanted else None
        found: Iterator[abi.Conn] = matching(reader, index)
        told = (row for conn in found if (row := explainer.connection(conn)) and chosen(row, states, walked=walked))
        rows = told if whole else itertools.chain.from_iterable(map(directions, told))
        if walked and not whole:
            rows = (row for row in rows if not row["decided"])
        kept = list(itertools.islice(rows, limit or None))
        more = next(rows, None) is not None
    if output == "table":
        kept = [connection_row(row) if whole else flow_row(row) for row in kept]
    show_list(output, CONNECTIONS if whole else FLOWS, kept, "nothing is forwarded")
    if more:
        click.echo(f"only the first {limit}; --limit 0 shows all", err=True)


@flow.command()
@click.argument("key", nargs=-1, required=True)
@output_option
@on_this_host
def show(local: Local, output: str, key: tuple[str, ...]) -> None:
    """One connection by its id or one of its KEYs, with both directions.

    Of TCP also the sequence number after the last octet that each side sent (edge), and the highest that it
    acknowledged (ack): a reset that is not between the other's ack and its own edge is dropped (TCP_WINDOW).

    \b
    headrace flow show 5a001
    headrace flow show 'tcp 10.0.0.5:1234 > 10.0.0.9:80'
    """
    from headrace.cli.connection import Explainer, matching
    from headrace.errors import InvalidInput, NotFound

    text = " ".join(" ".join(key).split())
    with local.open() as (reader, names):
        explainer = Explainer(reader, names)
        told = map(explainer.connection, matching(reader, None))
        found = [row for row in told if text in {row["id"], row["original"]["key"], (row["reply"] or {}).get("key")}]
    if not found:
        raise NotFound(f"flow {text}: no connection here has that id or key; `headrace flow list` shows what has one")
    if len(found) > 1:
        choice = ", ".join(f"{row['id']} ({row['original']['enters']})" for row in found)
        raise InvalidInput(f"flow {text}: {len(found)} connections have that key; give an id of {choice}")
    show_one(output, found[0] if output == "json" else flat(found[0]))


@flow.command()
@click.option("-n", "number", type=click.IntRange(0), default=TOP, show_default=True, help="At most so many; 0: all.")
@click.option("--interval", type=click.FloatRange(0.01), default=1.0, show_default=True, help="Seconds to count walks.")
@output_option
@on_this_host
def top(local: Local, output: str, number: int, interval: float) -> None:
    """Which ports have most connections, and who walks most.

    QUOTA: how many it may have. HALF_OPEN: nobody has answered them yet. EVICTED: half-open or finished ones that gave
    way to newer ones. REFUSED: packets that found no room. WALKS: a second, just now. OVER_BUDGET: packets dropped
    because too many before them were denied, answered or flooded.
    """
    from headrace.cli.crowd import crowd

    with local.open() as (reader, names):
        rows = crowd(reader, names, interval)
    kept = rows[: number or None]
    if output == "table":
        kept = [row | {"quota": row["quota"] or "any"} for row in kept]
    show_list(output, PORTS, kept, "no ports are here")


def chosen(row: dict[str, Any], states: tuple[str, ...], *, walked: bool) -> bool:
    """Whether a connection is one of those asked for."""
    ways = [row[name] for name in ("original", "reply") if row[name]]
    return (not states or row["state"] in states) and (not walked or not all(way["decided"] for way in ways))


def directions(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A connection's directions, each with what belongs to the whole."""
    for name in ("original", "reply"):
        if row[name]:
            yield {"connection": row["id"], "direction": name, "state": row["state"], **row[name]}


def flow_row(row: dict[str, Any]) -> dict[str, Any]:
    """A direction as a row of a table."""
    return row | {"idle": seconds(row["idle"]), "decision": decision(row)}


def connection_row(row: dict[str, Any]) -> dict[str, Any]:
    """A connection as a row of a table."""
    original, reply = row["original"], row["reply"] or {"packets": None, "octets": None}
    rules = " and ".join(dict.fromkeys(rule["text"] for rule in original["allowed_by"].values()))
    return {
        **{name: row[name] for name in ("id", "state")},
        **{name: original[name] for name in ("key", "enters", "packets", "octets", "goes_to")},
        **{f"reply_{name}": reply[name] for name in ("packets", "octets")},
        **{name: seconds(row[name]) for name in ("age", "idle")},
        "allowed_by": rules,
    }


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A connection as lines of a table."""
    lines = {name: value for name, value in row.items() if name not in {"original", "reply"}}
    lines |= {name: seconds(row[name]) for name in ("age", "idle", "expires_in")}
    for name in ("original", "reply"):
        if not row[name]:
            lines[name] = "nothing answers it"
            continue
        way = dict(row[name])
        lines[name] = way.pop("key")
        way["decision"] = decision(way)
        way["idle"] = seconds(way["idle"])
        way["tcp"] = tcp_numbers(way["tcp"])
        for side, rule in way.pop("allowed_by").items():
            way[f"allowed on the {side} side by"] = rule["text"]
        lines |= {f"  {name} {field}": value for field, value in way.items() if field not in {"decided", "why"}}
    return lines


def decision(way: dict[str, Any]) -> str:
    """Whether packets replay, in words."""
    return f"replayed ({way['hook']})" if way["decided"] else f"walked: {way['why']}"


def tcp_numbers(side: dict[str, int | None] | None) -> str | None:
    """What is known of a side of a TCP connection, in words."""
    if side is None:
        return None
    return ", ".join(f"{name} {'unknown' if number is None else number}" for name, number in side.items())


def seconds(value: float | None) -> str | None:
    """A duration for a table."""
    return None if value is None else age(value)
