"""Takes in what the store tells, and tells every watcher what concerns it.

One feed per controller: store -> `Desired` -> `Sight` -> a bounded queue per watcher. A watcher too
slow for its queue is dropped: it reconnects and takes a snapshot, and the others never wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator

import msgspec

from headrace.controller.api import Event
from headrace.controller.closure import Key, Sight
from headrace.controller.desired import Desired, Entry, WriterLife
from headrace.controller.queue import Watcher, line
from headrace.controller.status import STATUS, Board
from headrace.errors import HeadraceError
from headrace.model import TYPES, Record, decode
from headrace.store import Batch, Compacted, Engine

OBJECT = "object/"
WRITER = "writer/"

ORDER = {name: position for position, name in enumerate(TYPES)}

log = logging.getLogger(__name__)


def object_key(key: Key) -> str:
    """Where the store keeps an object."""
    return f"{OBJECT}{key[0]}/{key[1]}"


class Hub:
    """The controller's knowledge, its revision, and its watchers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.desired = Desired()
        self.sight = Sight()
        self.board = Board()
        self.revision = 0
        """How far watchers have been told."""
        self.changed = 0
        """The last revision at which an object changed: from there on nothing is missed."""
        self._taken = 0
        self._progress = asyncio.Condition()
        self._watchers: dict[str | None, set[Watcher]] = {}
        self._lines: dict[Key, bytes] = {}

    async def load(self) -> int:
        """Read everything; returns the store's revision."""
        revision, items = await self.engine.range("")
        for item in items:
            self._take(item.key, item.value, item.modified)
        # Whether an object changed since some earlier revision is no longer known: tombstones go in time.
        self._taken = self.revision = self.changed = revision
        return revision

    async def run(self) -> None:
        """Follow the store; ends only with it."""
        async for batch in self.engine.watch("", self._taken):
            self._feed(batch)
            async with self._progress:
                self._taken = batch.revision
                self._progress.notify_all()

    async def reached(self, revision: int) -> None:
        """Wait until everything up to a revision is taken in."""
        if self._taken < revision:
            async with self._progress:
                await self._progress.wait_for(lambda: self._taken >= revision)

    def watchers(self) -> int:
        """How many are connected."""
        return sum(len(found) for found in self._watchers.values())

    # Watchers

    async def begin(self, watcher: Watcher, after: int | None, epoch: str) -> list[bytes]:
        """Attach a watcher; what to send first: what it missed since a revision, or else a snapshot."""
        self._watchers.setdefault(watcher.host, set()).add(watcher)
        sync = self.sync()
        if after is not None and epoch == self.engine.epoch and after <= self.revision:
            if after >= self.changed:
                return [sync]
            # What a host no longer sees cannot be told from the log alone: it takes a snapshot.
            if watcher.host is None:
                try:
                    return [*await self._past(after, self.changed), sync]
                except Compacted:
                    watcher.clear()
        # No await from here or from the attaching: nothing falls between the snapshot and the queue.
        return [self.reset(), *self.snapshot(watcher.host), self.sync()]

    def detach(self, watcher: Watcher) -> None:
        """No more."""
        found = self._watchers.get(watcher.host, set())
        found.discard(watcher)
        if not found:
            self._watchers.pop(watcher.host, None)

    def snapshot(self, host: str | None) -> Iterator[bytes]:
        """Every object that a host (None: anyone) may read, referenced types first, as lines."""
        keys: Iterable[Key]
        if host is None:
            keys = [key for key, entry in self.desired.entries.items() if entry.item]
        else:
            keys = self.sight.seen(host)
        for key in sorted(keys, key=in_order):
            yield self.put_line(key)

    def sync(self) -> bytes:
        """The line that says how far the watcher has been told."""
        return line(Event(kind="sync", epoch=self.engine.epoch, revision=self.revision))

    def reset(self) -> bytes:
        """The line before a snapshot."""
        return line(Event(kind="reset", epoch=self.engine.epoch, revision=self.revision))

    def put_line(self, key: Key) -> bytes:
        """A live object's line, encoded once for all watchers."""
        if key not in self._lines:
            self._lines[key] = line(Event(kind="put", record=self.desired.entries[key].record))
        return self._lines[key]

    # The feed

    def _feed(self, batch: Batch) -> None:
        told: dict[str, dict[Key, tuple[bool, bool]]] = {}
        changed: dict[Key, None] = {}
        for change in batch.changes:
            if (key := self._take(change.key, change.value, batch.revision, told)) is not None:
                changed[key] = None
        if not changed:
            return
        self.revision = self.changed = batch.revision
        if None in self._watchers:
            self._tell(self._watchers[None], self._all(changed))
        for host, pairs in told.items():
            if host in self._watchers:
                puts = [key for key, (was, now) in pairs.items() if now and (not was or key in changed)]
                gone = [key for key, (was, now) in pairs.items() if was and not now]
                if puts or gone:
                    self._tell(self._watchers[host], self._render(puts, gone))

    async def _past(self, after: int, upto: int) -> list[bytes]:
        lines = []
        async with contextlib.aclosing(self.engine.watch("", after)) as batches:
            async for batch in batches:
                for change in batch.changes:
                    if change.key.startswith(OBJECT) and change.value is not None:
                        record = read(change.value, batch.revision)
                        lines.append(line(Event(kind="put" if record.body else "delete", record=record)))
                if batch.revision >= upto:
                    break
        return lines

    def _tell(self, watchers: Iterable[Watcher], lines: Iterable[bytes]) -> None:
        data = b"".join(lines) + self.sync()
        for watcher in tuple(watchers):
            watcher.push(data)

    def _all(self, changed: Iterable[Key]) -> Iterator[bytes]:
        live = [key for key in changed if self.desired.live(key)]
        return self._render(live, [key for key in changed if not self.desired.live(key)])

    def _render(self, puts: Iterable[Key], gone: Iterable[Key]) -> Iterator[bytes]:
        for key in sorted(puts, key=in_order):
            yield self.put_line(key)
        for key in sorted(gone, key=in_order, reverse=True):
            yield self._delete_line(key)

    def _delete_line(self, key: Key) -> bytes:
        """Deleted, or no longer to be seen: the two look alike from outside."""
        entry = self.desired.entries.get(key)
        record = entry.record if entry else Record(type=key[0], id=key[1], writer="-", stored=self.revision)
        return line(Event(kind="delete", record=msgspec.structs.replace(record, body=None)))

    def _take(
        self,
        name: str,
        value: bytes | None,
        revision: int,
        told: dict[str, dict[Key, tuple[bool, bool]]] | None = None,
    ) -> Key | None:
        """Take in one key; returns the object's if its life changed. ``told`` gathers who sees what of it."""
        try:
            if name.startswith(OBJECT):
                return self._take_object(name, value, revision, told)
            if name.startswith(WRITER):
                self._take_writer(name.removeprefix(WRITER), value, revision)
            elif name.startswith(STATUS):
                self.board.take(name.removeprefix(STATUS), value)
        except (HeadraceError, msgspec.MsgspecError) as error:
            # Written by a Headrace with other types than this one: serve all the rest, and say so.
            log.error("store key cannot be understood key=%s: %s", name, error)  # noqa: TRY400
        return None

    def _take_object(
        self, name: str, value: bytes | None, revision: int, told: dict[str, dict[Key, tuple[bool, bool]]] | None
    ) -> Key | None:
        type_name, _, id_ = name.removeprefix(OBJECT).partition("/")
        key = (type_name, id_)
        was_live = self.desired.live(key) is not None
        entry = None
        if value is not None:
            record, old = read(value, revision), self.desired.live(key)
            before = (old.record.body, old.item) if old and old.item else None
            item = None if record.body is None else decode(record.type, record.body, before)
            entry = Entry(record, item, revision)
        self._lines.pop(key, None)
        self.desired.load(key, entry)
        item = entry.item if entry else None
        if not was_live and item is None:
            return None
        # During loading nobody watches, and there is no before.
        pairs = self.sight.replace(key, item, () if told is None else self._watchers.keys())
        for (host, seen), (was, now) in pairs.items():
            gathered = told.setdefault(host, {}) if told is not None else {}
            gathered[seen] = (gathered[seen][0] if seen in gathered else was, now)
        return key

    def _take_writer(self, writer: str, value: bytes | None, revision: int) -> None:
        if value is None:
            self.desired.writers.pop(writer, None)
        else:
            self.desired.writers[writer] = (msgspec.json.decode(value, type=WriterLife), revision)


def read(value: bytes, revision: int) -> Record:
    """A record as the store keeps it; its key was last changed by ``revision``."""
    return msgspec.structs.replace(msgspec.json.decode(value, type=Record), stored=revision)


def in_order(key: Key) -> tuple[int, str]:
    """Sorts keys so that referenced types come first."""
    return ORDER[key[0]], key[1]
