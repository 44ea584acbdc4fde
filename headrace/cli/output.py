"""How answers look: a table for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

COLOURS = {
    **dict.fromkeys(("up", "alive", "ok"), "green"),
    **dict.fromkeys(("down", "unknown", "warn", "drained"), "yellow"),
    **dict.fromkeys(("silent", "error", "fail"), "red"),
}
"""States whose meaning a glance should tell."""


def output_option(function: Function) -> Function:
    """``-o table|json``, as the argument ``output``."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Form of output.",
    )(function)


def show_json(content: object) -> None:
    """JSON, indented."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())


def show_list(output: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], empty: str) -> None:
    """Rows as a table of some columns, or whole as JSON. ``empty``: what to say when there is none."""
    rows = list(rows)
    if output == "json":
        show_json(rows)
        return
    if not rows:
        click.echo(empty, err=True)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(column)) for column in columns))
    write(table)


def show_one(output: str, content: Mapping[str, Any]) -> None:
    """One object: a line per field, or JSON."""
    if output == "json":
        show_json(content)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in content.items():
        table.add_row(name, cell(value))
    write(table)


def write(table: Any) -> None:
    """To the terminal, in its width; into a pipe unshortened and plain."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def cell(value: Any) -> Any:
    """A value as text in a table."""
    from rich.text import Text

    if value is None:
        return "-"
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int)) for item in value):
        return ", ".join(map(str, value))
    if isinstance(value, (dict, list, tuple)):
        import msgspec

        return Text(msgspec.json.encode(value).decode())
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return Text(text, style=COLOURS.get(text, ""))


def age(seconds: float) -> str:
    """A duration as people say it: ``4s``, ``3min``, ``2h``, ``5d``."""
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
