"""First packet, replay in tc, replay in XDP and the oracle agree: whatever happens, in whatever order.

A scenario is a random state and what then happens to one host, or to two with a wire between them: packets, changes of
policy and topology, pauses, raised epochs, walks that are overtaken. In each step twin.py compares what leaves, why,
all counters and all that is remembered. Seconds of it here; minutes, with scenarios that nobody saw before:

    make test-equivalence MINUTES=10

A scenario that fails is shortened and kept in tests/corpus/; give it a name that says what it is about.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from headrace.testing.play import Player, Seen
from headrace.testing.strategy import Scenario, scenario_of, scenarios

CORPUS = Path(__file__).parents[1] / "corpus"
FEW = {False: 40, True: 20}
"""Seeds for one host and for both."""
BEGUN = time.strftime("%Y%m%d-%H%M%S")

DRAWN = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def played(player: Player, scenario: Scenario, name: str) -> Seen:
    """Play it; one that fails is kept and told."""
    try:
        return player.play(scenario)
    except AssertionError as error:
        raise AssertionError(player.keep(scenario, CORPUS / f"found-{BEGUN}-{name}.json", error)) from error


@DRAWN
@given(scenario=scenarios())
def test_programs_and_oracle_agree(player: Player, scenario: Scenario) -> None:
    played(player, scenario, "drawn")


@DRAWN
@given(scenario=scenarios(steps=10, both=True))
def test_two_hosts_agree(player: Player, scenario: Scenario) -> None:
    played(player, scenario, "drawn-both")


@pytest.mark.parametrize("both", [False, True], ids=["one host", "both hosts"])
def test_they_agree_in_long_scenarios(player: Player, both: bool) -> None:  # noqa: FBT001 - a parameter
    """The same ones on every machine; together they see most of what there is."""
    seen: Seen = Seen()
    for seed in range(FEW[both]):
        seen += played(player, scenario_of(seed, both=both), f"seed-{seed}")
    total = sum(seen.values())
    replays = {
        hook: sum(n for (_, by, replayed), n in seen.items() if by == hook and replayed) for hook in ("tc", "xdp")
    }
    assert min(replays.values()) > total // 60, f"too few replays to prove anything: {replays} of {total}"
    assert len({reason for reason, _, _ in seen}) >= (28 if not both else 25)
