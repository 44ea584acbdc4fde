"""Trunks: one workload with a port of its own and two sub-ports by VLAN tags, each on a network of another kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace.controller.desired import encode
from headrace.model import Network, Record, Segment
from headrace.testing.cloud import Cloud
from headrace.testing.topology import Topology
from headrace.testing.traffic import IMPATIENCE, Stream, Tap, opens, ping
from headrace.testing.vlan import Vlan, vlan_device
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, OUT, group, port, rule, subnet
from tests.netns.test_dhcp import SCRIPT

MTU = 1400
BLUE = Network(id="blue", segment=Segment(id=100), mtu=MTU)
RED = Network(id="red", segment=Segment(type="geneve", id=100), mtu=MTU)
GREEN = Network(id="green", segment=Segment(type="vlan", id=30, physical_network="physnet1"), mtu=MTU)
TRUNK = port("trunk", "blue", 1, "any")
ONE = port("one", "red", 11, "any", addresses=("10.1.0.1", "fd01::1"), parent="trunk", vlan=10)
TWO = port("two", "green", 12, "web", addresses=("10.2.0.1", "fd02::1"), parent="trunk", vlan=20)
PEERS = (
    port("blue2", "blue", 2, "any", host="h2"),
    port("red2", "red", 21, "any", host="h2", addresses=("10.1.0.2", "fd01::2")),
    port("red3", "red", 22, "any", addresses=("10.1.0.3", "fd01::3")),
)
GROUPS = (group("any", *ANY), group("web", *OUT, rule("80", "ingress", 6, 80), rule("ping", "ingress", 1)))
OUTSIDE = "10.2.0.200"


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """The trunk on h1, whose third network leads to a machine outside."""
    with Topology() as topology:
        outside = topology.host("outside")
        topology.link(topology.host("h1"), "phys", outside, "eth0")
        vlan_device(topology, outside, "eth0", "eth0.30", Vlan(30), addresses=[f"{OUTSIDE}/24"], mtu=MTU)
        with Cloud(topology, settings='physical_networks = {physnet1 = "phys"}') as made:
            made.put(BLUE, RED, GREEN, *GROUPS, TRUNK, ONE, TWO, *PEERS)
            inside = made["trunk"].namespace
            for sub in (ONE, TWO):
                name, own = (
                    f"eth0.{sub.vlan}",
                    [f"{address}/{64 if ':' in address else 24}" for address in sub.addresses],
                )
                vlan_device(topology, inside, "eth0", name, Vlan(sub.vlan or 0), mac=sub.mac, addresses=own, mtu=MTU)
            yield made


def test_all_three_networks_reach_the_workload_and_it_them(cloud: Cloud) -> None:
    trunk, outside = cloud["trunk"], cloud.topology.host("outside")
    for peer in PEERS:
        for address in peer.addresses:
            assert ping(trunk, address), address
    assert ping(trunk, OUTSIDE, size=MTU - 28)
    for client, server, address in (
        *((trunk, cloud["red2"], "10.1.0.2"), (cloud["red2"], trunk, "10.1.0.1")),
        *((cloud["red3"], trunk, "fd01::1"), (trunk, cloud["red3"], "10.1.0.3")),
        *((outside, trunk, "10.2.0.1"), (cloud["blue2"], trunk, "10.0.0.1")),
    ):
        assert opens(client, server, address, 80), address
        with Stream(client, server, address, 80) as stream:
            stream.advance()


def test_each_sub_port_has_its_own_groups_and_counters(cloud: Cloud) -> None:
    trunk, outside, host = cloud["trunk"], cloud.topology.host("outside"), cloud.hosts["h1"]
    assert not opens(outside, trunk, "10.2.0.1", 81, timeout=IMPATIENCE)
    assert ping(outside, "10.2.0.1")
    assert host.counters("two").to_port.packets
    assert host.reasons()["ACL_TO_PORT"]


def test_tags_of_nobody_go_nowhere(cloud: Cloud) -> None:
    host = cloud.hosts["h1"]
    before = host.reasons("trunk")["VLAN_TAGGED"]
    with Tap(cloud["trunk"].namespace, "eth0") as tap:
        tap.send(bytes.fromhex("ffffffffffff020000000001 8100000b 0806") + bytes(28))
    wait_until(lambda: host.reasons("trunk")["VLAN_TAGGED"] == before + 1)


def test_a_sub_port_is_configured_through_its_tag(cloud: Cloud) -> None:
    """By DHCP; the answer bears the tag, or the client would not hear it."""
    four = subnet("four", "red", "10.1.0.0/24", gateway="10.1.0.254")
    cloud.put(four)
    trunk, told = cloud["trunk"].namespace, cloud.topology.directory / "told"
    client = trunk.popen(["env", f"TOLD={told}", *f"busybox udhcpc -f -q -i eth0.10 -t 20 -T 1 -s {SCRIPT}".split()])
    try:
        wait_until(lambda: told.exists() and "event=bound" in told.read_text(), 15)
        assert "10.1.0.1" in told.read_text()
    finally:
        client.stop()
        cloud.delete(four)
    assert cloud.hosts["h1"].reasons("one")["PUNTED"]
    assert not cloud.hosts["h1"].reasons("trunk")["PUNTED"]


def test_what_a_host_says_of_its_trunk(cloud: Cloud) -> None:
    assert {cloud.says(name, "up").device for name in ("trunk", "one", "two")} == {TRUNK.device_name}
    host = cloud.hosts["h1"]
    assert host.names.ports[str(host.index("one"))].vlan == 10
    rows = {row["reason"]: row for row in host.show("reason", "list", "--port", f"{TRUNK.device_name}.10")}
    assert rows["PUNTED"]["packets"] == host.reasons("one")["PUNTED"]


def test_a_sub_port_follows_the_device_of_its_trunk(cloud: Cloud) -> None:
    trunk = cloud["trunk"]
    device = TRUNK.device_name
    trunk.host.run(f"ip link set {device} name away")
    for name in ("trunk", "one", "two"):
        assert cloud.says(name, "down").reason == f"device {device} is not there"
    trunk.host.run("ip link set away down")
    trunk.host.run(f"ip link set away name {device}")
    for name in ("trunk", "one", "two"):
        cloud.says(name, "up")
    assert ping(trunk, "10.1.0.2")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"parent": "nobody", "vlan": 5}, "its parent port nobody is not on this host; bind both to one"),
        ({"parent": "red2", "vlan": 5}, "its parent port red2 is not on this host; bind both to one"),
        ({"parent": "one", "vlan": 5}, "its parent port one is a sub-port itself; give it the trunk's own port"),
        ({"parent": "trunk", "vlan": 10}, "sub-port one of port trunk has VLAN 10; give it another"),
    ],
)
def test_what_no_trunk_can_carry_is_refused(cloud: Cloud, made: dict[str, Any], says: str) -> None:
    name = f"zzz-{made['parent']}"  # an id that was deleted stays so for its revisions
    bad = port(name, "blue", 99, "any", **made)
    put(cloud, Record(type="port", id=name, writer="neutron", revision=1, body=encode(bad)))
    try:
        assert cloud.says(name, "error").reason == says
        assert ping(cloud["trunk"], "10.1.0.2")
    finally:
        put(cloud, Record(type="port", id=name, writer="neutron", revision=2))
        cloud.settle()


def put(cloud: Cloud, record: Record) -> None:
    """As a writer that writes in any order: the controller asks nothing, and nobody waits."""
    cloud.ask(lambda client: client.batch([record]))
