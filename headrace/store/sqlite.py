"""The embedded engine: one SQLite file, one thread, durable when `commit` returns.

WAL with ``synchronous=FULL`` syncs the log at every commit (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from headrace.errors import StoreFull, Unavailable
from headrace.store.engine import Batch, Change, Commit, Compacted, Compare, Delete, Item, Put, StoreBroken
from headrace.store.witness import Witness

Result = TypeVar("Result")

KEPT_REVISIONS = 10_000
"""The log keeps at least so many revisions: a watcher away for less catches up without a snapshot."""
COMPACT_EVERY = 1_000
EXPIRE_EVERY = 60.0

BUSY = 5.0
"""Seconds to wait for another program's lock: a backup takes short ones."""

ROOM = 65536
"""Octets below which a disk counts as full."""

FORMAT = 1

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE item (key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL,
                   expires REAL) WITHOUT ROWID;
CREATE INDEX item_expires ON item (expires) WHERE expires IS NOT NULL;
CREATE TABLE log (revision INTEGER NOT NULL, position INTEGER NOT NULL, key TEXT NOT NULL, value BLOB,
                  PRIMARY KEY (revision, position)) WITHOUT ROWID;
"""

log = logging.getLogger(__name__)


class SqliteEngine:
    """See `headrace.store.engine.Engine`. ``clock`` gives Unix seconds for time to live."""

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path)
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._database: sqlite3.Connection | None = None
        self._witness = Witness(self._path.with_name(self._path.name + "-witness"))
        self._watchers: set[asyncio.Queue[Batch | None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._epoch = ""
        self._revision = 0
        self._compacted = 0

    @property
    def epoch(self) -> str:
        """The name of this life of the data."""
        return self._epoch

    async def open(self) -> None:
        """Open or make the file; raises StoreBroken when it is damaged."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._call(self._open)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        await self.expire()
        self._sweeper = asyncio.create_task(self._sweep(), name="store-expire")

    async def close(self) -> None:
        """Close the file; watches end."""
        if self._sweeper:
            self._sweeper.cancel()
        if self._database:
            await self._call(self._database.close)
            self._database = None
        self._witness.close()
        self._thread.shutdown()
        for queue in self._watchers:
            queue.put_nowait(None)

    async def range(self, prefix: str) -> tuple[int, list[Item]]:
        """The keys with a prefix, sorted, and the revision at which they are so."""
        return await self._call(lambda: self._range(prefix))

    async def commit(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> Commit:
        """If every condition holds, do every operation as one revision, durably; else nothing."""
        return await self._call(lambda: self._commit(compares, operations))

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        """Every change after a revision, past ones first."""
        queue: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            # Subscribed before reading: what is committed in between comes both ways, and is dropped once.
            for batch in await self._call(partial(self._history, after)):
                after = batch.revision
                if narrowed := under(prefix, batch):
                    yield narrowed
            while (live := await queue.get()) is not None:
                if live.revision > after and (narrowed := under(prefix, live)):
                    yield narrowed
        finally:
            self._watchers.discard(queue)

    async def compact(self, revision: int) -> None:
        """Forget how things came about up to and including a revision."""
        await self._call(lambda: self._compact(revision))

    async def expire(self) -> None:
        """Delete what has outlived its time."""

        def expired() -> list[Delete]:
            rows = self._db.execute("SELECT key FROM item WHERE expires <= ?", (self._clock(),))
            return [Delete(key) for (key,) in rows]

        def sweep() -> None:
            if keys := expired():
                self._commit((), keys)

        await self._call(sweep)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY)
            try:
                await self.expire()
            except Unavailable as error:
                log.error("store cannot expire keys: %s", error)  # noqa: TRY400 - the message names the cure

    # Everything below runs in the thread.

    @property
    def _db(self) -> sqlite3.Connection:
        if self._database is None:
            raise Unavailable(f"store {self._path}: it is closed")
        return self._database

    async def _call(self, function: Callable[[], Result]) -> Result:
        try:
            future = self._thread.submit(self._guarded, function)
        except RuntimeError:  # the thread is gone
            raise Unavailable(f"store {self._path}: it is closed") from None
        return await asyncio.wrap_future(future)

    def _guarded(self, function: Callable[[], Result]) -> Result:
        try:
            return function()
        except (sqlite3.Error, OSError) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> Unavailable:
        """Say what a failure means for the operator."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return StoreBroken(
                f"store {self._path}: the database is damaged ({error}); put a backup in its place, or move it away "
                "and start with an empty one: writers then send everything again"
            )
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and self._no_room()):
            return StoreFull(f"store {self._path}: the disk is full; free space, then it goes on by itself")
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return Unavailable(f"store {self._path}: another program has locked it; let it finish")
        if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM} or not code:
            return StoreBroken(f"store {self._path}: cannot be opened for writing ({error}); check path and rights")
        return Unavailable(f"store {self._path}: {error}")

    def _no_room(self) -> bool:
        """Whether the disk is full: the log's index then fails as an error of input and output."""
        with contextlib.suppress(OSError):
            facts = os.statvfs(self._path.parent)
            return facts.f_bavail * facts.f_frsize < ROOM or facts.f_favail == 0
        return False

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # One controller per file: a second one would not see the first one's changes. SQLite's own locks stay
        # shared, so that a backup can be taken meanwhile.
        if not self._witness.hold():
            raise StoreBroken(f"store {self._path}: another controller holds it; stop that one first")
        try:
            self._database = self._connect()
        except BaseException:
            self._witness.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=BUSY)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            if (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise StoreBroken(str(self._explain(corrupt(" ".join(found.split())))))
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        """Make the tables if there are none, and settle which life of the data this is."""
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in {0, FORMAT}:
            raise StoreBroken(f"store {self._path}: format {version} is newer than this Headrace; upgrade it")
        with transaction(database) as db:
            if version == 0:
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={FORMAT}")
                db.execute("INSERT INTO meta VALUES ('epoch', ''), ('revision', '1'), ('compacted', '0')")
            meta = dict(db.execute("SELECT name, value FROM meta"))
            epoch, revision = meta["epoch"], int(meta["revision"])
            if not epoch or not self._witness.confirms(epoch, revision):
                if epoch:
                    log.warning("store %s is not the one last used here: everyone starts afresh", self._path)
                epoch = secrets.token_hex(8)
                db.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch,))
        self._witness.begin(epoch, revision)
        self._epoch, self._revision, self._compacted = epoch, revision, int(meta["compacted"])

    def _range(self, prefix: str) -> tuple[int, list[Item]]:
        rows = self._db.execute(
            "SELECT key, value, created, modified FROM item WHERE key >= ? AND key < ? ORDER BY key",
            (prefix, prefix + "\U0010ffff"),
        )
        items = [Item(key=key, value=value, created=created, modified=mod) for key, value, created, mod in rows]
        return self._revision, items

    def _commit(self, compares: Sequence[Compare], operations: Sequence[Put | Delete]) -> Commit:
        revision = self._revision + 1
        with transaction(self._db) as db:
            for compare in compares:
                row = db.execute("SELECT modified FROM item WHERE key = ?", (compare.key,)).fetchone()
                if (row[0] if row else 0) != compare.modified:
                    return Commit(succeeded=False, revision=self._revision)
            changes = [change for operation in operations if (change := self._apply(db, operation, revision))]
            if not changes:
                return Commit(succeeded=True, revision=self._revision)
            db.executemany(
                "INSERT INTO log VALUES (?, ?, ?, ?)",
                [(revision, position, change.key, change.value) for position, change in enumerate(changes)],
            )
            db.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (str(revision),))
        self._revision = revision
        self._witness.advance(revision)
        self._loop.call_soon_threadsafe(self._publish, Batch(revision, tuple(changes)))
        if revision - self._compacted >= KEPT_REVISIONS + COMPACT_EVERY:
            try:
                self._compact(revision - KEPT_REVISIONS)
            except sqlite3.Error as error:  # what was written is written; it is tried again with the next
                log.warning("store %s keeps a longer history than it need: %s", self._path, error)
        return Commit(succeeded=True, revision=revision)

    def _apply(self, db: sqlite3.Connection, operation: Put | Delete, revision: int) -> Change | None:
        if isinstance(operation, Delete):
            gone = db.execute("DELETE FROM item WHERE key = ?", (operation.key,)).rowcount
            return Change(operation.key, None) if gone else None
        expires = None if operation.ttl is None else self._clock() + operation.ttl
        db.execute(
            "INSERT INTO item VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "value = excluded.value, modified = excluded.modified, expires = excluded.expires",
            (operation.key, operation.value, revision, revision, expires),
        )
        return Change(operation.key, operation.value)

    def _history(self, after: int) -> list[Batch]:
        if after < self._compacted or after > self._revision:
            raise Compacted
        found: dict[int, list[Change]] = {}
        rows = self._db.execute(
            "SELECT revision, key, value FROM log WHERE revision > ? ORDER BY revision, position", (after,)
        )
        for revision, key, value in rows:
            found.setdefault(revision, []).append(Change(key, value))
        return [Batch(revision, tuple(changes)) for revision, changes in found.items()]

    def _compact(self, revision: int) -> None:
        revision = min(revision, self._revision)
        if revision <= self._compacted:
            return
        with transaction(self._db) as db:
            db.execute("DELETE FROM log WHERE revision <= ?", (revision,))
            db.execute("UPDATE meta SET value = ? WHERE name = 'compacted'", (str(revision),))
        self._compacted = revision

    def _publish(self, batch: Batch) -> None:
        """In the event loop, in the order of commits."""
        for queue in self._watchers:
            queue.put_nowait(batch)


def under(prefix: str, batch: Batch) -> Batch | None:
    """The part of a batch below a prefix, if any."""
    changes = tuple(change for change in batch.changes if change.key.startswith(prefix))
    return Batch(batch.revision, changes) if changes else None


def corrupt(text: str) -> sqlite3.DatabaseError:
    """What SQLite would have raised, had it stumbled on what its check found."""
    error = sqlite3.DatabaseError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself (disk full); saying it again is then an error of no interest.
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
