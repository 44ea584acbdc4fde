"""Ports and uplinks on XDP: replays there, walks in tc, and ports that XDP does not suit stay on tc and say so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace.datapath.libbpf import RunStatistics
from headrace.testing.cloud import Cloud, Workload
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology, run
from headrace.testing.traffic import Stream, opens, ping
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """Two hosts whose uplinks are on XDP."""
    with Topology() as topology, Cloud(topology, settings='uplink_hook = "xdp"\n') as made:
        for host in made.hosts.values():  # a veth takes XDP frames while its other end polls
            made.fabric.run(["ethtool", "-K", host.namespace.host, "gro", "on"])
        yield made


def make_plain(workload: Workload) -> None:
    """Whole checksums, no super-packets, and an end that takes XDP frames."""
    features = ["tx", "off", "tso", "off", "gso", "off", "gro", "on"]
    workload.namespace.run(["ethtool", "-K", "eth0", *features])


def plain_pair(scene: Scene) -> tuple[Workload, Workload]:
    """Ports a and b, on XDP once their workloads are fit for it."""
    a, b = scene.pair(*ANY)
    for workload in (a, b):
        make_plain(workload)
    ports = [
        scene.port(name, number, "g", host=host, hook="xdp") for name, number, host in (("a", 1, "h1"), ("b", 2, "h2"))
    ]
    scene.put(*ports)
    return a, b


def reason_of(cloud: Cloud, port: str) -> str:
    """What the hosts say of a port."""
    statuses = cloud.ask(lambda client: client.statuses())
    return next(said.reason for status in statuses for said in status.ports if said.id == port)


def hooks(cloud: Cloud, host: str) -> str:
    """Devices of a host with the programs on them, as iproute2 shows them."""
    return run(["ip", "-n", cloud.hosts[host].namespace.name, "-d", "link"]).stdout


def walked(cloud: Cloud, scene: Scene) -> int:
    """Packets of a that took the walk."""
    return cloud.hosts["h1"].counters(scene.id("a")).walked.packets


def test_xdp_carries_both_families_and_tcp(cloud: Cloud, scene: Scene) -> None:
    a, b = plain_pair(scene)
    assert reason_of(cloud, scene.id("a")) == ""
    for family in (4, 6):
        assert ping(a, b.address(family), count=3)
        assert opens(a, b, b.address(family), 80 + family)
    with Stream(a, b, b.address(), 99) as stream:
        stream.advance()


def test_xdp_replays_and_only_first_packets_walk(cloud: Cloud, scene: Scene) -> None:
    a, b = plain_pair(scene)
    assert ping(a, b.address())  # the flow is known from here on
    before = walked(cloud, scene)
    counted = cloud.hosts["h1"].counters(scene.id("a")).from_port.packets
    assert "xdp" in hooks(cloud, "h1")
    with RunStatistics():
        assert ping(a, b.address(), count=10)
    assert cloud.hosts["h1"].counters(scene.id("a")).from_port.packets >= counted + 10
    assert walked(cloud, scene) <= before + 2  # each ping is a connection of its own


def test_a_rule_taken_away_cuts_what_xdp_replays(cloud: Cloud, scene: Scene) -> None:
    a, b = plain_pair(scene)
    with Stream(a, b, b.address(), 98) as stream:
        stream.advance()
        scene.put(scene.group("g"))
        wait_until(lambda: cloud.hosts["h2"].reasons(scene.id("b"))["CONNECTION_CUT"]
                   or cloud.hosts["h1"].reasons(scene.id("a"))["CONNECTION_CUT"], what="a connection cut")  # fmt: skip


def test_a_port_whose_workload_leaves_checksums_to_the_device_stays_on_tc(cloud: Cloud, scene: Scene) -> None:
    a, b = scene.pair(*ANY)
    scene.put(scene.port("a", 1, "g", host="h1", hook="xdp"))
    assert "tx-checksum-ip-generic on" in reason_of(cloud, scene.id("a"))
    assert opens(a, b, b.address(), 80)


def test_ports_on_tc_behind_an_uplink_on_xdp(cloud: Cloud, scene: Scene) -> None:
    a, b = scene.pair(*ANY)
    for family in (4, 6):
        assert ping(a, b.address(family), count=3)
        assert opens(a, b, b.address(family), 90 + family)
