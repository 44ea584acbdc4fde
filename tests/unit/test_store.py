"""The conformance suite of store engines: what the controller relies on, whichever engine it is."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from headrace.errors import InvalidInput, Unavailable
from headrace.store import Batch, Change, Compacted, Compare, Delete, Engine, Put, StoreBroken, open_engine
from headrace.store.sqlite import SqliteEngine


class Clock:
    """Seconds that pass when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


ENGINES: dict[str, Callable[[Path, Clock], Engine]] = {
    "sqlite": lambda directory, clock: SqliteEngine(directory / "state.db", clock=clock),
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Engine]:
    engine = ENGINES[request.param](tmp_path, clock)
    await engine.open()
    yield engine
    await engine.close()


async def take(engine: Engine, count: int, prefix: str = "", after: int = 0) -> list[Batch]:
    """The next batches of a watch."""
    found = []
    async with asyncio.timeout(2):
        async for batch in engine.watch(prefix, after):
            found.append(batch)
            if len(found) == count:
                break
    return found


async def test_puts_count_revisions_and_range_sorts(engine: Engine) -> None:
    first = await engine.commit((), [Put("b", b"1"), Put("a", b"2"), Put("ab", b"3")])
    second = await engine.commit((), [Put("b", b"4")])
    assert first.succeeded
    assert second.revision == first.revision + 1
    revision, items = await engine.range("")
    assert revision == second.revision
    assert [(item.key, item.value, item.created, item.modified) for item in items] == [
        ("a", b"2", first.revision, first.revision),
        ("ab", b"3", first.revision, first.revision),
        ("b", b"4", first.revision, second.revision),
    ]
    assert [item.key for item in (await engine.range("a"))[1]] == ["a", "ab"]


async def test_a_failed_condition_changes_nothing(engine: Engine) -> None:
    first = await engine.commit((), [Put("k", b"1")])
    refused = await engine.commit([Compare("k", 0)], [Put("k", b"2"), Put("other", b"x")])
    assert not refused.succeeded
    assert refused.revision == first.revision
    taken = await engine.commit([Compare("k", first.revision), Compare("other", 0)], [Put("k", b"3")])
    assert taken.succeeded
    late = await engine.commit([Compare("k", first.revision)], [Put("k", b"4")])
    assert not late.succeeded
    _, items = await engine.range("")
    assert [(item.key, item.value) for item in items] == [("k", b"3")]


async def test_deleting_nothing_makes_no_revision(engine: Engine) -> None:
    before = await engine.commit((), [Put("k", b"1")])
    nothing = await engine.commit((), [Delete("absent")])
    assert nothing.succeeded
    assert nothing.revision == before.revision
    gone = await engine.commit((), [Delete("k"), Delete("absent")])
    assert gone.revision == before.revision + 1
    assert (await take(engine, 1, after=before.revision)) == [Batch(gone.revision, (Change("k", None),))]


async def test_a_recreated_key_is_a_new_one(engine: Engine) -> None:
    await engine.commit((), [Put("k", b"1")])
    await engine.commit((), [Delete("k")])
    again = await engine.commit([Compare("k", 0)], [Put("k", b"2")])
    assert again.succeeded
    [item] = (await engine.range("k"))[1]
    assert item.created == item.modified == again.revision


async def test_a_watch_tells_the_past_then_the_present_in_order(engine: Engine) -> None:
    start, _ = await engine.range("")
    for number in range(5):
        await engine.commit((), [Put(f"a/{number}", b""), Put(f"b/{number}", b"")])
    watch = asyncio.create_task(take(engine, 10, "a/", start))
    await asyncio.sleep(0)
    for number in range(5, 10):
        await engine.commit((), [Put(f"a/{number}", b"")])
    batches = await watch
    assert [batch.changes[0].key for batch in batches] == [f"a/{number}" for number in range(10)]
    assert [batch.revision for batch in batches] == list(range(start + 1, start + 11))


async def test_concurrent_watchers_each_see_everything_once(engine: Engine) -> None:
    start, _ = await engine.range("")
    watches = [asyncio.create_task(take(engine, 40, after=start)) for _ in range(3)]
    await asyncio.gather(*(engine.commit((), [Put(f"k{number}", b"")]) for number in range(40)))
    for watch in watches:
        batches = await watch
        assert [batch.revision for batch in batches] == list(range(start + 1, start + 41))


async def test_only_one_of_many_concurrent_swaps_wins(engine: Engine) -> None:
    commits = await asyncio.gather(
        *(engine.commit([Compare("lock", 0)], [Put("lock", str(number).encode())]) for number in range(10))
    )
    assert sum(commit.succeeded for commit in commits) == 1


async def test_a_watch_from_before_the_compaction_says_so(engine: Engine) -> None:
    start, _ = await engine.range("")
    first = await engine.commit((), [Put("k", b"1")])
    second = await engine.commit((), [Put("k", b"2")])
    await engine.compact(first.revision)
    with pytest.raises(Compacted):
        await take(engine, 1, after=start)
    assert [batch.revision for batch in await take(engine, 1, after=first.revision)] == [second.revision]
    assert [item.value for item in (await engine.range("k"))[1]] == [b"2"]


async def test_a_watch_from_the_future_says_so(engine: Engine) -> None:
    revision, _ = await engine.range("")
    with pytest.raises(Compacted):
        await take(engine, 1, after=revision + 1)


