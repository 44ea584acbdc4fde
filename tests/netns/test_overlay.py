"""Workloads reach one another over either underlay, in both families, alone and all at once."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator

import pytest

from headrace.datapath import frame
from headrace.model import AddressPair
from headrace.testing.cloud import Cloud, Workload
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import IMPATIENCE, Tap, opens, ping, reaches, udp
from headrace.testing.world import ANY

SHARED_MAC = "00:00:5e:00:01:0a"
"""A virtual router's (RFC 5798)."""
SHARED = "10.0.0.100"
HOLDERS = (("b", 2, "h1"), ("c", 3, "h2"))
OVERHEAD = {4: 50, 6: 70}
HEADERS = {4: 28, 6: 48}


@pytest.fixture(scope="module", params=[4, 6], ids=["v4", "v6"])
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """A cloud whose underlay has one IP version; its uplinks do GRO, as NICs do."""
    with Topology() as topology, Cloud(topology, families=[request.param]) as made:
        for host in made.hosts.values():
            host.namespace.run("ethtool -K uplink gro on")
        yield made


@pytest.fixture
def scene(cloud: Cloud) -> Iterator[Scene]:
    with Scene(cloud, mtu=1500 - OVERHEAD[cloud.families[0]]) as made:
        yield made


def broadcast(sender: Workload, target: str, port: int) -> socket.socket:
    """A socket that may send to everybody on the link."""
    made = udp(sender, sender.address(6 if ":" in target else 4), port)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return made


def member(receiver: Workload, group: str, port: int) -> socket.socket:
    """A socket that listens to a multicast group, or to everything sent to a port."""
    made = udp(receiver, "::" if ":" in group else "0.0.0.0", port)
    with receiver.namespace.enter():
        index = socket.if_nametoindex("eth0")
    if ":" in group:
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    elif ipaddress.ip_address(group).is_multicast:
        request = socket.inet_aton(group) + socket.inet_aton(receiver.address())
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    return made


@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h1", "h1")], ids=["across", "local"])
@pytest.mark.parametrize("family", [4, 6])
def test_everything_arrives(scene: Scene, family: int, hosts: tuple[str, str]) -> None:
    a, b = scene.pair(hosts=hosts)
    assert ping(a, b.address(family), count=3)
    assert opens(a, b, b.address(family), 80)
    assert opens(b, a, a.address(family), 80)
    with udp(a, a.address(family), 5000) as here, udp(b, b.address(family), 5001) as there:
        assert reaches(here, there)
        assert reaches(there, here)
        here.sendto(b"", there.getsockname()[:2])
        assert there.recv(10) == b""


def test_packets_of_full_size_arrive_and_none_above(scene: Scene) -> None:
    a, b = scene.pair()
    check_size(a, b, scene.network.mtu)


@pytest.mark.parametrize("family", [4, 6])
def test_jumbo_frames_arrive_where_the_underlay_has_them(family: int) -> None:
    mtu = 9000 - OVERHEAD[family]
    with Topology() as lab, Cloud(lab, families=[family], mtu=9000) as cloud, Scene(cloud, mtu=mtu) as scene:
        a, b = scene.pair()
        check_size(a, b, mtu)
        assert opens(a, b, b.address(), 80)


def check_size(a: Workload, b: Workload, mtu: int) -> None:
    for version, headers in HEADERS.items():
        assert ping(a, b.address(version), size=mtu - headers)
        assert not ping(a, b.address(version), size=mtu - headers + 1, patience=IMPATIENCE)


@pytest.mark.parametrize("target", ["255.255.255.255", "10.0.0.255", "224.0.0.251", "ff02::fb%eth0"])
def test_what_is_for_all_reaches_each_once(scene: Scene, target: str) -> None:
    a, _ = scene.pair()
    scene.put(scene.port("c", 3, "g", host="h1"), scene.port("d", 4, "g", host="h2"))
    group, _, device = target.partition("%")
    with broadcast(a, group, 5353) as sender:
        ears = {name: member(scene[name], group, 5353) for name in "bcd"}
        with a.namespace.enter():
            scope = socket.if_nametoindex(device) if device else 0
        if not device:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(a.address()))
        sender.sendto(b"all", (group, 5353, 0, scope) if device else (group, 5353))
        for ear in ears.values():
            assert ear.recv(100) == b"all"
            ear.settimeout(0.05)
            with pytest.raises(TimeoutError):
                ear.recv(100)
            ear.close()


def test_address_resolution_for_a_pair_is_the_workloads_own(scene: Scene) -> None:
    shared = AddressPair(address=SHARED)
    scene.put(
        scene.group("g", *ANY),
        scene.port("a", 1, "g", host="h1"),
        scene.port("b", 2, "g", host="h2", address_pairs=(shared,)),
    )
    scene["b"].namespace.run(f"ip address add {SHARED}/24 dev eth0")
    assert ping(scene["a"], SHARED)
    assert scene.cloud.hosts["h1"].reasons(scene.id("a"))["FLOODED"] >= 1


def test_a_shared_address_moves_with_its_announcement(scene: Scene) -> None:
    """As VRRP does: the new holder announces address and MAC, and packets follow at once."""
    shared = AddressPair(address=SHARED, mac=SHARED_MAC)
    holders = [scene.port(name, number, "g", host=host, address_pairs=(shared,)) for name, number, host in HOLDERS]
    scene.put(scene.group("g", *ANY), scene.port("a", 1, "g"), *holders)
    a = scene["a"]
    a.namespace.run(f"ip neighbour replace {SHARED} lladdr {SHARED_MAC} dev eth0")
    taps = [Tap(scene[name].namespace, "eth0") for name in "bc"]
    with udp(a, a.address(), 7000) as sender, taps[0] as b, taps[1] as c:
        for holder, other, mark in ((b, c, b"first holder"), (c, b, b"second holder"), (b, c, b"the first again")):
            holder.send(announcement())
            assert other.heard(frame.octets(SHARED_MAC)) is not None  # it is flooded
            sender.sendto(mark, (SHARED, 9))
            assert holder.heard(mark) is not None
            assert other.heard(mark, timeout=0.05) is None


def announcement() -> bytes:
    """A gratuitous ARP request of the shared address (RFC 5798 section 8.1.2)."""
    own = ipaddress.ip_address(SHARED)
    ethertype, payload = frame.arp(
        operation=1, sender_mac=SHARED_MAC, sender=own, target_mac="00:00:00:00:00:00", target=own
    )
    return frame.ethernet(source=SHARED_MAC, destination="ff:ff:ff:ff:ff:ff", ethertype=ethertype, payload=payload)
