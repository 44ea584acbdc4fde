"""The controller without its HTTP dress: reads answer from memory, writes go through the store and come back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

import msgspec

from headrace.controller.api import Answer, Health, Resync
from headrace.controller.closure import Key
from headrace.controller.desired import AGENT, Plan
from headrace.controller.status import STATUS
from headrace.controller.watch import WRITER, Hub, object_key
from headrace.errors import InvalidInput, Unavailable
from headrace.model import HostStatus, Record
from headrace.store import Compare, Delete, Engine, Put

TOMBSTONE_TTL = 7 * 86400.0
"""Seconds that a tombstone stays: longer than any put can be on its way, or wait with a writer that was cut off."""

ATTEMPTS = 20
"""How often a write is planned anew when other controllers change the same objects meanwhile."""

log = logging.getLogger(__name__)


class Service:
    """Everything the controller can do, for whoever may do it."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.hub = Hub(engine)
        self._clock = clock
        self._writing = asyncio.Lock()
        self._trouble: Unavailable | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, engine: Engine) -> AsyncIterator[Service]:
        """Open the store, follow it, and close it at the end; should following fail, so does everything under it."""
        await engine.open()
        try:
            service = cls(engine)
            await service.hub.load()
            async with asyncio.TaskGroup() as tasks:
                feed = tasks.create_task(service.hub.run(), name="feed")
                try:
                    yield service
                finally:
                    feed.cancel()
        except BaseExceptionGroup as group:
            # One cause is told as itself: callers catch errors, not groups.
            raise group.exceptions[0] if len(group.exceptions) == 1 else group from None
        finally:
            await engine.close()

    async def write(self, records: Iterable[Record]) -> Answer:
        """Puts and deletes (body None), all or none."""
        records = tuple(records)
        for record in records:
            if record.writer == AGENT:
                raise InvalidInput(f"{record.type} {record.id}: writer {AGENT} is what agents report, by their status")
        return await self._carry_out(lambda: self.hub.desired.plan(records))

    async def resync(self, wish: Resync) -> Answer:
        """Delete what a writer no longer has."""
        return await self._carry_out(
            lambda: self.hub.desired.plan_resync(wish.writer, wish.writer_epoch, wish.types, wish.keep)
        )

    async def report(self, status: HostStatus) -> Answer:
        """A host's word about itself; makes the host known, with its tunnel endpoints."""
        answer = await self._carry_out(lambda: self.hub.desired.plan_host(status.id, status.vteps))
        status = msgspec.structs.replace(status, time=self._clock())
        if self.hub.board.post(status):
            await self._commit((), [Put(STATUS + status.id, msgspec.json.encode(status))])
        return answer

    async def introduce(self, host: str) -> None:
        """Make a host known before its agent first speaks."""
        if not self.hub.desired.live(("host", host)):
            await self._carry_out(lambda: self.hub.desired.plan_host(host, (), introduce=True))

    def health(self) -> Health:
        """How the controller is."""
        return Health(
            epoch=self.engine.epoch,
            revision=self.hub.revision,
            objects=sum(1 for entry in self.hub.desired.entries.values() if entry.item),
            watchers=self.hub.watchers(),
            store=str(self._trouble) if self._trouble else "ok",
            time=self._clock(),
        )

    async def _carry_out(self, plan: Callable[[], Plan]) -> Answer:
        """Plan and store, again if another controller was faster; returns when it is taken in here."""
        async with self._writing:
            for _ in range(ATTEMPTS):
                wanted = plan()
                if not wanted.records and not wanted.writers:
                    return Answer(epoch=self.engine.epoch, revision=self.hub.revision, changed=False)
                compares, operations = self._transaction(wanted)
                if await self._commit(compares, operations):
                    changed = bool(wanted.records)
                    return Answer(epoch=self.engine.epoch, revision=self.hub.revision, changed=changed)
        raise Unavailable("the store changes faster than this write can be planned; try again")

    def _transaction(self, plan: Plan) -> tuple[Sequence[Compare], Sequence[Put | Delete]]:
        desired = self.hub.desired
        compares: list[Compare] = []
        operations: list[Put | Delete] = []
        for key, record in plan.records.items():
            entry = desired.entries.get(key)
            compares.append(Compare(object_key(key), entry.modified if entry else 0))
            ttl = TOMBSTONE_TTL if record.body is None else None
            operations.append(Put(object_key(key), msgspec.json.encode(record), ttl))
            # A host that is deleted by name is gone with its word; one that still speaks comes back.
            if record.body is None and record.type == "host":
                operations.append(Delete(STATUS + record.id))
        for writer, life in plan.writers.items():
            known = desired.writers.get(writer)
            compares.append(Compare(WRITER + writer, known[1] if known else 0))
            operations.append(Put(WRITER + writer, msgspec.json.encode(life)))
        return compares, operations

    async def _commit(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> bool:
        try:
            commit = await self.engine.commit(compares, operations)
        except Unavailable as error:
            if self._trouble is None:
                log.error("writes are refused: %s", error)  # noqa: TRY400 - the message names the cure
            self._trouble = error
            raise
        if self._trouble is not None:
            log.warning("writes work again")
        self._trouble = None
        await self.hub.reached(commit.revision)
        return commit.succeeded

    def listing(self, type_name: str, host: str | None = None) -> tuple[Record, ...]:
        """The live records of a type that a host (None: anyone) may read."""
        sight, entries = self.hub.sight, self.hub.desired.entries
        keys: Iterable[Key] = entries if host is None else sight.seen(host)
        found = [entries[key].record for key in keys if key[0] == type_name and entries[key].item]
        return tuple(sorted(found, key=lambda record: record.id))

    def record(self, key: Key, host: str | None = None) -> Record | None:
        """One live record, if it is there and the host may read it."""
        entry = self.hub.desired.live(key)
        return entry.record if entry and (host is None or self.hub.sight.sees(host, key)) else None
