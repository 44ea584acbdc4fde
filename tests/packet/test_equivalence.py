"""First packet, replay in tc, replay in XDP and the oracle agree: whatever happens, in whatever order.

A scenario is a random state and what then happens to one host: packets, changes of policy and topology, pauses. In each
step twin.py compares what leaves, why, all counters and all that is remembered. Minutes of it on demand:

    make test-packet ARGS='-k equivalence --hypothesis-profile=long'

A scenario that fails is kept in build/equivalence/; copy it to tests/corpus/ with a name that says what it is about.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from headrace.abi import Reason
from headrace.testing.host import PacketHost
from headrace.testing.strategy import Scenario, encode, scenario_of, scenarios, tell
from headrace.testing.twin import play

KEPT = Path(__file__).parents[2] / "build" / "equivalence"
SEEDS = range(40)


def played(host: PacketHost, scenario: Scenario, name: str) -> Counter[tuple[Reason, str, bool]]:
    """Play it; one that fails is kept and told."""
    try:
        return Counter(play(host, scenario).seen)
    except AssertionError as error:
        KEPT.mkdir(parents=True, exist_ok=True)
        (KEPT / f"{name}.json").write_bytes(encode(scenario))
        raise AssertionError(f"{error}\n{tell(scenario)}\nkept as build/equivalence/{name}.json") from error


@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(scenario=scenarios())
def test_programs_and_oracle_agree(host: PacketHost, scenario: Scenario) -> None:
    played(host, scenario, "drawn")


def test_they_agree_in_long_scenarios(host: PacketHost) -> None:
    """The same ones on every machine; together they see most of what there is."""
    seen: Counter[tuple[Reason, str, bool]] = Counter()
    for seed in SEEDS:
        seen += played(host, scenario_of(seed), f"seed-{seed}")
        if seed % 4 == 0:
            assert host.unlike() == [], f"seed {seed}: after all its changes the tables are not as if made at once"
    total = sum(seen.values())
    replays = {
        hook: sum(n for (_, by, replayed), n in seen.items() if by == hook and replayed) for hook in ("tc", "xdp")
    }
    assert min(replays.values()) > total // 50, f"too few replays to prove anything: {replays} of {total}"
    assert len({reason for reason, _, _ in seen}) >= 28
