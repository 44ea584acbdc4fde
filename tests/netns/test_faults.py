"""What may befall a host, its controller and their disks, under a TCP stream that must not break."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import abi
from headrace.errors import StoreFull
from headrace.model import AddressGroup
from headrace.testing.cloud import HEADRACE, Cloud, CloudHost
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import Stream, opens, talks, tcp_pair
from headrace.testing.wait import wait_until
from headrace.testing.world import OUT, rule

WEB = rule("web", "ingress", 6, 80, 81)
PAUSE = 0.002
STORE_OCTETS = 8 << 20
MOST_GROUPS = 250


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """A controller as in production, with its database on a disk of its own."""
    with (
        Topology() as topology,
        Cloud(topology, secure=True, store=topology.small_disk("disk", STORE_OCTETS)) as made,
    ):
        yield made


@pytest.fixture
def scene(cloud: Cloud) -> Iterator[Scene]:
    """A network for one test, which may kill whom it likes."""
    with Scene(cloud) as made:
        yield made
        for host in cloud.hosts.values():
            if host.agent is None or host.agent.poll() is not None:
                host.start()
        cloud.settle()


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """No room on a disk, not for an octet."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 4096, 512, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        yield
    finally:
        ballast.unlink()


def killed_while_writing(host: CloudHost) -> bool:
    """Kill the agent in the middle of an apply, if it can be caught there."""
    table = host.datapath.maps["hr_applying"]

    def writes() -> bool:
        return any(table.lookup(bytes(4)) or b"")

    with contextlib.suppress(TimeoutError):
        deadline = os.times().elapsed + 3
        while not writes() and os.times().elapsed < deadline:
            pass
    host.kill()
    return writes()


def test_an_agent_killed_in_the_middle_of_an_apply(scene: Scene) -> None:
    """What it left half-written is forwarded by; the next one completes it, and has every flow decided again."""
    a, b = scene.pair(*OUT, WEB)
    host = scene.cloud.hosts["h2"]
    many = [
        rule(f"r{number}", "ingress", 17, number, remote_cidr=f"10.{number >> 8}.{number & 255}.0/24")
        for number in range(1500)
    ]
    with Stream(a, b, b.address(), 80, pause=PAUSE) as stream:
        for attempt in range(6):
            before = host.datapath.epoch(host.index(b.port.id))
            rules = (*OUT, WEB) if attempt % 2 else (*OUT, WEB, *many)
            scene.write(scene.group("g", *rules))
            caught = killed_while_writing(host)
            stream.advance()
            host.start()
            scene.cloud.settle()
            stream.advance()
            if caught:
                break
        assert caught, "never caught while it wrote"
        assert host.datapath.epoch(host.index(b.port.id)) > before
        assert not any(host.datapath.maps["hr_applying"].lookup(bytes(4)) or b"")
        verify = [*HEADRACE, "host", "verify", "--run", str(host.directory / "run")]
        host.namespace.run(verify)
        assert opens(a, b, b.address(), 81)


def refusal(scene: Scene, item: AddressGroup) -> StoreFull | None:
    """Why the controller does not take an object."""
    try:
        scene.write(item)
    except StoreFull as error:
        return error
    return None


def test_a_full_store_refuses_writes_and_nothing_else(scene: Scene) -> None:
    """Reads and watches go on, also for an agent that starts meanwhile; with room again so does writing."""
    a, b = scene.pair(*OUT, WEB)
    cloud, host = scene.cloud, scene.cloud.hosts["h1"]

    def group(number: int) -> AddressGroup:
        return AddressGroup(id=scene.id(f"big{number}"), addresses=tuple(f"10.{number}.{n}.0/24" for n in range(250)))

    with Stream(a, b, b.address(), 80, pause=PAUSE) as stream:
        with full(cloud.store.parent):
            refused: StoreFull | None = None
            number = 0
            while refused is None and number < MOST_GROUPS:
                refused = refusal(scene, group(number))
                number += 1
            assert "the disk is full; free space, then it goes on by itself" in str(refused)
            assert scene.id("b") in cloud.headrace("port", "list", "-o", "json")
            assert "the disk is full" in cloud.ask(lambda client: client.health()).store
            host.kill()
            host.start()
            wait_until(
                lambda: host.agent and "this host's word is not kept meanwhile" in host.agent.output(), 15, "reached"
            )
            wait_until(lambda: host.agent and "state=up" in host.agent.output(), 15, "the ports are up")
            stream.advance()
            assert opens(a, b, b.address(), 81)
        scene.put(scene.port("c", 3, "g"))
        assert opens(scene["c"], b, b.address(), 81)
        assert cloud.ask(lambda client: client.health()).store == "ok"
        stream.advance()


