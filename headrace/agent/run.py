"""The agent's process: one task group; whatever dies ends it, and the datapath forwards on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from headrace.agent import guard
from headrace.agent.config import AgentConfig
from headrace.agent.control import Answer, Request, listening
from headrace.agent.desired import Desired, Mirror, covers, restore, save
from headrace.agent.drained import is_drained, mark_drained
from headrace.agent.punt import Punts
from headrace.agent.readiness import own_identity, uplinks
from headrace.agent.reconcile import Reconciler
from headrace.agent.verify import Drift, say
from headrace.controller.client import Client
from headrace.controller.identity import Files
from headrace.datapath.bpf import Datapath, Sizes, lock
from headrace.datapath.netlink import Event, Netlink
from headrace.errors import DatapathError, HeadraceError, InvalidInput, StoreFull, Unavailable
from headrace.model import HostStatus, State, document

log = logging.getLogger(__name__)

SETTLE = 0.005
"""Seconds in which changes that belong together arrive."""

HEARTBEAT = 5.0
"""Seconds between reports when nothing changes."""

POLL = 0.5
"""Seconds between looks at a state file."""

DOUBT = 30.0
"""Seconds of silence after which a controller with another database is believed that ports of this host are gone."""

GARBAGE = (50_000, 20, 100)
"""What was compiled lives long and has no cycles: looking for some at Python's usual pace takes half of the time."""

RETRY = (0.2, 5.0)
"""First and longest pause, seconds, between attempts to reach the controller."""


AGEING = 30.0
"""Seconds between looks at what was learnt on the wires of physical networks."""

KEEP_AGAIN = 2.0
"""Seconds after which desired state is kept again where the disk was full."""

VERIFY_SHARE = 100
"""A look for drift may take one part in so many of the agent's time; where it takes long, it is made less often."""


