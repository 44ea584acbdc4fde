"""Ports behind XDP: the same traffic, firewall and counters as on tc, and what cannot be on XDP says why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.datapath.attach import detach
from headrace.testing.clang import compile_bpf
from headrace.testing.cloud import HEADRACE, Cloud, CloudHost, Workload
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import IMPATIENCE, Stream, opens, ping, reaches, talks, tcp_pair, udp
from headrace.testing.vlan import SOURCE, Vlan, attach
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, OUT, rule

pytestmark = pytest.mark.needs("program:ethtool")

ROUNDS = 200
SIZE = 100
HEADERS = {4: 14 + 20 + 8, 6: 14 + 40 + 8}


@pytest.fixture(scope="module", params=[4, 6], ids=["v4", "v6"])
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """Hosts whose uplinks are on XDP, and a fabric that takes frames from there."""
    with Topology() as topology, Cloud(topology, families=[request.param], settings='uplink_hook = "xdp"') as made:
        for name in made.hosts:
            made.fabric.run(f"ethtool -K {name} gro on")
        yield made


@pytest.fixture
def scene(cloud: Cloud) -> Iterator[Scene]:
    with Scene(cloud, mtu=1430) as made:
        yield made


def flows(host: CloudHost, port: str) -> dict[str, dict[str, Any]]:
    """A port's flow entries by key."""
    command = [*HEADRACE, "flow", "list", "--port", port, "--run", str(host.directory / "run"), "-o", "json"]
    return {row["key"]: row for row in json.loads(host.namespace.run(command).stdout)}


def said(cloud: Cloud, port: str) -> str:
    """The reason that a port's host gives with its state."""
    statuses = cloud.ask(lambda client: client.statuses())
    return next(told.reason for status in statuses for told in status.ports if told.id == port)


@pytest.mark.parametrize("hooks", [("xdp", "xdp"), ("xdp", "tc"), ("tc", "xdp")], ids="-".join)
@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h1", "h1")], ids=["across", "local"])
def test_traffic_and_counters_are_those_of_tc(scene: Scene, hosts: tuple[str, str], hooks: tuple[str, str]) -> None:
    ends = zip("ab", (1, 2), hosts, hooks, strict=True)
    scene.put(scene.group("g", *ANY), *(scene.port(name, n, "g", host=host, hook=hook) for name, n, host, hook in ends))
    a, b = scene["a"], scene["b"]
    assert said(scene.cloud, a.port.id) == said(scene.cloud, b.port.id) == ""
    for family in (4, 6):
        assert ping(a, b.address(family), count=3)
        exchange(a, b, family)
        with Stream(a, b, b.address(family), 80) as stream:
            stream.advance(blocks=200)
        for host in dict.fromkeys(hosts):
            (conn,) = (conn for conn in scene.connections(host) if conn.key[0].sport == 4000 + family)
            expected = ROUNDS, ROUNDS * (SIZE + HEADERS[family])
            assert [(one.packets, one.octets) for one in conn.counter] == [expected, expected]


def exchange(a: Workload, b: Workload, family: int) -> None:
    """Datagrams there and back, all of which arrive."""
    with udp(a, a.address(family), 4000 + family) as here, udp(b, b.address(family), 5000) as there:
        for _ in range(ROUNDS):
            here.sendto(bytes(SIZE), there.getsockname()[:2])
            there.recv(2000)
            there.sendto(bytes(SIZE), here.getsockname()[:2])
            here.recv(2000)


def test_a_flow_says_that_xdp_replays_it(scene: Scene) -> None:
    scene.put(
        scene.group("g", *ANY), scene.port("a", 1, "g", hook="xdp"), scene.port("b", 2, "g", host="h2", hook="xdp")
    )
    a, b = scene["a"], scene["b"]
    h1, h2 = scene.cloud.hosts["h1"], scene.cloud.hosts["h2"]
    with udp(a, a.address(), 4000) as here, udp(b, b.address(), 4001) as there:
        walked = h1.counters(a.port.id).walked
        for _ in range(20):
            assert reaches(here, there)
            assert reaches(there, here)
        assert h1.counters(a.port.id).walked.packets - walked.packets <= 3
    for host, port in ((h1, a.port.id), (h2, b.port.id)):
        rows = flows(host, port)
        assert {row["hook"] for row in rows.values()} == {"xdp"}, rows
        assert all(row["decided"] for row in rows.values())


def test_rules_act_at_once_there_too(scene: Scene) -> None:
    web, other = rule("web", "ingress", 6, 80), rule("other", "ingress", 6, 81)
    ports = scene.port("a", 1, "g", hook="xdp"), scene.port("b", 2, "g", host="h2", hook="xdp")
    scene.put(scene.group("g", *OUT, web, other), *ports)
    a, b = scene["a"], scene["b"]
    with tcp_pair(a, b, b.address(), 80) as cut, tcp_pair(a, b, b.address(), 81) as kept:
        assert talks(*cut)
        assert talks(*kept)
        scene.put(scene.group("g", *OUT, other))
        assert not talks(*cut, timeout=IMPATIENCE)
        assert talks(*kept)
    assert not opens(a, b, b.address(), 80, timeout=IMPATIENCE)


