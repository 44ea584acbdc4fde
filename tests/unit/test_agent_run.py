"""The agent's loop: who is answered while devices still wait for their programs."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self, cast

import pytest

from headrace.agent import run as agent_run
from headrace.agent.config import AgentConfig
from headrace.agent.desired import Desired
from headrace.agent.readiness import certificate
from headrace.agent.run import Agent, serve
from headrace.controller.api import Event
from headrace.controller.identity import DAYS, Authority
from headrace.errors import NotSupported, Unavailable
from headrace.model import HostStatus, State


class Slow:
    """A reconciler that needs three passes, and the punts that are told of its clients."""

    def __init__(self) -> None:
        self.passes = 0
        self.clients: dict[int, int] = {}
        self.served: list[tuple[int, dict[int, int]]] = []

    @property
    def unfinished(self) -> bool:
        return self.passes < 3

    def status(self) -> HostStatus:
        return HostStatus(id="h1")

    def reconcile(self, _: Desired) -> HostStatus:
        self.passes += 1
        self.clients = {1: self.passes}
        return self.status()

    def serve(self, clients: dict[int, int]) -> None:
        self.served.append((self.passes, clients))


def test_ports_are_answered_from_the_first_pass_on() -> None:
    async def run() -> tuple[Slow, bool]:
        slow = Slow()
        fake = cast("Any", slow)
        agent = Agent(AgentConfig(host="h1", state="s"), fake, fake, cast("Any", None))
        agent._desired = Desired(state=State.of(()))
        agent._changed.set()
        task = asyncio.create_task(agent._reconcile())
        reported = await asyncio.wait_for(agent._report.wait(), 10)
        task.cancel()
        return slow, reported

    slow, _ = asyncio.run(run())
    assert slow.served == [(1, {1: 1}), (2, {1: 2}), (3, {1: 3})]


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (None, "host.crt is missing; `headrace controller init` makes"),
        ("h2", "is of host h2, and the configuration has host = 'h1'; correct"),
    ],
)
def test_what_only_an_operator_can_mend_is_said_once(tmp_path: Path, owner: str | None, words: str) -> None:
    authority = Authority.create(tmp_path)
    if owner:
        authority.issue(tmp_path, "host", "host", owner)
    config = tmp_path / "agent.toml"
    config.write_text(f'host = "h1"\ncontroller = "https://127.0.0.1:1"\ncertificates = "{tmp_path}"\n')
    command = [sys.executable, "-m", "headrace", "agent", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78, "which systemd is told not to try again"
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_kernel_that_cannot_is_told_by_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old(*_: object) -> None:
        raise NotSupported("this kernel is too old")

    monkeypatch.setattr(agent_run, "Datapath", too_old)
    with pytest.raises(NotSupported, match="too old"):
        asyncio.run(serve(AgentConfig(host="h1", state="state.yaml", bpf=str(tmp_path))))


def test_a_certificate_is_judged_before_it_ends(tmp_path: Path) -> None:
    config = AgentConfig(host="h1", controller="https://127.0.0.1:1", certificates=str(tmp_path))
    now = dt.datetime.now(dt.UTC)
    authority = Authority.create(tmp_path)
    missing = certificate(config, now)
    assert missing.state == "fail"
    assert "`headrace host enroll` a host's" in missing.cure
    authority.issue(tmp_path, "host", "host", "h1")
    found = {days: certificate(config, now + dt.timedelta(days=days)) for days in (0, DAYS - 10, DAYS + 1)}
    assert [finding.state for finding in found.values()] == ["ok", "warn", "fail"]
    assert [finding.cure.partition(",")[0] for finding in found.values()] == [
        "",
        "headrace host enroll --renew",
        "headrace host enroll h1",
    ]


def test_it_ends_although_the_controller_goes_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Going:
        """A controller whose connection breaks just when the agent is told to stop."""

        def __init__(self, *_: object, **__: object) -> None:
            pass

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def put_status(self, _: HostStatus) -> None:
            pass

        async def watch(self, *_: object, **__: object) -> AsyncIterator[Event]:
            reached.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise Unavailable("it ended the watch") from None
            yield Event(kind="sync")

    class Idle(Slow):
        repairs = 0

        async def run(self) -> None:
            await asyncio.Event().wait()

    async def run() -> None:
        idle = cast("Any", Idle())
        config = AgentConfig(host="h1", controller="http://c", cache=str(tmp_path), run=str(tmp_path), verify=0)
        stop = asyncio.Event()
        task = asyncio.create_task(Agent(config, idle, idle, idle).run(stop))
        await asyncio.wait_for(reached.wait(), 10)
        stop.set()
        await asyncio.wait_for(task, 10)

    reached = asyncio.Event()
    monkeypatch.setattr(agent_run, "Client", Going)
    asyncio.run(run())
