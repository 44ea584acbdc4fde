"""The wall clock jumps, for the agents and the controller only (libfaketime); nobody who forwards looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing.cloud import Cloud
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import IMPATIENCE, Stream, opens
from headrace.testing.wait import wait_until
from headrace.testing.world import OUT, rule

pytestmark = pytest.mark.needs("program:faketime")

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), Path())
WEB = rule("web", "ingress", 6, 80, 81)


class Clock:
    """What agents and controller take for the time; the monotonic clock stays the kernel's."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.shift("+0")

    def shift(self, by: str) -> None:
        """Say how far it is off."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{by}\n")
        fresh.rename(self.file)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture(scope="module")
def clocks(cloud: Cloud) -> tuple[Clock, Clock]:
    """The controller's and the agents', who were started anew under them."""
    controller, agents = (Clock(cloud.topology.directory / f"clock-{name}") for name in ("controller", "agents"))
    cloud.kill_controller()
    cloud.start_controller(env=controller.environment)
    for host in cloud.hosts.values():
        host.stop()
        host.start(env=agents.environment)
    cloud.settle()
    return controller, agents


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Topology() as topology, Cloud(topology, secure=True) as made:
        yield made


def logs(cloud: Cloud) -> str:
    return "".join(host.agent.output() for host in cloud.hosts.values() if host.agent)


def test_clocks_that_jump(cloud: Cloud, clocks: tuple[Clock, Clock]) -> None:
    """Forward, back, and beyond the certificates' end: changes arrive, or traffic goes on until they do again."""
    controller, agents = clocks
    with Scene(cloud) as scene:
        a, b = scene.pair(*OUT, WEB)
        with Stream(a, b, b.address(), 80, pause=0.002) as stream:
            for number, (clock, jump) in enumerate(((controller, "+30d"), (agents, "+60d"), (agents, "-30d")), 90):
                clock.shift(jump)
                scene.write(scene.group("g", *OUT, WEB, rule("more", "ingress", 6, number)))
                arrived(scene, number)
                stream.advance()
            agents.shift("+7300d")
            cloud.kill_controller()
            cloud.start_controller()
            wait_until(lambda: "certificate has expired" in logs(cloud), 60, "nobody believes the controller")
            stream.advance()
            assert opens(a, b, b.address(), 81)
            agents.shift("+0")
            scene.put(scene.group("g", *OUT, WEB, rule("more", "ingress", 6, 99)))
            assert opens(a, b, b.address(), 99)
            stream.advance()


def arrived(scene: Scene, number: int) -> None:
    """Wait until a TCP port is open."""
    a, b = scene["a"], scene["b"]
    wait_until(lambda: opens(a, b, b.address(), number, timeout=IMPATIENCE), 60, f"port {number} is open")
