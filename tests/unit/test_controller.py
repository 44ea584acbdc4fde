"""The controller's rules, over its real HTTP interface on loopback."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.controller.client import Client
from headrace.controller.config import ControllerConfig
from headrace.controller.serve import Running, notify, running
from headrace.errors import Conflict, InvalidInput, NotFound, Unavailable, UnknownField
from headrace.model import HostStatus, PortStatus, Record
from headrace.store import StoreBroken
from headrace.testing.record import config, gone, network, port, record
from headrace.testing.wait import async_wait_until


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(config(tmp_path)) as controller:
        yield controller


@pytest.fixture
async def client(controller: Running) -> AsyncIterator[Client]:
    async with Client(controller.url) as client:
        yield client


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
    await client.put(network("n3", writer="cli", epoch="", segment={"id": 8}))
    answer = await client.resync("neutron", "w2", ["network", "port"], [("network", "n1")])
    assert answer.changed
    assert [item.id for item in (await client.list("network")).items] == ["n1", "n3"]
    assert (await client.list("port")).items == (), (
        "deleting a network in use is right when its writer says what there is"
    )
    assert [item.id for item in (await client.list("subnet")).items] == ["s1"], "a type not named is left alone"
    assert not (await client.put(network("n2", epoch="w2", revision=1))).changed, "tombstone"


# Bad input


async def test_a_segment_has_one_network(client: Client) -> None:
    await client.put(network("n1", writer="cli", epoch=""))
    with pytest.raises(Conflict, match="network n2: segment: network n1 has vxlan 7 already"):
        await client.put(network("n2", writer="cli", epoch=""))
    await client.put(network("n1", writer="cli", epoch="", mtu=1400))


async def test_one_number_is_many_segments(client: Client) -> None:
    """The wire is part of what a segment is, and so are physical network and outer tag; a transport left out is one."""
    segments: list[dict[str, object]] = [
        {"id": 17},
        {"type": "geneve", "id": 17},
        {"type": "mpls", "id": 17},
        {"type": "mpls", "id": 17, "transport": "gre"},
        {"type": "vlan", "id": 17, "physical_network": "a"},
        {"type": "vlan", "id": 17, "physical_network": "b"},
        {"type": "vlan", "id": 17, "physical_network": "a", "service_vlan": 5},
        {"type": "flat", "physical_network": "a"},
    ]
    for number, segment in enumerate(segments):
        await client.put(network(f"n{number}", writer="cli", epoch="", segment=segment))
    for taken, name in (
        ({"type": "mpls", "id": 17, "transport": "udp"}, "network n2 has mpls-udp 17"),
        ({"type": "flat", "physical_network": "a"}, "network n7 has flat on a"),
        (segments[6], "network n6 has qinq 5.17 on a"),
    ):
        with pytest.raises(Conflict, match=f"network n: segment: {name} already; give another"):
            await client.put(network("n", writer="cli", epoch="", segment=taken))


def member(id_: str, **body: Any) -> Record:
    return port(id_, writer="cli", epoch="", **body)


async def test_a_person_s_trunks_are_right(client: Client) -> None:
    """Sub-ports come with or after their parents, once each, on their hosts, by tags of their own; and go first."""
    for host in ("h1", "h2"):
        await client.put(record("host", host, writer="cli", epoch="", vteps=[f"192.0.2.{host[1]}"]))
    await client.batch([member("s1", parent="p1", vlan=5, host="h1"), member("p1", host="h1")])
    await client.put(member("p2", host="h2"))
    for wrong, words in (
        (member("s2", parent="p9", vlan=6), "port s2: parent: unknown port 'p9'"),
        (member("s2", parent="s1", vlan=6), "port s2: parent: port s1 is a sub-port itself, of p1"),
        (member("s2", parent="p1", vlan=5), "port s2: vlan: port s1 has 5 on p1 already"),
        (member("s2", parent="p1", vlan=6, host="h2"), "port s2: host: its parent p1 is on h1"),
        (member("p1", parent="p2", vlan=6, host="h2"), "port s1: parent: port p1 is a sub-port itself, of p2"),
        (member("p1", host="h2"), "port s1: host: its parent p1 is on h2"),
        (member("s2", parent="p1"), "port s2: a sub-port has both a parent and a vlan"),
    ):
        with pytest.raises(InvalidInput, match=words):
            await client.put(wrong)
    with pytest.raises(Conflict, match="port p1: port s1 is its sub-port; delete that first"):
        await client.delete("port", "p1", writer="cli")
    await client.batch([member("p1", host="h2"), member("s1", parent="p1", vlan=5, host="h2")])
    await client.put(member("s1", host="h1"))
    await client.delete("port", "p1", writer="cli")


async def test_another_writer_s_sub_port_may_come_before_its_parent(client: Client) -> None:
    await client.put(port("s1", parent="p1", vlan=5))
    await client.put(port("p1"))
    assert {item.id for item in (await client.list("port")).items} == {"p1", "s1"}


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (port("p1", mca="x"), UnknownField, "port p1: .*`mca`.*did you mean `mac`"),
        (port("p1", mac=5), InvalidInput, r"port p1: Expected `str`, got `int` - at `\$.mac`"),
        (port("p1", mac="01:00:00:00:00:01"), InvalidInput, "port p1: mac 01:00:00:00:00:01 is a multicast"),
        (port("p1", addresses=["10.0.0.300"]), InvalidInput, "port p1: addresses: '10.0.0.300'"),
        (record("port", "p1", mac="02:00:00:00:00:01"), InvalidInput, "port p1: .*missing required field `network`"),
        (network("n1", segment={"id": 1 << 24}), InvalidInput, "network n1: .*VNI.* out of range.*segment"),
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
