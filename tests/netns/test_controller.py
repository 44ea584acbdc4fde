"""Agents and a real controller with mutual TLS: nothing is up before it is applied, nobody's absence stops traffic."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.controller.client import Client
from headrace.controller.identity import Files
from headrace.errors import Denied, HeadraceError
from headrace.model import HostStatus
from headrace.testing.cloud import HEADRACE, Cloud
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import IMPATIENCE, Stream, opens, ping
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, OUT, rule

WEB = rule("web", "ingress", 6, 80)


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with Topology() as topology, Cloud(topology, secure=True) as made:
        yield made


@pytest.fixture
def scene(cloud: Cloud) -> Iterator[Scene]:
    """A network for one test, which may kill whom it likes."""
    with Scene(cloud) as made:
        yield made
        if cloud.controller is None or cloud.controller.poll() is not None:
            cloud.start_controller()
        for host in cloud.hosts.values():
            if host.agent is None or host.agent.poll() is not None:
                host.start()
        cloud.settle()


def listed(cloud: Cloud, what: str) -> dict[str, dict[str, Any]]:
    """What an operator is shown, by id."""
    return {row["id"]: row for row in json.loads(cloud.headrace(what, "list", "-o", "json"))}


def test_hosts_and_ports_as_an_operator_sees_them(scene: Scene) -> None:
    a, b = scene.pair()
    hosts, ports = listed(scene.cloud, "host"), listed(scene.cloud, "port")
    assert {host["state"] for host in hosts.values()} == {"alive"}
    assert hosts["h2"]["vteps"] == [address.partition("/")[0] for address in scene.cloud.underlay(2)]
    assert hosts["h1"]["applied"] == hosts["h1"]["revision"]
    assert {ports[port.port.id]["state"] for port in (a, b)} == {"up"}
    assert ping(a, b.address())


def test_a_port_is_up_only_when_its_host_has_it(scene: Scene) -> None:
    cloud, host = scene.cloud, scene.cloud.hosts["h1"]
    scene.pair()
    host.kill()
    scene.put(scene.port("c", 3, "g"))
    row = listed(cloud, "port")[scene.id("c")]
    assert row["state"] != "up"
    assert not ping(scene["c"], scene["b"].address(), patience=IMPATIENCE)
    host.start()
    wait_until(lambda: listed(cloud, "port")[scene.id("c")]["state"] == "up", 15, "the port is up")
    # c's own kernel may just be giving up on the neighbour that it looked for in vain.
    wait_until(lambda: ping(scene["c"], scene["b"].address(), patience=IMPATIENCE), what="c has found its neighbour")


def test_a_port_without_a_device_is_down_and_says_why(scene: Scene) -> None:
    cloud = scene.cloud
    a, _ = scene.pair()
    a.unplug()
    wait_until(lambda: listed(cloud, "port")[a.port.id]["state"] == "down", 15, "the port is down")
    assert a.port.device_name in listed(cloud, "port")[a.port.id]["reason"]
    a.plug()
    wait_until(lambda: listed(cloud, "port")[a.port.id]["state"] == "up", 15, "the port is up")


def test_traffic_and_later_changes_survive_the_controllers_death(scene: Scene) -> None:
    a, b = scene.pair(*OUT, WEB)
    with Stream(a, b, b.address(), 80) as stream:
        scene.cloud.kill_controller()
        stream.advance()
        scene.cloud.start_controller()
        scene.put(scene.group("g", *OUT, WEB, rule("other", "ingress", 6, 81)))
        assert opens(a, b, b.address(), 81)
        stream.advance()
        scene.put(scene.group("g", *OUT, rule("other", "ingress", 6, 81)))
        received = stream.received
        with contextlib.suppress(TimeoutError):
            stream.advance(timeout=IMPATIENCE)
        assert stream.received - received < 20, "the connection was cut"


def test_a_change_while_an_agent_is_down_is_made_at_its_start(scene: Scene) -> None:
    a, b = scene.pair(*OUT, WEB)
    host = scene.cloud.hosts["h2"]
    assert host.stop() == 0
    scene.put(scene.group("g", *OUT, rule("other", "ingress", 6, 81)))
    assert opens(a, b, b.address(), 80)
    host.start()
    scene.cloud.settle()
    assert not opens(a, b, b.address(), 80, timeout=IMPATIENCE)
    assert opens(a, b, b.address(), 81)


def test_an_agent_starts_without_its_controller(scene: Scene) -> None:
    """From what it kept: a device that was made anew is found, and the port forwards."""
    a, b = scene.pair()
    host = scene.cloud.hosts["h1"]
    scene.cloud.kill_controller()
    host.kill()
    a.unplug()
    a.plug()
    assert not ping(a, b.address(), patience=IMPATIENCE)
    host.start()
    wait_until(lambda: ping(a, b.address(), patience=IMPATIENCE), 15, "the port forwards")
    assert host.agent
    assert "starting from desired state kept" in host.agent.output()
    assert "forwarding on with what is known" in host.agent.output()


def test_a_lost_database_takes_nothing_from_a_running_host(scene: Scene) -> None:
    """An empty controller is not believed; one that is told everything again is followed."""
    a, b = scene.pair()
    cloud = scene.cloud
    with Stream(a, b, b.address(), 80) as stream:
        cloud.kill_controller()
        for path in cloud.topology.directory.glob("store.db*"):
            path.unlink()
        cloud.start_controller()
        wait_until(lambda: len(listed(cloud, "host")) == len(cloud.hosts), 15, "the hosts have reported")
        stream.advance()
        assert opens(a, b, b.address(6), 81)
        cloud.put(*cloud.objects.values())
        stream.advance()
        scene.put(scene.group("g", *OUT, WEB))
        stream.advance()
        assert not opens(a, b, b.address(), 81, timeout=IMPATIENCE)


def test_a_host_speaks_for_itself_only(cloud: Cloud) -> None:
    identity = Files.at(cloud.topology.directory / "identity-h1", "host")

    async def ask(status: HostStatus) -> None:
        async with Client(cloud.url, tls=identity) as client:
            await client.put_status(status)

    with cloud.fabric.enter(), pytest.raises(Denied, match="h1"):
        asyncio.run(ask(HostStatus(id="h2")))


def test_a_stranger_is_not_heard(cloud: Cloud, tmp_path: Path) -> None:
    """A certificate of another authority, and plain HTTP."""
    from headrace.controller.identity import Authority

    other = Authority.create(tmp_path / "pki")
    forged = other.issue(tmp_path / "forged", "client", "operator", "cli")
    Path(forged.authority).write_bytes((cloud.topology.directory / "pki" / "ca.crt").read_bytes())

    async def ask(url: str, tls: Files | None) -> None:
        async with Client(url, tls=tls) as client:
            await client.list("port")

    with cloud.fabric.enter():
        for url in (cloud.url, cloud.url.replace("https", "http")):
            with pytest.raises(HeadraceError):
                asyncio.run(ask(url, forged))


def test_enrolling_again_renews_an_identity_in_place(cloud: Cloud) -> None:
    directory = cloud.topology.directory / "identity-h1"
    before = (directory / "host.crt").read_bytes()
    words = ["host", "enroll", "--renew", "--certificates", str(directory), "--controller", cloud.url]
    cloud.fabric.run([*HEADRACE, *words])
    assert (directory / "host.crt").read_bytes() != before
    host = cloud.hosts["h1"]
    host.stop()
    host.start()
    cloud.settle()


def test_everything_reaches_a_host_that_comes_late(scene: Scene) -> None:
    host = scene.cloud.hosts["h2"]
    host.stop()
    scene.put(scene.group("g", *ANY), scene.port("a", 1, "g"), scene.port("b", 2, "g", host="h2"))
    host.start()
    scene.cloud.settle()
    assert ping(scene["a"], scene["b"].address())
