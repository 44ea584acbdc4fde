"""The controller's rules, over its real HTTP interface on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.controller.api import Event
from headrace.controller.client import Client
from headrace.controller.config import ControllerConfig
from headrace.controller.serve import Running, notify, running
from headrace.errors import Conflict, InvalidInput, NotFound, Unavailable, UnknownField
from headrace.model import HostStatus, PortStatus, Record
from headrace.store import StoreBroken
from headrace.testing.wait import async_wait_until


def record(
    type_: str, id_: str, *, writer: str = "neutron", epoch: str = "w1", revision: int = 1, **body: Any
) -> Record:
    return Record(type=type_, id=id_, writer=writer, writer_epoch=epoch, revision=revision, body={"id": id_, **body})


def network(id_: str, **options: Any) -> Record:
    return record("network", id_, **{"segment": {"id": 7}, **options})


def port(id_: str, network_: str = "n1", **options: Any) -> Record:
    return record("port", id_, **{"network": network_, "mac": "02:00:00:00:00:01", **options})


def gone(type_: str, id_: str, *, writer: str = "neutron", epoch: str = "w1", revision: int = 0) -> Record:
    return Record(type=type_, id=id_, writer=writer, writer_epoch=epoch, revision=revision)


def config(directory: Path) -> ControllerConfig:
    return ControllerConfig(listen="127.0.0.1:0", store=f"sqlite:{directory / 'state.db'}", tls=False)


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


# Reading and writing


async def test_put_get_list_delete(client: Client) -> None:
    answer = await client.put(network("n1", name="blue", mtu=1450))
    assert answer.changed
    stored = await client.get("network", "n1")
    assert stored is not None
    assert stored.body == {"id": "n1", "name": "blue", "segment": {"id": 7}}, (
        "as the model writes it, defaults left out"
    )
    assert (stored.stored, stored.writer, stored.revision) == (answer.revision, "neutron", 1)
    listing = await client.list("network")
    assert (listing.epoch, listing.revision, listing.items) == (answer.epoch, answer.revision, (stored,))
    assert (await client.delete("network", "n1", writer="neutron", writer_epoch="w1")).changed
    assert await client.get("network", "n1") is None
    assert (await client.list("network")).items == ()


async def test_the_same_twice_changes_nothing(client: Client) -> None:
    first = await client.put(port("p1"))
    again = await client.put(port("p1"))
    assert (again.changed, again.revision) == (False, first.revision)
    assert not (await client.batch([])).changed


async def test_the_older_is_ignored_in_any_order(client: Client) -> None:
    await client.put(network("n1", revision=5, name="new"))
    assert not (await client.put(network("n1", revision=4, name="old"))).changed
    assert (await client.put(network("n1", revision=5, name="newer"))).changed, "same revision, other body: applied"
    assert not (await client.delete("network", "n1", writer="neutron", writer_epoch="w1", revision=4)).changed


async def test_a_late_put_resurrects_nothing(client: Client) -> None:
    await client.put(network("n1", revision=3))
    await client.delete("network", "n1", writer="neutron", writer_epoch="w1", revision=3)
    assert not (await client.put(network("n1", revision=3))).changed
    assert await client.get("network", "n1") is None
    # The delete may even come first.
    await client.delete("network", "n2", writer="neutron", writer_epoch="w1", revision=9)
    assert not (await client.put(network("n2", revision=8))).changed
    assert (await client.put(network("n2", revision=10))).changed, "made anew"


async def test_revision_zero_is_always_the_latest(client: Client) -> None:
    await client.put(network("n1", writer="cli", epoch="", revision=0, name="a"))
    assert (await client.put(network("n1", writer="cli", epoch="", revision=0, name="b"))).changed
    await client.delete("network", "n1", writer="cli")
    assert (await client.put(network("n1", writer="cli", epoch="", revision=0, name="b"))).changed


async def test_a_new_writer_epoch_replaces_and_the_old_one_is_refused(client: Client) -> None:
    await client.put(network("n1", epoch="w1", revision=50))
    assert (await client.put(network("n1", epoch="w2", revision=1, name="restored"))).changed
    with pytest.raises(Conflict, match="epoch w1 is over, w2 came after it; resync first"):
        await client.put(network("n1", epoch="w1", revision=51))
    with pytest.raises(Conflict, match="give writer_epoch"):
        await client.put(network("n1", epoch="", revision=52))
    await client.resync("neutron", "w1", ["network"], [("network", "n1")])
    assert (await client.put(network("n1", epoch="w1", revision=2))).changed, "its resync has brought w1 back"


async def test_an_object_belongs_to_its_writer(client: Client) -> None:
    await client.put(network("n1"))
    with pytest.raises(Conflict, match="network n1: belongs to writer neutron; cli cannot change it"):
        await client.put(network("n1", writer="cli", epoch=""))
    with pytest.raises(Conflict, match="belongs to writer neutron"):
        await client.delete("network", "n1", writer="cli")
    await client.delete("network", "n1", writer="neutron", writer_epoch="w1")
    assert (await client.put(network("n1", writer="cli", epoch=""))).changed, "what is gone may change hands"


async def test_a_batch_is_all_or_nothing(client: Client) -> None:
    with pytest.raises(InvalidInput, match="port p1"):
        await client.batch([network("n1"), port("p1", mac="nonsense")])
    assert (await client.list("network")).items == ()
    answer = await client.batch([port("p1"), network("n1"), gone("network", "absent")])
    assert {item.stored for name in ("port", "network") for item in (await client.list(name)).items} == {
        answer.revision
    }


async def test_a_resync_deletes_only_the_writers_own_unkept(client: Client) -> None:
    await client.batch(
        [network("n1"), network("n2"), port("p1"), record("subnet", "s1", network="n2", cidr="10.0.0.0/8")]
    )
    await client.put(network("n3", writer="cli", epoch=""))
    answer = await client.resync("neutron", "w2", ["network", "port"], [("network", "n1")])
    assert answer.changed
    assert [item.id for item in (await client.list("network")).items] == ["n1", "n3"]
    assert (await client.list("port")).items == (), (
        "deleting a network in use is right when its writer says what there is"
    )
    assert [item.id for item in (await client.list("subnet")).items] == ["s1"], "a type not named is left alone"
    assert not (await client.put(network("n2", epoch="w2", revision=1))).changed, "tombstone"


# Bad input


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (port("p1", mca="x"), UnknownField, "port p1: .*`mca`.*did you mean `mac`"),
        (port("p1", mac=5), InvalidInput, r"port p1: Expected `str`, got `int` - at `\$.mac`"),
        (port("p1", mac="01:00:00:00:00:01"), InvalidInput, "port p1: mac 01:00:00:00:00:01 is a multicast"),
        (port("p1", addresses=["10.0.0.300"]), InvalidInput, "port p1: addresses: '10.0.0.300'"),
        (record("port", "p1", mac="02:00:00:00:00:01"), InvalidInput, "port p1: .*missing required field `network`"),
        (network("n1", segment={"id": 1 << 24}), InvalidInput, "network n1: .*segment.id"),
        (record("host", "h1", vteps=["192.0.2.1", "192.0.2.2"]), InvalidInput, "host h1: .*one per IP version"),
        (record("network", "n1", writer="agent"), InvalidInput, "writer agent"),
        (Record(type="network", id="n1", writer="cli", body={"id": "n2", "segment": {"id": 1}}), InvalidInput, "'n2'"),
        (Record(type="network", id="n1", writer="cli"), InvalidInput, "network n1: body is missing"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    client: Client, given: Record, kind: type[InvalidInput], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await client.put(given)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        (
            "PUT",
            "/v1/networks/n1",
            '{"type":"network","id":"n1","writer":"cli","boddy":{}}',
            400,
            "did you mean `body`",
        ),
        ("PUT", "/v1/networks/n1", "{", 400, "network n1: Input data was truncated"),
        ("PUT", "/v1/networks/n1", '{"type":"network","id":"n2","writer":"cli","body":{}}', 400, "says network n2"),
        (
            "POST",
            "/v1/batch",
            '[{"type":"toaster","id":"t","writer":"cli","body":{}}]',
            400,
            "'toaster'; known: network",
        ),
        (
            "POST",
            "/v1/resync",
            '{"writer":"cli","writer_epoch":"","types":["ports"],"keep":[]}',
            400,
            "'ports'; known:",
        ),
        ("GET", "/v1/watch?hots=h1", None, 400, "unknown parameter `hots`; did you mean `host`"),
        ("GET", "/v1/watch?from=now", None, 400, "from: 'now' is not a number"),
        ("DELETE", "/v1/networks/n1", None, 400, "writer"),
        ("GET", "/v1/toasters", None, 404, "no such path"),
        ("GET", "/v1/networks/n1", None, 404, "network n1 does not exist"),
        ("POST", "/v1/networks", "{}", 405, "not possible; allowed: GET"),
        ("PUT", "/v1/status/h1", '{"id":"h2"}', 400, "it says host h2"),
        ("PUT", "/v1/status/h1", '{"id":"h1","applied":"x"}', 400, "status of host h1: .*applied"),
    ],
)
async def test_bad_requests(
    controller: Running, method: str, path: str, body: str | None, status: int, words: str
) -> None:
    async with aiohttp.ClientSession() as session, session.request(method, controller.url + path, data=body) as answer:
        assert answer.status == status
        assert re.search(words, (await answer.json())["message"])


async def test_a_network_in_use_stays(client: Client) -> None:
    await client.batch([network("n1"), port("p1"), port("p2", writer="cli", epoch="")])
    with pytest.raises(Conflict, match="network n1 is in use by port p1 and 1 more"):
        await client.delete("network", "n1", writer="neutron", writer_epoch="w1")
    with pytest.raises(Conflict, match="in use by port p2"):
        await client.batch([gone("network", "n1"), gone("port", "p1")])
    await client.put(port("p2", "n2", writer="cli", epoch=""))
    with pytest.raises(Conflict, match="in use by port p3; "):
        await client.batch([gone("network", "n1"), gone("port", "p1"), port("p3")])
    assert (await client.batch([gone("network", "n1"), gone("port", "p1")])).changed, "moved away, and deleted together"


async def test_a_person_may_not_name_an_unknown_host(client: Client) -> None:
    await client.put_status(HostStatus(id="h1", vteps=("192.0.2.1",)))
    with pytest.raises(InvalidInput, match="port p1: host: unknown host 'h2'; known: h1"):
        await client.put(port("p1", writer="cli", epoch="", host="h2"))
    assert (await client.put(port("p2", host="h2"))).changed, "a cloud may: its order is its own"
    declared = record("host", "h2", writer="cli", epoch="")
    assert (await client.batch([port("p1", writer="cli", epoch="", host="h2"), declared])).changed


# Hosts and status


async def test_a_status_makes_the_host(client: Client) -> None:
    await client.put_status(HostStatus(id="h1", vteps=("192.0.2.1", "2001:db8::1"), applied=3))
    host = await client.get("host", "h1")
    assert host is not None
    assert (host.writer, host.body) == ("agent", {"id": "h1", "vteps": ["192.0.2.1", "2001:db8::1"]})
    revision = host.stored
    await client.put_status(HostStatus(id="h1", vteps=("192.0.2.1", "2001:db8::1"), applied=4))
    [status] = await client.statuses()
    assert (status.applied, status.time > 1e9) == (4, True)
    assert (await client.list("host")).revision == revision, "a heartbeat is no change of desired state"


async def test_what_an_operator_says_of_a_host_holds(client: Client) -> None:
    await client.put(record("host", "h1", writer="cli", epoch="", name="rack 1"))
    await client.put_status(HostStatus(id="h1", vteps=("192.0.2.1",)))
    host = await client.get("host", "h1")
    assert host is not None
    assert host.body == {"id": "h1", "name": "rack 1", "vteps": ["192.0.2.1"]}
    again = await client.put(record("host", "h1", writer="cli", epoch="", name="rack 1"))
    assert not again.changed, "declaring it again takes nothing away"
    await client.put(record("host", "h2", writer="cli", epoch="", vteps=["192.0.2.9"]))
    await client.put_status(HostStatus(id="h2", vteps=("192.0.2.2",)))
    host = await client.get("host", "h2")
    assert host is not None
    assert host.body == {"id": "h2", "vteps": ["192.0.2.9"]}


async def test_one_address_leads_to_one_host(client: Client) -> None:
    await client.put_status(HostStatus(id="h1", vteps=("192.0.2.1",)))
    with pytest.raises(Conflict, match=r"192\.0\.2\.1 belongs to host h1; delete that host first"):
        await client.put_status(HostStatus(id="h2", vteps=("192.0.2.1",)))
    await client.delete("host", "h1", writer="cli")
    await client.put_status(HostStatus(id="h2", vteps=("192.0.2.1",)))
    assert [status.id for status in await client.statuses()] == ["h2"]


async def test_a_writers_status_makes_no_host(client: Client) -> None:
    await client.put_status(HostStatus(id="neutron", ports=(PortStatus(id="p1", state="error", reason="no such"),)))
    assert (await client.list("host")).items == ()
    assert len(await client.statuses()) == 1


async def test_statuses_are_watched(client: Client) -> None:
    await client.put_status(HostStatus(id="h1", applied=1))
    async with contextlib.aclosing(client.watch_status()) as events:
        assert [event.kind for event in await until_sync(events)] == ["status", "sync"]
        await client.put_status(HostStatus(id="h1", applied=2))
        event = await anext(events)
        assert event.status is not None
        assert (event.status.id, event.status.applied) == ("h1", 2)


# Watching


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
        Client(controller.url, silence=0.5) as client,
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


# The store's troubles


async def test_a_full_disk_refuses_writes_but_serves_on(controller: Running, client: Client) -> None:
    await client.put(network("n1"))
    engine = controller.service.engine
    await engine._call(lambda: engine._db.execute("PRAGMA max_page_count = 1"))  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="the disk is full; free space"):
        await client.put(network("n9", name="x" * 1_000_000))
    assert len((await client.list("network")).items) == 1
    assert "disk is full" in (await client.health()).store
    await engine._call(lambda: engine._db.execute("PRAGMA max_page_count = 1000000"))  # type: ignore[attr-defined]
    await client.put(network("n2"))
    assert (await client.health()).store == "ok"


async def test_a_damaged_store_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("nonsense" * 100)
    with pytest.raises(StoreBroken, match="damaged"):
        async with running(config(tmp_path)):
            pass


async def test_an_address_in_use_is_named(tmp_path: Path, controller: Running) -> None:
    (tmp_path / "other").mkdir()
    taken = controller.url.removeprefix("http://")
    other = ControllerConfig(listen=taken, store=f"sqlite:{tmp_path / 'other' / 's.db'}", tls=False)
    with pytest.raises(InvalidInput, match=f"listen {taken}: "):
        async with running(other):
            pass


async def test_every_address_means_both_families(tmp_path: Path) -> None:
    everywhere = ControllerConfig(listen="[::]:0", store=f"sqlite:{tmp_path / 's.db'}", tls=False)
    async with running(everywhere) as controller:
        port_ = controller.url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            async with Client(f"http://{host}:{port_}") as client:
                assert (await client.health()).store == "ok"


async def test_a_stuck_watcher_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less waits than its queue may hold, but it takes nothing at all."""
    monkeypatch.setattr("headrace.controller.server.STUCK_AFTER", 0.05)
    async with running(config(tmp_path)) as controller, Client(controller.url) as client:
        await client.batch([network(f"n{number}", name="x" * 1_000_000) for number in range(12)])
        host, _, tcp = controller.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(tcp), limit=1024)
        writer.write(b"GET /v1/watch HTTP/1.1\r\nHost: x\r\n\r\n")
        await async_wait_until(lambda: controller.service.hub.watchers() == 1)
        await async_wait_until(lambda: controller.service.hub.watchers() == 0)
        writer.close()


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


async def test_not_found_is_an_error_of_its_own(client: Client) -> None:
    with pytest.raises(NotFound):
        await client._ask("GET", "/v1/networks/x", Record)
