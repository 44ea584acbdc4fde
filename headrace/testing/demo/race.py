"""Beside what people run today: the bench's load, shortly, over Headrace and over Linux on this machine.

The bench is in the repository and not in the package, so it is looked for, and imported, only here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import headrace
from headrace.testing.demo.narrator import table
from headrace.testing.demo.scene import Scene

if TYPE_CHECKING:
    from bench.traffic import Stand

CONTENDERS = {
    "linux": "Linux bridge + VXLAN + nftables",
    "headrace-tc": "Headrace, tc (every port)",
    "headrace-xdp": "Headrace, XDP (ports without offloads)",
}
RIVAL = "linux"
RULES, FLOWS = 100, 1024
ROUNDS, SECONDS = 3, 0.7
SPREAD = 0.8
"""Short runs on a shared machine differ by a fifth; less is not a difference."""


def race(scene: Scene) -> None:
    """Packet rate and throughput, in turns."""
    narrator = scene.narrator
    narrator.chapter(
        "Beside Linux bridge + VXLAN + nftables",
        f"Two fresh hosts for each; {RULES} firewall rules and connection tracking on both. 64-octet UDP packets in "
        f"{FLOWS} flows, and one TCP connection; {ROUNDS} rounds in turns, medians. `make bench` is the thorough one.",
    )
    if not importable():
        narrator.say("The bench is part of the repository; run the demo from a checkout to see this.")
        return
    from bench.process import CommandError, SetupError

    with contextlib.ExitStack() as stack:
        stands: dict[str, Stand] = {}
        for name, words in CONTENDERS.items():
            with narrator.waiting(f"{words} is set up"):
                try:
                    stands[name] = stand_up(stack, scene, name)
                except (CommandError, SetupError) as error:
                    narrator.claim(f"{words} is set up", held=False, seen=str(error))
        if RIVAL not in stands:
            return
        with narrator.waiting("the race"):
            rates, bulk = measure(stands)
    rows = [
        (CONTENDERS[name], f"{rates[name] / 1e6:.2f}", times(rates, name), f"{bulk[name] / 1e9:.1f}", times(bulk, name))
        for name in stands
    ]
    columns = ("", "M packets/s", "x Linux", "TCP Gbit/s", "x Linux ")
    narrator.show(table(columns, rows, right=columns[1:]))
    narrator.say(
        "XDP is for ports that send no super-packets anyway: VFs, DPDK guests. Hence its TCP here; tc is the default."
    )
    for name in ("headrace-tc", "headrace-xdp"):
        if name in stands:
            narrator.claim(f"{name}: more packets a second than Linux", rates[name] > rates[RIVAL], times(rates, name))
    if "headrace-tc" in stands:
        narrator.claim(
            "headrace-tc: TCP not behind Linux", bulk["headrace-tc"] > SPREAD * bulk[RIVAL], times(bulk, "headrace-tc")
        )


def importable() -> bool:
    """Whether the bench is beside the package; from now on it can be imported then."""
    checkout = Path(headrace.__file__).parents[1]
    if (checkout / "bench" / "harness.py").exists() and str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    return importlib.util.find_spec("bench") is not None


def stand_up(stack: contextlib.ExitStack, scene: Scene, name: str) -> Stand:
    """Two hosts of a contender, named after the demo so that they end with it."""
    from bench.contender import Registry
    from bench.rules import Site
    from bench.traffic import Stand, start_server
    from bench.wiring import Wiring

    with contextlib.ExitStack() as own:
        contender = Registry().make(name)
        wiring = own.enter_context(Wiring(prefix=f"{scene.cloud.topology.prefix}-{name[-3:]}"))
        own.callback(contender.teardown)
        contender.setup(wiring, Site(rules=RULES))
        server = start_server(wiring)
        own.callback(server.stop)
        stack.push(own.pop_all())
    return Stand(contender=contender, wiring=wiring, server=server)


def measure(stands: dict[str, Stand]) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of packets a second and bits a second."""
    from bench.traffic import blast, tcp_bulk

    def taken(how: Callable[[Stand], float]) -> dict[str, float]:
        values: dict[str, list[float]] = {name: [] for name in stands}
        for _ in range(ROUNDS):
            for name, stand in stands.items():
                values[name].append(how(stand))
        return {name: statistics.median(found) for name, found in values.items()}

    return taken(lambda stand: blast(stand, FLOWS, SECONDS).rate), taken(lambda stand: tcp_bulk(stand, SECONDS))


def times(values: dict[str, float], name: str) -> str:
    """How many times the rival's."""
    return f"{values[name] / values[RIVAL]:.1f} x"
