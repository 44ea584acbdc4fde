"""Watches over the controller's real HTTP interface: snapshot, what follows, what is missed, who is too slow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.controller.api import Event
from headrace.controller.client import Client
from headrace.controller.serve import Running, running
from headrace.errors import Unavailable
from headrace.model import HostStatus
from headrace.testing.record import config, gone, network, port, record


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(config(tmp_path)) as controller:
        yield controller


@pytest.fixture
async def client(controller: Running) -> AsyncIterator[Client]:
    async with Client(controller.url) as client:
        yield client


async def until_sync(events: AsyncIterator[Event]) -> list[Event]:
    """The events up to the next sync line."""
    found = []
    async with asyncio.timeout(2):
        async for event in events:
            found.append(event)
            if event.kind == "sync":
                break
    return found


def told(events: list[Event]) -> list[str]:
    return [f"{event.kind} {event.record.type} {event.record.id}" if event.record else event.kind for event in events]


async def test_a_watch_begins_with_a_snapshot_and_goes_on(client: Client) -> None:
    await client.batch([port("p1"), network("n1")])
    async with contextlib.aclosing(client.watch()) as events:
        assert told(await until_sync(events)) == ["reset", "put network n1", "put port p1", "sync"]
        answer = await client.batch([gone("network", "n1"), gone("port", "p1"), network("n2")])
        live = await until_sync(events)
        assert told(live) == ["put network n2", "delete port p1", "delete network n1", "sync"]
        assert (live[-1].revision, live[-1].epoch) == (answer.revision, answer.epoch)


async def test_a_host_sees_come_and_go_what_concerns_it(client: Client) -> None:
    await client.batch(
        [
            network("n1"),
            network("n2"),
            record("security_group", "web", rules=[{"id": "r", "direction": "ingress", "remote_group": "db"}]),
            port("p2", "n2", host="h2", security_groups=["db"]),
        ]
    )
    await client.put_status(HostStatus(id="h2", vteps=("192.0.2.2",)))
    async with contextlib.aclosing(client.watch("h1")) as events:
        assert told(await until_sync(events)) == ["reset", "sync"]
        await client.put(port("p1", host="h1", security_groups=["web"]))
        assert told(await until_sync(events)) == [
            "put network n1",
            "put security_group web",
            "put port p1",
            "put port p2",
            "sync",
        ]
        await client.put(port("p3", "n1", host="h2"))
        assert told(await until_sync(events)) == ["put host h2", "put port p3", "sync"]
        await client.put(network("n2", name="not mine", revision=2))
        await client.put(port("p1", host="h1", revision=2))
        assert told(await until_sync(events)) == ["put port p1", "delete port p2", "delete security_group web", "sync"]
        await client.put(port("p1", host="h2", revision=3))
        gone_ = told(await until_sync(events))
        assert gone_ == ["delete port p3", "delete port p1", "delete host h2", "delete network n1", "sync"]


async def test_a_watch_goes_on_where_it_was(client: Client) -> None:
    await client.put(network("n1"))
    answer = await client.put(network("n2"))
    await client.put(network("n3"))
    await client.delete("network", "n2", writer="neutron", writer_epoch="w1")
    async with contextlib.aclosing(client.watch(after=answer.revision, epoch=answer.epoch)) as events:
        assert told(await until_sync(events)) == ["put network n3", "delete network n2", "sync"]
        await client.put(network("n4"))
        assert told(await until_sync(events)) == ["put network n4", "sync"]


@pytest.mark.parametrize(
    ("ahead", "epoch", "first"), [(0, None, "sync"), (-1, None, "reset"), (1, None, "reset"), (0, "other", "reset")]
)
async def test_a_host_goes_on_only_if_nothing_was_missed(
    client: Client, ahead: int, epoch: str | None, first: str
) -> None:
    answer = await client.batch([network("n1"), port("p1", host="h1")])
    after = answer.revision + ahead
    async with contextlib.aclosing(client.watch("h1", after=after, epoch=epoch or answer.epoch)) as events:
        assert (await anext(events)).kind == first


async def test_a_restarted_controller_is_the_same_and_a_new_one_is_not(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as controller, Client(controller.url) as client:
        first = await client.put(network("n1", revision=7))
        await client.put(network("n2"))
        await client.delete("network", "n2", writer="neutron", writer_epoch="w1")
        await client.put_status(HostStatus(id="h1", vteps=("192.0.2.1",), version="x"))
    async with running(config(tmp_path)) as controller, Client(controller.url) as client:
        listing = await client.list("network")
        assert (listing.epoch, [item.id for item in listing.items]) == (first.epoch, ["n1"])
        assert not (await client.put(network("n1", revision=6))).changed
        assert not (await client.put(network("n2"))).changed, "tombstones survive"
        assert [status.version for status in await client.statuses()] == ["x"]
    (tmp_path / "state.db").unlink()
    async with running(config(tmp_path)) as controller, Client(controller.url) as client:
        assert (await client.list("network")).epoch != first.epoch
        async with contextlib.aclosing(client.watch("h1", after=first.revision, epoch=first.epoch)) as events:
            assert (await anext(events)).kind == "reset"


async def test_a_watch_ends_when_the_controller_does(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with running(config(tmp_path)) as controller:
            client = await stack.enter_async_context(Client(controller.url))
            events = await stack.enter_async_context(contextlib.aclosing(client.watch()))
            await until_sync(events)
        with pytest.raises(Unavailable, match="ended the watch"):
            await until_sync(events)
        with pytest.raises(Unavailable):
            await client.health()


async def test_a_quiet_watch_has_a_heartbeat(tmp_path: Path) -> None:
    async with (
        running(config(tmp_path), heartbeat=0.02) as controller,
        Client(controller.url, silence=10) as client,
        contextlib.aclosing(client.watch("h1")) as events,
    ):
        assert told(await until_sync(events)) == ["reset", "sync"]
        for _ in range(3):
            assert told(await until_sync(events)) == ["sync"]


async def test_a_silent_controller_is_noticed(tmp_path: Path) -> None:
    async with (
        running(config(tmp_path), heartbeat=60) as controller,
        Client(controller.url, silence=0.05) as client,
        contextlib.aclosing(client.watch()) as events,
    ):
        await until_sync(events)
        with pytest.raises(Unavailable, match="no answer in time"):
            await anext(events)


async def test_a_slow_watcher_is_dropped_and_starts_afresh(tmp_path: Path) -> None:
    """Its queue is bounded; the others and the writers do not wait."""
    async with running(config(tmp_path), queue_octets=1_000_000) as controller, Client(controller.url) as client:
        host, _, tcp = controller.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(tcp), limit=1024)
        writer.write(b"GET /v1/watch HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n")
        watching = controller.service.hub
        async with contextlib.aclosing(client.watch()) as events:
            await until_sync(events)
            for number in range(100):
                await client.put(network(f"n{number}", name="x" * 300_000))
                await until_sync(events)
                if watching.watchers() == 1:
                    break
            assert watching.watchers() == 1, "the slow one is gone, the quick one is not"
        with contextlib.suppress(ConnectionError):  # aborted, once what was on its way is read
            while await asyncio.wait_for(reader.read(1 << 20), 2):
                pass
        writer.close()
        async with contextlib.aclosing(client.watch()) as events:
            afresh = await until_sync(events)
            assert len(afresh) == number + 3


async def test_statuses_are_watched(client: Client) -> None:
    await client.put_status(HostStatus(id="h1", applied=1))
    async with contextlib.aclosing(client.watch_status()) as events:
        assert [event.kind for event in await until_sync(events)] == ["status", "sync"]
        await client.put_status(HostStatus(id="h1", applied=2))
        event = await anext(events)
        assert event.status is not None
        assert (event.status.id, event.status.applied) == ("h1", 2)
