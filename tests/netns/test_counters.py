"""Packets and octets are exact: per flow on both hosts, per port, and not for what was dropped."""

from __future__ import annotations

import socket
import struct

import pytest

from headrace import abi
from headrace.testing.cloud import Workload
from headrace.testing.scene import Scene
from headrace.testing.traffic import PATIENCE, Tap, udp
from headrace.testing.wait import wait_until
from headrace.testing.world import ANY, OUT, rule

SIZES = (0, 1, 7, 64, 512, 1400)
ROUNDS = 50
HEADERS = {4: 14 + 20 + 8, 6: 14 + 40 + 8}
"""Ethernet, IP and UDP, octets."""
UDP_SEGMENT = 103


def exchange(a: Workload, b: Workload, family: int) -> tuple[socket.socket, socket.socket]:
    """Datagrams of all sizes there, one in three back; all of them have arrived."""
    here, there = udp(a, a.address(family), 4000), udp(b, b.address(family), 4001)
    for number in range(ROUNDS):
        for size in SIZES:
            here.sendto(bytes(size), there.getsockname()[:2])
            there.recv(2000)
        if number % 3 == 0:
            there.sendto(b"reply", here.getsockname()[:2])
            here.recv(2000)
    return here, there


def pair_of(counter: abi.ConnCounter | abi.Counter) -> tuple[int, int]:
    return counter.packets, counter.octets


def plain(scene: Scene, *hosts: str) -> tuple[Workload, Workload]:
    """Ports with IPv4 alone: their namespaces say nothing of their own accord."""
    ends = [
        scene.port(name, number, "g", host=host, addresses=(f"10.0.0.{number}",))
        for name, number, host in (("a", 1, hosts[0]), ("b", 2, hosts[1]))
    ]
    scene.put(scene.group("g", *ANY), *ends)
    return scene["a"], scene["b"]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h1", "h1")], ids=["across", "local"])
def test_a_flow_counts_what_was_sent_on_both_hosts(scene: Scene, hosts: tuple[str, str], family: int) -> None:
    a, b = scene.pair(hosts=hosts)
    here, there = exchange(a, b, family)
    with here, there:
        sent = ROUNDS * len(SIZES), ROUNDS * (sum(SIZES) + len(SIZES) * HEADERS[family])
        answers = len(range(0, ROUNDS, 3))
        for host in dict.fromkeys(hosts):
            (conn,) = (conn for conn in scene.connections(host) if conn.key[0].sport == 4000)
            assert pair_of(conn.counter[0]) == sent
            assert pair_of(conn.counter[1]) == (answers, answers * (HEADERS[family] + 5))


@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h1", "h1")], ids=["across", "local"])
def test_a_port_counts_what_it_sent_and_got(scene: Scene, hosts: tuple[str, str]) -> None:
    a, b = plain(scene, *hosts)
    here, there = exchange(a, b, 4)
    here.close()
    there.close()
    sent = ROUNDS * len(SIZES), ROUNDS * (sum(SIZES) + len(SIZES) * HEADERS[4])
    back = len(range(0, ROUNDS, 3)), len(range(0, ROUNDS, 3)) * (HEADERS[4] + 5)
    ours, theirs = (scene.cloud.hosts[host].counters(port.port.id) for host, port in zip(hosts, (a, b), strict=True))
    assert (pair_of(ours.from_port), pair_of(ours.to_port)) == (sent, back)
    assert (pair_of(theirs.from_port), pair_of(theirs.to_port)) == (back, sent)
    assert 1 <= ours.walked.packets <= 3  # the first each way, and the question for its neighbour


def test_what_is_dropped_counts_for_its_reason_only(scene: Scene) -> None:
    a, b = plain(scene, "h1", "h2")
    scene.put(scene.group("g", *OUT[1:], rule("dns", "egress", 17, 53)))
    with udp(a, a.address(), 4000) as here:
        for _ in range(25):
            here.sendto(b"no", (b.address(), 54))
    host = scene.cloud.hosts["h1"]
    wait_until(lambda: host.reasons(a.port.id)["ACL_FROM_PORT"] == 25, what="all are counted")
    assert pair_of(host.counters(a.port.id).from_port) == (0, 0)
    assert scene.connections("h1") == []


@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h1", "h1")], ids=["across", "local"])
def test_fragments_count_one_by_one(scene: Scene, hosts: tuple[str, str]) -> None:
    a, b = plain(scene, *hosts)
    with udp(a, a.address(), 4000) as here, udp(b, b.address(), 4001) as there, Tap(b.namespace, "eth0") as ear:
        here.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: IP_PMTUDISC_DONT
        for _ in range(5):
            here.sendto(bytes(4000), there.getsockname())
            assert len(there.recv(5000)) == 4000
        assert ear.heard(b"\x0f\xa0\x0f\xa1") is not None
    fragments = 3  # of 1424, 1424 and 1160 octets behind their IP headers
    octets = 4000 + 8 + fragments * (20 + 14)
    for host in dict.fromkeys(hosts):
        (conn,) = (conn for conn in scene.connections(host) if conn.key[0].sport == 4000)
        assert pair_of(conn.counter[0]) == (5 * fragments, 5 * octets)


def test_udp_super_packets_count_as_datagrams(scene: Scene) -> None:
    a, b = plain(scene, "h1", "h2")
    with udp(a, a.address(), 4000) as here, udp(b, b.address(), 4001) as there:
        here.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        here.sendto(bytes(9500), there.getsockname())
        assert [len(there.recv(20_000)) for _ in range(10)] == [1000] * 9 + [500]
    for host in ("h1", "h2"):
        (conn,) = (conn for conn in scene.connections(host) if conn.key[0].sport == 4000)
        assert pair_of(conn.counter[0]) == (10, 9500 + 10 * HEADERS[4])


@pytest.mark.parametrize("kind", ["broadcast", "multicast"])
def test_what_is_flooded_counts_once_where_it_was_sent_and_once_where_it_went(scene: Scene, kind: str) -> None:
    a = plain(scene, "h1", "h2")[0]
    scene.put(scene.port("c", 3, "g", addresses=("10.0.0.3",)))
    target = {"broadcast": "10.0.0.255", "multicast": "224.0.0.77"}[kind]
    hosts = scene.cloud.hosts
    with udp(a, a.address(), 4000) as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        here.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(a.address()))
        for _ in range(10):
            here.sendto(struct.pack("10x"), (target, 5000))
    expected = 10, 10 * (HEADERS[4] + 10)
    for host, name in (("h2", "b"), ("h1", "c")):
        wait_until(
            lambda host=host, name=name: pair_of(hosts[host].counters(scene.id(name)).to_port) == expected,  # type: ignore[misc]
            PATIENCE,
            f"port {name} has counted them: {hosts[host].counters(scene.id(name))}",
        )
    assert pair_of(hosts["h1"].counters(a.port.id).from_port) == expected
    assert pair_of(hosts["h1"].counters(a.port.id).to_port) == (0, 0)