def test_agents_are_replaced_under_traffic_on_xdp(scene: Scene) -> None:
    scene.put(
        scene.group("g", *ANY), scene.port("a", 1, "g", hook="xdp"), scene.port("b", 2, "g", host="h2", hook="xdp")
    )
    a, b = scene["a"], scene["b"]
    with Stream(a, b, b.address(), 80) as stream:
        for host in scene.cloud.hosts.values():
            host.kill()
        stream.advance()
        for host in scene.cloud.hosts.values():
            host.start()
        scene.cloud.settle()
        stream.advance()
    assert said(scene.cloud, a.port.id) == ""


def test_an_uplink_that_takes_tags_off_stays_on_tc(scene: Scene) -> None:
    """XDP would take a frame of another VLAN for an untagged one."""
    ports = scene.port("a", 1, "g", hook="xdp"), scene.port("b", 2, "g", host="h2", hook="xdp")
    scene.put(scene.group("g", *ANY), *ports)
    host = scene.cloud.hosts["h1"]
    hidden = "device uplink: uplink takes VLAN tags off before XDP sees them, so it stays on tc"
    a, b = scene["a"], scene["b"]

    def on_xdp() -> bool:
        return "prog/xdp" in host.namespace.run("ip link show dev uplink").stdout

    with Stream(a, b, b.address(), 80) as stream:
        for rxvlan, why in (("on", hidden), ("off", "")):
            stream.advance()
            host.namespace.run(f"ethtool -K uplink rxvlan {rxvlan}")
            wait_until(lambda: on_xdp() == (not why), what="the agent saw it")  # noqa: B023 - called within the round
            wait_until(lambda: said(scene.cloud, a.port.id)[: len(hidden)] == why, what="it is told")  # noqa: B023
            stream.advance()
        host.stop()
        host.namespace.run("ethtool -K uplink rxvlan on")
        host.start()
        scene.cloud.settle()
        assert said(scene.cloud, a.port.id).startswith(hidden)
        assert not on_xdp()
        stream.advance()
        host.namespace.run("ethtool -K uplink rxvlan off")
        wait_until(lambda: not said(scene.cloud, a.port.id), what="it is as it was")


def test_a_tag_that_xdp_did_not_see_is_seen_by_tc(scene: Scene) -> None:
    """The fabric keeps it beside the frame, and XDP takes the outer headers off: still nobody takes it for untagged."""
    scene.put(scene.group("g", *ANY), scene.port("a", 1, "g"), scene.port("b", 2, "g", host="h2"))
    a, b = scene["a"], scene["b"]
    h1, h2, fabric = scene.cloud.hosts["h1"], scene.cloud.hosts["h2"], scene.cloud.fabric
    assert ping(a, b.address(), count=2)
    topology = scene.cloud.topology
    pins, program = topology.bpffs(), compile_bpf(SOURCE, topology.directory, "vlan")
    way = h2.namespace.host, h1.namespace.host
    with udp(b, b.address(), 4000) as there, udp(a, a.address(), 4001) as here:
        assert reaches(there, here)
        assert reaches(here, there)
        before = h1.reasons()["VLAN_TAGGED"]
        attach(fabric, program, "tag", way, Vlan(5), pins)
        assert not reaches(there, here)
        assert h1.reasons()["VLAN_TAGGED"] > before
        with fabric.enter():
            detach(pins / "tag")
        assert reaches(there, here)


def test_a_workload_that_xdp_cannot_serve_is_on_tc_and_says_so(scene: Scene) -> None:
    """It sends super-packets and leaves checksums to the device; XDP would send them on broken."""
    scene.put(scene.group("g", *ANY), scene.port("b", 2, "g", host="h2"))
    port = scene.port("a", 1, "g", device=f"tapx{scene.number}", hook="xdp")
    host, workload = scene.cloud.hosts["h1"].namespace, scene.cloud.topology.host(f"unfit{scene.number}")
    scene.cloud.plugged.add(port.id)
    pair = f"name {port.device_name} mtu 1430 netns {host.name} type veth peer name eth0 mtu 1430"
    host.run(f"ip link add {pair} address {port.mac} netns {workload.name}")
    workload.run(f"ip address add {port.addresses[0]}/24 dev eth0")
    workload.run("ip link set eth0 up")
    scene.put(port)
    assert "tx-tcp-segmentation on" in said(scene.cloud, port.id)
    b = scene["b"]
    assert ping(workload, b.address())
    with Stream(workload, b, b.address(), 80) as stream:
        stream.advance(blocks=500)
