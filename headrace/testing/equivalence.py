"""Minutes of scenarios that nobody saw before, through the real programs and the oracle: ``make test-equivalence``.

    python -m headrace.testing.equivalence --minutes 10

Each that fails is shortened and kept in tests/corpus; the exit status says whether there was any. Needs root.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from headrace.testing.host import PacketHost
from headrace.testing.play import Player, Seen
from headrace.testing.strategy import scenario_of

STEPS = 60
PATIENCE = 20
"""Scenarios that may fail before it is time to look at them."""


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long to go on.")
@click.option("--seed", type=int, help="The first scenario's; by chance if not given.")
@click.option("--count", type=int, help="So many scenarios, however long they take.")
@click.option("--corpus", type=click.Path(path_type=Path), default=Path("tests/corpus"), show_default=True)
def main(minutes: float, seed: int | None, count: int | None, corpus: Path) -> None:
    """Ask programs and oracle about random scenarios, and keep those that tell them apart."""
    first = random.SystemRandom().randrange(1 << 40) if seed is None else seed
    print(f"scenarios from seed {first} on", flush=True)
    seen, failed, played = Seen(), 0, 0
    with PacketHost() as here, PacketHost() as there:
        player = Player(here, there)
        for number in take(first, minutes, count):
            scenario, played = scenario_of(number, steps=STEPS, both=number % 3 == 0), played + 1
            try:
                seen += player.play(scenario)
            except AssertionError as error:
                failed += 1
                print(f"seed {number}: {player.keep(scenario, corpus / f'found-{number}.json', error)}\n", flush=True)
                if failed == PATIENCE:
                    break
    told = ", ".join(sorted({reason.name for reason, _, _ in seen}))
    print(f"{played} scenarios, {failed} told them apart; {seen.total()} packets, of reasons {told}")
    sys.exit(failed > 0)


def take(first: int, minutes: float, count: int | None) -> Iterator[int]:
    """Seeds from ``first`` on, so many or until time is up."""
    if count is not None:
        yield from range(first, first + count)
        return
    until = time.monotonic() + minutes * 60
    yield from itertools.takewhile(lambda _: time.monotonic() < until, itertools.count(first))


if __name__ == "__main__":
    main()
