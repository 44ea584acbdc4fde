"""What an operator does to a host that carries workloads: install, drain, uninstall. Streams go on throughout."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from headrace import abi
from headrace.testing.cloud import HEADRACE, Cloud, Workload
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import Stream, opens
from headrace.testing.wait import wait_until
from headrace.testing.world import OUT, rule

WEB = rule("web", "ingress", 6, 80)


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """A controller with TLS, so that `headrace host list` is as in production."""
    with Topology() as topology, Cloud(topology, secure=True) as made:
        yield made


def test_installed_under_running_workloads_and_taken_off_again(cloud: Cloud) -> None:
    """Two workloads on a plain bridge are given to Headrace, and given back, under one TCP connection."""
    host = cloud.hosts["h1"]
    with Scene(cloud) as scene:
        ports = [scene.port(name, number, "g") for number, name in enumerate("ab", 1)]
        a, b = (Workload(cloud.topology, host.namespace, port, scene.network.mtu) for port in ports)
        cloud.workloads |= {end.port.id: end for end in (a, b)}
        devices = [end.port.device_name for end in (a, b)]
        host.namespace.run("ip link add plain type bridge")
        for name in ("plain", *devices):
            host.namespace.run(f"ip link set {name} up")
        for name in devices:
            host.namespace.run(f"ip link set {name} master plain")
        with Stream(a, b, b.address(), 80, pause=0.002) as stream:
            scene.put(scene.group("g", *OUT, WEB), *ports)
            stream.advance()
            for name in devices:
                host.namespace.run(f"ip link set {name} nomaster")
            stream.advance()
            (conn,) = (conn for conn in scene.connections("h1") if conn.key[0].proto == 6)
            assert conn.flags & abi.ConnFlag.ADOPTED
            assert conn.state == abi.State.ESTABLISHED

            command = [*HEADRACE, "host", "uninstall", "--yes", "--config", str(host.config)]
            refused = host.namespace.run(command, check=False)
            assert "another agent runs the datapath" in refused.stderr
            stream.advance()
            assert host.stop() == 0
            for name in devices:
                host.namespace.run(f"ip link set {name} master plain")
            said = host.namespace.run(command).stdout
            assert all(f"device {name} is as it was" in said for name in (*devices, "uplink"))
            stream.advance()
        assert not host.bpf.exists()
        assert host.namespace.run("nft list tables").stdout == ""
        assert not any(entry.get("managed") for entry in host.namespace.ip("neighbour show dev uplink"))
        assert not list((host.directory / "run").iterdir())
        host.namespace.run("ip link delete plain")
        host.start()
        cloud.settle()
        assert opens(a, b, b.address(), 80)


def test_a_drained_host_says_so_until_it_is_told_otherwise(cloud: Cloud) -> None:
    """Also over a restart; what it carries is not concerned."""
    host = cloud.hosts["h2"]

    def shown() -> str:
        rows = json.loads(cloud.headrace("host", "list", "-o", "json"))
        return str(next(row["state"] for row in rows if row["id"] == "h2"))

    def drain(*options: str) -> None:
        host.namespace.run([*HEADRACE, "host", "drain", "--config", str(host.config), *options])

    with Scene(cloud) as scene:
        a, b = scene.pair()
        with Stream(a, b, b.address(), 80, pause=0.002) as stream:
            drain()
            wait_until(lambda: shown() == "drained", 10, "the host says that it is drained")
            host.kill()
            host.start()
            cloud.settle()
            assert shown() == "drained"
            stream.advance()
            host.kill()
            drain("--undo")
            host.start()
            cloud.settle()
            assert shown() == "alive"
            stream.advance()