class Agent:
    """Desired state and devices in, a reconciled datapath and a status out."""

    def __init__(self, config: AgentConfig, reconciler: Reconciler, punts: Punts, drift: Drift) -> None:
        self._config = config
        self._reconciler = reconciler
        self._punts = punts
        self._drift = drift
        self._busy = asyncio.Lock()
        self._unheard = False
        self._ending = False
        self._drained = is_drained(Path(config.cache))
        self._desired: Desired | None = None
        self._status: HostStatus = reconciler.status()
        self._applied: State | None = None
        self._changed = asyncio.Event()
        self._report = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop, or something breaks."""
        source = self._with_controller if self._config.controller else self._with_file
        async with (
            Netlink.watch() as watch,
            listening(Path(self._config.run), self._answer),
            asyncio.TaskGroup() as group,
        ):
            works = (
                *(self._reconcile(), self._watch_devices(watch), self._punts.run()),
                *(self._verify(), self._age(), source()),
            )
            tasks = [group.create_task(work) for work in works]
            try:
                await stop.wait()
            finally:
                self._ending = True
            for task in tasks:
                task.cancel()

    async def _reconcile(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(SETTLE)
            self._changed.clear()
            if self._desired is None:
                continue
            desired = self._desired
            try:
                async with self._busy:
                    status = await asyncio.to_thread(self._reconciler.reconcile, desired)
            except DatapathError as error:  # the tables are as they were, and nothing is acknowledged
                log.error("revision=%d cannot be applied: %s", desired.revision, error)  # noqa: TRY400 - it says all
                self._loop.call_later(RETRY[1], self._changed.set)
                continue
            self._punts.serve(self._reconciler.clients)  # a device that waits for its turn runs programs that ask
            if self._reconciler.unfinished:
                self._changed.set()
                continue
            self._applied, self._status = desired.state, status
            self._report.set()
            if self._config.controller:
                await asyncio.to_thread(self._keep, desired)

    async def _verify(self) -> None:
        pause = float(self._config.verify)
        while pause:
            await asyncio.sleep(pause)
            began = self._loop.time()
            try:
                await self._look(repair=True)
            except HeadraceError as error:
                log.error("drift: cannot look or repair: %s", error)  # noqa: TRY400 - the message says all
            pause = max(float(self._config.verify), VERIFY_SHARE * (self._loop.time() - began))

    async def _age(self) -> None:
        while True:
            await asyncio.sleep(AGEING)
            try:
                async with self._busy:
                    aged = await asyncio.to_thread(self._reconciler.age)
            except HeadraceError as error:
                log.error("what was learnt cannot be aged: %s", error)  # noqa: TRY400 - the message says all
                continue
            if aged:
                log.debug("learnt macs aged=%d", aged)

    async def _look(self, *, repair: bool) -> Answer:
        """Look for drift, and mend it."""
        if self._applied is None or self._desired is None:
            return Answer(error="the agent has no desired state yet")
        async with self._busy:
            desired = self._desired
            found = await asyncio.to_thread(self._drift.look)
            left = found
            if found:
                say(found)
            if found and repair:
                await asyncio.to_thread(self._drift.mend, found)
                status = await asyncio.to_thread(self._reconciler.reconcile, desired)
                while self._reconciler.unfinished:
                    status = await asyncio.to_thread(self._reconciler.reconcile, desired)
                self._status = status
                self._report.set()
                left = await asyncio.to_thread(self._drift.look)
                log.warning("drift: repaired=%d left=%d", len(found) - len(left), len(left))
        return Answer(differences=tuple(found), left=tuple(left), drained=self._drained)

    async def _answer(self, request: Request) -> Answer:
        """What a command on this host asks."""
        if request.drain is not None:
            await asyncio.to_thread(mark_drained, Path(self._config.cache), drained=request.drain)
            if self._drained != request.drain:
                log.info("host is %s", "drained: it takes no new ports" if request.drain else "no longer drained")
            self._drained = request.drain
            self._report.set()
        if request.verify:
            return await self._look(repair=request.repair)
        return Answer(drained=self._drained)

    def _keep(self, desired: Desired) -> None:
        try:
            save(self._cache, desired)
        except OSError as error:
            log.warning(
                "desired state cannot be kept (%s): a start without the controller will find an older one", error
            )
            self._loop.call_soon_threadsafe(self._loop.call_later, KEEP_AGAIN, self._changed.set)

    @property
    def _cache(self) -> Path:
        return Path(self._config.cache) / "desired.json"

    async def _watch_devices(self, watch: AsyncIterator[Event]) -> None:
        async for event in watch:
            log.debug("netlink kind=%s gone=%s", event.kind, event.gone)
            self._reconciler.notice(event)
            self._changed.set()

    async def _with_file(self) -> None:
        seen: tuple[int, int] | None = None
        while True:
            seen = await asyncio.to_thread(self._read_file, Path(self._config.state), seen)
            await asyncio.sleep(POLL)

    def _read_file(self, path: Path, seen: tuple[int, int] | None) -> tuple[int, int] | None:
        try:
            facts = path.stat()
            if seen == (facts.st_mtime_ns, facts.st_size):
                return seen
            self._desired = Desired(state=State.of(document.read(path.read_bytes(), str(path))))
        except (OSError, InvalidInput) as error:
            log.error("state file: %s; the last good one stays", error)  # noqa: TRY400 - the message says all
            return seen
        self._loop.call_soon_threadsafe(self._changed.set)
        return facts.st_mtime_ns, facts.st_size

    async def _with_controller(self) -> None:
        self._desired = restore(self._cache)
        if self._desired:
            log.info("starting from desired state kept at revision=%d", self._desired.revision)
            self._changed.set()
        pause = RETRY[0]
        files = Files.at(Path(self._config.certificates), "host")
        while not self._ending:  # a TaskGroup of Python 3.11 forgets that it is cancelled where a task of it fails too
            try:
                async with Client(self._config.controller, tls=files) as client:
                    await self._tell(client)
                    log.info("controller=%s reached", self._config.controller)
                    pause = RETRY[0]
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._follow(client))
                        group.create_task(self._say(client))
            except* Unavailable as errors:
                log.warning("%s; forwarding on with what is known", errors.exceptions[0])
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY[1])

    async def _follow(self, client: Client) -> None:
        mirror = Mirror()
        doubt: asyncio.TimerHandle | None = None
        try:
            async for desired in mirror.follow(client, self._config.host):
                if doubt:
                    doubt.cancel()
                if self._desired is None or covers(desired, self._desired, self._config.host):
                    self._believe(desired)
                else:
                    log.warning(
                        "controller epoch=%s is new and lacks what this host carries; it is believed if it says no more"
                        " for %d s",
                        desired.epoch,
                        DOUBT,
                    )
                    doubt = self._loop.call_later(DOUBT, self._believe, desired)
        finally:
            if doubt:
                doubt.cancel()

    def _believe(self, desired: Desired) -> None:
        news = self._desired is None or desired.state is not self._desired.state
        self._desired = desired
        (self._changed if news else self._report).set()

    def _word(self) -> HostStatus:
        """The last status; a revision that brought nothing for this host counts as applied."""
        desired = self._desired
        said = msgspec.structs.replace(self._status, drained=self._drained, repairs=self._drift.repairs)
        if desired is None or desired.state is not self._applied:
            return said
        return msgspec.structs.replace(said, epoch=desired.epoch, applied=desired.revision)

    async def _tell(self, client: Client) -> None:
        """Report; a controller that cannot write has desired state to tell nevertheless."""
        try:
            await client.put_status(self._word())
            self._unheard = False
        except StoreFull as error:
            if not self._unheard:
                log.warning("%s; this host's word is not kept meanwhile", error)
            self._unheard = True

    async def _say(self, client: Client) -> None:
        while True:
            self._report.clear()
            await self._tell(client)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    HEARTBEAT
                ):  # wait_for of Python 3.11 may swallow the cancellation at the end
                    await self._report.wait()


async def serve(config: AgentConfig) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises a HeadraceError if it cannot start."""
    if bool(config.controller) == bool(config.state):
        raise InvalidInput("agent: give controller (a URL) or state (a YAML file), one of them")
    own_identity(config)
    gc.set_threshold(*GARBAGE)
    root = Path(config.bpf)
    held = lock(root)
    stop = asyncio.Event()
    failure: BaseException | None = None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        with Netlink() as netlink, Datapath(root, Sizes(connections=config.connections)) as datapath:
            guard.install(config.guard)
            reconciler = Reconciler(config, datapath, netlink)
            reconciler.underlay.prepare()
            log.info("host=%s vteps=%s", config.host, ",".join(reconciler.status().vteps) or "none")
            for finding in uplinks(config, netlink):
                if finding.state != "ok":
                    log.warning("%s: %s; %s", finding.check, finding.found, finding.cure)
            with Punts(datapath.maps["hr_punts"]) as punts:
                drift = Drift(config, datapath, netlink, reconciler)
                await Agent(config, reconciler, punts, drift).run(stop)
    except* HeadraceError as errors:
        failure = errors
    finally:
        os.close(held)
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if failure is not None:  # raised here, for what is raised inside except* is a group again
        raise failure from None
