"""The worker's life: lead or wait, push and listen, outlive the controller and the database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, NoReturn

from oslo_config import cfg
from oslo_db.exception import DBError

from headrace.controller.client import Client
from headrace.errors import HeadraceError, Unavailable
from headrace.neutron import config, follower, ledger
from headrace.neutron.feedback import Feedback
from headrace.neutron.push import EpochChanged, Pusher

LOG = logging.getLogger(__name__)

RETRY = 1.0
"""Seconds before a controller or database that did not answer is asked again."""


class LeaseLost(Exception):
    """Another worker leads now, or may soon."""


class Sync:
    """One worker. ``holder`` names it in the leader's table."""

    def __init__(self, holder: str) -> None:
        config.register(cfg.CONF)
        self.holder = holder
        self.options = cfg.CONF[config.GROUP]
        self.tls = config.tls(cfg.CONF)

    async def run(self) -> NoReturn:
        """Lead whenever the lease can be had, until cancelled."""
        try:
            while True:
                if await self._lead():
                    LOG.info("worker %s leads; the controller is %s", self.holder, self.options.controller)
                    try:
                        async with asyncio.TaskGroup() as tasks:
                            tasks.create_task(self._renew())
                            tasks.create_task(self._work())
                    except* LeaseLost:
                        LOG.warning("worker %s lost its lease", self.holder)
                await asyncio.sleep(min(RETRY, self.options.lease / 4))
        finally:
            await asyncio.to_thread(ledger.resign, self.holder)

    async def _lead(self) -> bool:
        try:
            return await asyncio.to_thread(ledger.lead, self.holder, self.options.lease) is not None
        except DBError as error:
            LOG.warning("the database did not answer: %s", error)
            return False

    async def _renew(self) -> NoReturn:
        """Keep the lease; give up while it still holds, so that two never lead."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(self.options.lease / 4)
            if await self._lead():
                renewed = time.monotonic()
            elif time.monotonic() - renewed > self.options.lease / 2:
                raise LeaseLost

    async def _work(self) -> NoReturn:
        """Serve a connection after another."""
        silent = False
        while True:
            # Reported outside of the handlers: oslo.log would add the group's own words to each line.
            error = await self._serve()
            if not (silent and isinstance(error, HeadraceError)):
                LOG.warning("not in touch with controller %s, trying on: %s", self.options.controller, error)
            silent = isinstance(error, HeadraceError)
            await asyncio.sleep(RETRY)

    async def _serve(self) -> BaseException:
        """One connection, until it fails; returns how."""
        failure: BaseException | None = None
        try:
            async with Client(self.options.controller, tls=self.tls) as client:
                await Session(client, self.options).run()
        except* (HeadraceError, EpochChanged, DBError) as group:
            failure = first(group)
        if failure is None:
            raise AssertionError("a session has no end of its own")
        return failure


class Session:
    """One leader with one controller, until either fails."""

    def __init__(self, client: Client, options: Any) -> None:
        self.client = client
        self.options = options
        self.feedback = Feedback(self._clock)
        self._skew = 0.0
        self.pusher = Pusher(client)
        self._judging = asyncio.Lock()
        self._moved = asyncio.Event()

    async def run(self) -> NoReturn:
        """Push and listen."""
        self._skew = (await self.client.health()).time - time.time()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._push())
            tasks.create_task(self._follow())
            tasks.create_task(self._listen())
        raise AssertionError("these tasks are endless")

    def _clock(self) -> float:
        """The controller's clock, by which hosts' words are stamped."""
        return time.time() + self._skew

    async def _push(self) -> NoReturn:
        await self.pusher.begin()
        await self._judge(set(self.feedback.statuses))
        await self._tell_refusals()
        due = time.monotonic() + self.options.ledger_interval
        while True:
            hosts = await self.pusher.marked()
            if self.pusher.trunks:
                self._moved.set()
            if hosts is not None:
                await self._judge(hosts)
                await self._tell_refusals()
            if time.monotonic() >= due:
                await self.pusher.compare()
                await self._judge(set(self.feedback.statuses))
                await self._tell_refusals()
                due = time.monotonic() + self.options.ledger_interval
            if hosts is None:
                await asyncio.sleep(self.options.poll_interval)

    async def _follow(self) -> NoReturn:
        """Have sub-ports follow their parents: all of them at first and now and then, and at once where one is marked.

        Beside the pushing, for binding takes Neutron half a second a port.
        """
        due = 0.0
        while True:
            if time.monotonic() >= due:
                await self._settle(None)
                due = time.monotonic() + self.options.ledger_interval
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due - time.monotonic()):
                    await self._moved.wait()
            self._moved.clear()
            ports, self.pusher.trunks = self.pusher.trunks, set()
            if ports:
                await self._settle(ports)

    async def _settle(self, ports: set[str] | None) -> None:
        async with self._judging:
            changes = await asyncio.to_thread(follower.look, ports)
        for change in changes:
            await asyncio.to_thread(follower.apply, change)

    async def _listen(self) -> NoReturn:
        async with contextlib.aclosing(self.client.watch_status()) as events:
            async for event in events:
                if event.status is not None:
                    async with self._judging:
                        await asyncio.to_thread(self.feedback.hear, [event.status], self.pusher.epoch)
        raise Unavailable("the controller ended the watch of statuses")

    async def _judge(self, hosts: set[str]) -> None:
        async with self._judging:
            await asyncio.to_thread(self.feedback.judge, hosts, self.pusher.epoch)

    async def _tell_refusals(self) -> None:
        """Have the controller show why ports are not bound."""
        status = await asyncio.to_thread(self.feedback.refusals)
        if status is not None:
            await self.client.put_status(status)


def first(group: BaseExceptionGroup) -> BaseException:
    """The first error in a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
