"""``headrace drop``: dropped packets as they are dropped. Needs root, but no agent."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.local import Local, on_this_host, port_index
from headrace.cli.output import output_option

if TYPE_CHECKING:
    from headrace.datapath.sampling import Watch

MISSED = "{} more drops not shown: over --rate {}, or faster than this terminal takes them"


@click.group()
def drop() -> None:
    """Dropped packets of this host: watch."""


@drop.command()
@click.option("--port", "wanted", help="Only from or to a port (id, name, device); `uplink` for what came by it.")
@click.option("--reason", "names", multiple=True, help="Only for this reason; may be given several times.")
@click.option(
    "--rate", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Samples a second at most."
)
@click.option("--count", type=click.IntRange(1), help="End after so many.")
@output_option
@on_this_host
def watch(local: Local, output: str, wanted: str | None, names: tuple[str, ...], rate: int, count: int | None) -> None:
    """Print dropped packets until interrupted: when, why, whose, where they came in, and their headers.

    A sample of them: more than --rate a second are counted and not shown; `headrace reason list` has every one.
    At most four may watch at once, and while nobody does it costs nothing. JSON is one object a line, with the
    frame's first 128 octets.
    """
    from headrace.cli.drop_line import Teller
    from headrace.cli.reason import find
    from headrace.datapath.sampling import Watch

    reasons = [find(name) for name in names]
    with local.open() as (reader, known):
        index = None if wanted is None else 0 if wanted == "uplink" else port_index(known, wanted)
        teller = Teller(known)
        shown = 0

        def receive(sample: Any) -> None:
            nonlocal shown
            if count is None or shown < count:
                show(output, teller.row(sample))
            shown += 1

        with Watch(reader, receive, port=index, reasons=reasons, rate=rate) as watching:
            try:
                follow(watching, rate, until=lambda: count is not None and shown >= count)
            except KeyboardInterrupt:
                pass
            except BrokenPipeError:  # `headrace drop watch | head`
                sys.stderr.close()


def follow(watching: Watch, rate: int, until: Any) -> None:
    """Take samples, renew, and say what was missed."""
    from headrace.datapath.sampling import RENEWAL
    from headrace.errors import Unavailable

    due = time.monotonic() + RENEWAL
    while not until():
        watching.ring.poll(max(0.0, due - time.monotonic()))
        if time.monotonic() < due:
            continue
        due = time.monotonic() + RENEWAL
        if not watching.renew():
            raise Unavailable("this watcher was stopped for seconds, and another has its place now; start it again")
        if missed := watching.missed():
            click.echo(MISSED.format(missed, rate), err=True)


def show(output: str, row: Mapping[str, Any]) -> None:
    """One line, at once."""
    import msgspec

    if output == "json":
        click.echo(msgspec.json.encode(row).decode())
    else:
        moment = str(row["time"]).partition("T")[2].removesuffix("+00:00")
        click.echo(
            f"{moment}  {row['reason']:<16} from {row['entered']}{' to ' + row['to'] if row['to'] else ''}: "
            f"{row['packet']}, {row['length']} octets"
        )
    sys.stdout.flush()
