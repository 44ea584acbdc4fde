"""The command line of the bench."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from bench.build import PROGRAMS, program
from bench.contender import Registry
from bench.dimension import DIMENSIONS, Dimension, quick_dimensions
from bench.harness import Bench, Plan
from bench.process import CommandError, SetupError
from bench.report import print_tables, write
from bench.wire import WIRE_DIMENSIONS, quick_wire_dimensions

RESULTS = Path(__file__).parent / "results"
ROUNDS, ROUNDS_QUICK = 7, 3
SECONDS = 1.0
MINUTES = 40.0

ALL = (*DIMENSIONS, *WIRE_DIMENSIONS)
QUICK = (*quick_dimensions(), *quick_wire_dimensions())
NAMES = tuple(dict.fromkeys(name for each in ALL for name in (each.group, each.name) if name))


@click.command(context_settings={"max_content_width": 120})
@click.option("--quick", is_flag=True, help=f"The headline rows: {ROUNDS_QUICK} rounds, under two minutes.")
@click.option(
    "--only", multiple=True, type=click.Choice(NAMES), help="Just this one, or this group; all but the wires'."
)
@click.option("--contenders", default="", help="Just these, with commas: " + ",".join(Registry.PLACES))
@click.option("--rounds", type=click.IntRange(1), help=f"Interleaved rounds; {ROUNDS} or, quick, {ROUNDS_QUICK}.")
@click.option("--seconds", type=click.FloatRange(0.1), default=SECONDS, show_default=True, help="Of a measurement.")
@click.option("--minutes", type=float, default=MINUTES, show_default=True, help="Begin no measurement after these.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Where the JSON files go.")
def main(
    *, quick: bool, only: tuple[str, ...], contenders: str, rounds: int | None, seconds: float, minutes: float,
    results: Path,
) -> None:  # fmt: skip
    """Measure Headrace beside what people run today; one table per dimension."""
    if os.geteuid():
        raise click.ClickException("network namespaces and BPF need root: sudo make bench")
    chosen = frozenset(filter(None, contenders.split(",")))
    unknown = chosen - Registry.PLACES.keys()
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(Registry.PLACES)}")
    dimensions = chosen_dimensions(frozenset(only), quick=quick)
    if not dimensions:
        raise click.BadParameter(f"--quick has only {', '.join(each.name for each in QUICK)}")
    plan = Plan(
        dimensions=dimensions,
        contenders=chosen or None,
        rounds=rounds or (ROUNDS_QUICK if quick else ROUNDS),
        seconds=seconds,
        minutes=minutes,
    )
    began = time.time()
    try:
        for name in PROGRAMS:
            program(name)
    except CommandError as error:
        raise click.ClickException(f"the load programs do not compile: {error}") from error
    say(f"about {plan.estimate() / 60:.0f} minutes on an idle machine")
    bench = Bench(plan, say)
    try:
        bench.run()
    except KeyboardInterrupt:
        say("interrupted; everything is taken down")
        sys.exit(130)
    except SetupError as error:
        raise click.ClickException(str(error)) from error
    finally:
        if bench.outcome.rows:
            write(results, bench.outcome, plan, began)
            print_tables(bench.outcome, dimensions, plan)


def chosen_dimensions(only: frozenset[str], *, quick: bool) -> tuple[Dimension, ...]:
    """Those of a name or a group asked for; without one, those of no group."""
    return tuple(
        each for each in (QUICK if quick else ALL) if (only & {each.name, each.group} if only else not each.group)
    )


def say(text: str) -> None:
    """Progress goes to stderr; stdout is for the tables."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