def test_an_agent_whose_disks_are_full(cloud: Cloud) -> None:
    """It applies what comes; what it could not keep it keeps when there is room."""
    host = cloud.hosts["h2"]
    before = host.config.read_text()
    disk = cloud.topology.small_disk("agents", 1 << 20)
    host.stop()
    text = before.replace(str(host.directory / "cache"), str(disk)).replace(str(host.directory / "run"), str(disk))
    host.config.write_text(text)
    host.start()
    cloud.settle()
    try:
        with Scene(cloud) as scene:
            a, b = scene.pair(*OUT, WEB)
            with Stream(a, b, b.address(), 80, pause=PAUSE) as stream:
                with full(disk):
                    scene.put(scene.group("g", *OUT, WEB, rule("other", "ingress", 6, 90)), scene.port("c", 3, "g"))
                    assert opens(scene["c"], b, b.address(), 90)
                    stream.advance()
                assert host.agent
                assert "desired state cannot be kept" in host.agent.output()
                wait_until(lambda: scene.id("g-other") in (disk / "desired.json").read_text(), 15, "it is kept")
                assert host.agent.poll() is None
                stream.advance()
    finally:
        host.stop()
        host.config.write_text(before)
        host.start()
        cloud.settle()


def test_a_device_that_goes_and_comes_back_under_a_stream(scene: Scene) -> None:
    """With the same name and another ifindex; the connection is the same."""
    a, b = scene.pair(*OUT, WEB)
    host = scene.cloud.hosts["h1"]
    with Stream(a, b, b.address(), 80, pause=PAUSE) as stream:
        (conn,) = (conn for conn in scene.connections("h1") if conn.key[0].proto == 6)
        before = host.namespace.ifindex(a.port.device_name)
        a.unplug()
        a.plug()
        scene.cloud.settle()
        assert host.namespace.ifindex(a.port.device_name) != before
        stream.advance(timeout=20)
        assert conn.id in {found.id for found in scene.connections("h1")}
        assert not any(found.flags & abi.ConnFlag.ADOPTED for found in scene.connections("h1"))


def test_a_gateway_that_changes(scene: Scene) -> None:
    """One router of the underlay takes over from another, which is gone."""
    a, b = scene.pair(*OUT, WEB)
    cloud, host = scene.cloud, scene.cloud.hosts["h1"]
    far = cloud.underlay(2)[0].partition("/")[0]
    for number in (101, 102):
        router = cloud.topology.host(f"r{number}")
        cloud.join(router, "eth0", number)
        for key, value in (("ip_forward", 1), ("conf.all.send_redirects", 0), ("conf.eth0.send_redirects", 0)):
            router.sysctl(f"net.ipv4.{key}", value)
    first, second = (cloud.underlay(number)[0].partition("/")[0] for number in (101, 102))
    host.namespace.run(f"ip route replace {far}/32 via {first}")
    try:
        with Stream(a, b, b.address(), 80, pause=PAUSE) as stream, tcp_pair(a, b, b.address(), 81) as ends:
            router = cloud.topology.host("r101")
            wait_until(
                lambda: router.ip("-s link show dev eth0")[0]["stats64"]["rx"]["packets"] > 100, 10, "by the first"
            )
            host.namespace.run(f"ip route replace {far}/32 via {second}")
            router.run("ip link set eth0 down")
            stream.advance()
            assert talks(*ends)
            host.namespace.run(f"ip route delete {far}/32")
            stream.advance()
    finally:
        host.namespace.run(f"ip route delete {far}/32", check=False)