async def test_time_to_live_ends_with_a_change(engine: Engine, clock: Clock) -> None:
    put = await engine.commit((), [Put("short", b"", 10.0), Put("long", b"", 100.0), Put("kept", b"", 10.0)])
    await engine.commit((), [Put("kept", b"")])
    clock.now += 50
    assert isinstance(engine, SqliteEngine)
    await engine.expire()
    assert [item.key for item in (await engine.range(""))[1]] == ["kept", "long"]
    last = (await take(engine, 2, after=put.revision))[-1]
    assert last.changes == (Change("short", None),)


async def test_closing_ends_watches(engine: Engine) -> None:
    revision, _ = await engine.range("")
    watch = asyncio.create_task(take(engine, 1, after=revision))
    await engine.commit((), [])
    await engine.close()
    assert await watch == []
    with pytest.raises(Unavailable, match="closed"):
        await engine.range("")


# What only a file can suffer.


async def put_and_close(path: Path, key: str) -> tuple[str, int]:
    engine = SqliteEngine(path)
    await engine.open()
    revision = (await engine.commit((), [Put(key, b"v")])).revision
    epoch = engine.epoch
    await engine.close()
    return epoch, revision


async def test_reopening_keeps_epoch_revision_and_log(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    epoch, first = await put_and_close(path, "a")
    assert await put_and_close(path, "b") == (epoch, first + 1)
    engine = SqliteEngine(path)
    await engine.open()
    assert [batch.changes[0].key for batch in await take(engine, 2, after=first - 1)] == ["a", "b"]
    await engine.close()


async def test_a_new_database_has_a_new_epoch(tmp_path: Path) -> None:
    assert (await put_and_close(tmp_path / "a.db", "k"))[0] != (await put_and_close(tmp_path / "b.db", "k"))[0]


async def test_a_restored_database_has_a_new_epoch(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    epoch, _ = await put_and_close(path, "a")
    backup = path.read_bytes()
    assert (await put_and_close(path, "b"))[0] == epoch
    path.write_bytes(backup)
    restored, _ = await put_and_close(path, "c")
    assert restored != epoch
    assert (await put_and_close(path, "d"))[0] == restored


async def test_a_database_moved_elsewhere_has_a_new_epoch(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    epoch, _ = await put_and_close(path, "a")
    (tmp_path / "there").mkdir()
    moved = path.rename(tmp_path / "there" / "state.db")
    assert (await put_and_close(moved, "b"))[0] != epoch


async def test_a_damaged_database_is_named_with_its_cure(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await put_and_close(path, "a")
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreBroken, match=r"state\.db: the database is damaged .* backup"):
        await SqliteEngine(path).open()


async def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_text("precious notes " * 100)
    with pytest.raises(StoreBroken, match="damaged"):
        await SqliteEngine(path).open()
    assert path.read_text().startswith("precious")


async def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "state.db")
    await engine.open()
    with pytest.raises(StoreBroken, match="another controller holds it"):
        await SqliteEngine(tmp_path / "state.db").open()
    await engine.commit((), [Put("k", b"")])
    await engine.close()


async def test_a_backup_can_be_taken_while_it_runs(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "state.db")
    await engine.open()
    await engine.commit((), [Put("k", b"before")])
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as source,
        contextlib.closing(sqlite3.connect(tmp_path / "backup.db")) as backup,
    ):
        source.backup(backup)
    await engine.commit((), [Put("k", b"after")])
    await engine.close()
    restored = SqliteEngine(tmp_path / "backup.db")
    await restored.open()
    assert [item.value for item in (await restored.range("k"))[1]] == [b"before"]
    await restored.close()


async def test_a_full_disk_refuses_writes_and_heals(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "state.db")
    await engine.open()
    before = (await engine.commit((), [Put("k", b"small")])).revision
    await engine._call(lambda: engine._db.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(Unavailable, match="disk is full") as caught:
        await engine.commit((), [Put("k", b"x" * 1_000_000)])
    assert not isinstance(caught.value, StoreBroken)
    assert (await engine.range("k"))[0] == before
    await engine._call(lambda: engine._db.execute("PRAGMA max_page_count = 1000000"))
    assert (await engine.commit((), [Put("k", b"x" * 1_000_000)])).revision == before + 1
    await engine.close()


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await put_and_close(path, "a")
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(StoreBroken, match="format 99 is newer"):
        await SqliteEngine(path).open()


async def test_every_commit_is_synced(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "state.db")
    await engine.open()
    assert await engine._call(lambda: engine._db.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"
    assert await engine._call(lambda: engine._db.execute("PRAGMA synchronous").fetchone()[0]) == 2
    await engine.close()


async def test_the_log_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.store.sqlite.KEPT_REVISIONS", 10)
    monkeypatch.setattr("headrace.store.sqlite.COMPACT_EVERY", 5)
    engine = SqliteEngine(tmp_path / "state.db")
    await engine.open()
    for number in range(50):
        last = (await engine.commit((), [Put("k", str(number).encode())])).revision
    rows = await engine._call(lambda: engine._db.execute("SELECT count(*) FROM log").fetchone()[0])
    assert 10 <= rows <= 15
    assert len(await take(engine, 10, after=last - 10)) == 10
    await engine.close()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(InvalidInput, match="sqlite:PATH"):
        open_engine("redis://x")
