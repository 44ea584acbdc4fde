"""The agent's loop: who is answered while devices still wait for their programs."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from headrace.agent.config import AgentConfig
from headrace.agent.desired import Desired
from headrace.agent.run import Agent
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
