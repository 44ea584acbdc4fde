"""What the kernel says of devices, addresses, neighbours and routes, and what it announces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from headrace.datapath.binding import Refused
from headrace.datapath.netlink import Address, Event, Link, Neighbour, Netlink, Watch
from headrace.errors import NotFound, NotSupported
from headrace.testing.topology import Namespace, Topology
from headrace.testing.wait import wait_until


class Lab:
    """Host a, where the test's thread is, connected to host b."""

    def __init__(self, topology: Topology) -> None:
        self.a: Namespace = topology.host("a")
        self.b: Namespace = topology.host("b")
        topology.link(
            self.a,
            "eth0",
            self.b,
            "eth0",
            a_addresses=["192.0.2.1/24", "2001:db8::1/64"],
            b_addresses=["192.0.2.2/24", "2001:db8::2/64"],
        )
        self.mac = self.a.mac("eth0")
        self.ifindex = self.a.ifindex("eth0")
        self.peer = self.b.ifindex("eth0")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Topology() as topology:
        made = Lab(topology)
        with made.a.enter():
            yield made


@pytest.fixture
def kernel(lab: Lab) -> Iterator[Netlink]:
    with Netlink() as made:
        yield made


def test_devices(lab: Lab, kernel: Netlink) -> None:
    by_name = kernel.link("eth0")
    assert by_name == kernel.link(lab.ifindex)
    assert by_name is not None
    assert (by_name.name, by_name.kind, by_name.mac, by_name.mtu) == ("eth0", "veth", lab.mac, 1500)
    assert (by_name.up, by_name.carrier, by_name.master) == (True, True, None)
    assert (by_name.peer, by_name.lower) == (lab.peer, None)
    assert by_name.peer_nsid is not None
    assert [link.name for link in kernel.links()] == ["lo", "eth0"]
    assert kernel.link("eth7") is None
    assert kernel.link(7777) is None


def test_a_pair_in_one_namespace_and_a_bridge(lab: Lab, kernel: Netlink) -> None:
    lab.a.run("ip link add one type veth peer name two")
    lab.a.run("ip link add name bridge0 type bridge")
    lab.a.run("ip link set one master bridge0")
    one, two, bridge = kernel.link("one"), kernel.link("two"), kernel.link("bridge0")
    assert one is not None
    assert two is not None
    assert bridge is not None
    assert (one.peer, one.peer_nsid, one.master, two.peer) == (two.ifindex, None, bridge.ifindex, one.ifindex)
    assert (bridge.kind, one.up, one.carrier) == ("bridge", False, False)


def test_a_device_is_set(lab: Lab, kernel: Netlink) -> None:
    kernel.set_link(lab.ifindex, mtu=1400)
    kernel.set_link(lab.ifindex, up=False)
    changed = kernel.link(lab.ifindex)
    assert changed is not None
    assert (changed.mtu, changed.up) == (1400, False)
    with pytest.raises(Refused, match=r"mtu=1 .*EINVAL"):
        kernel.set_link(lab.ifindex, mtu=1)
    with pytest.raises(Refused, match=r"device 7777.*ENODEV"):
        kernel.set_link(7777, up=True)


def test_addresses(lab: Lab, kernel: Netlink) -> None:
    mine = {each.address: each for each in kernel.addresses(lab.ifindex)}
    assert mine["192.0.2.1"] == Address(ifindex=lab.ifindex, address="192.0.2.1", prefix=24, usable=True)
    assert mine["2001:db8::1"].prefix == 64
    assert {each.address for each in kernel.addresses()} >= {"127.0.0.1", "::1", *mine}
    assert kernel.addresses(7777) == []


@pytest.mark.parametrize("address", ["192.0.2.2", "2001:db8::2"])
def test_a_managed_neighbour_is_resolved_without_traffic(lab: Lab, kernel: Netlink, address: str) -> None:
    def known() -> dict[str, Neighbour]:
        return {each.address: each for each in kernel.neighbours(lab.ifindex)}

    assert address not in known()
    for _ in range(2):  # twice changes nothing
        kernel.ensure_managed_neighbour(lab.ifindex, address)
        mac = wait_until(lambda: known()[address].mac, what="the neighbour answers")
        assert known()[address] == Neighbour(ifindex=lab.ifindex, address=address, mac=lab.b.mac("eth0"), managed=True)
        assert mac == lab.b.mac("eth0")
    for _ in range(2):
        kernel.release_neighbour(lab.ifindex, address)
        assert address not in known()
    assert kernel.neighbours(7777) == []


def test_routes(lab: Lab, kernel: Netlink) -> None:
    lab.a.run("ip route add 198.51.100.0/24 via 192.0.2.2 mtu 1400")
    lab.a.run("ip route add 203.0.113.0/24 via inet6 2001:db8::2 dev eth0")
    far = kernel.route("198.51.100.9")
    assert far is not None
    assert (far.ifindex, far.gateway, far.source, far.mtu) == (lab.ifindex, "192.0.2.2", "192.0.2.1", 1400)
    near, other, mine = kernel.route("2001:db8::9"), kernel.route("203.0.113.1"), kernel.route("192.0.2.1")
    assert near is not None
    assert other is not None
    assert mine is not None
    assert (near.gateway, near.source, near.mtu, near.local) == (None, "2001:db8::1", None, False)
    assert other.gateway == "2001:db8::2"
    assert mine.local
    lab.a.run("ip route add prohibit 198.18.0.0/24")
    assert [kernel.route(address) for address in ("100.64.0.1", "2001:db9::1", "198.18.0.1")] == [None, None, None]


def test_features(lab: Lab, kernel: Netlink) -> None:
    before = kernel.features("eth0")
    assert before["tx-tcp-segmentation"]
    kernel.set_features("eth0", {"tx-tcp-segmentation": False, "rx-gro": True})
    after = kernel.features("eth0")
    assert (after["tx-tcp-segmentation"], after["rx-gro"]) == (False, True)
    with pytest.raises(NotSupported, match="no feature tx-magic"):
        kernel.set_features("eth0", {"tx-magic": True})
    with pytest.raises(NotSupported, match="does not let us change rx-fcs"):
        kernel.set_features("eth0", {"rx-fcs": True})
    with pytest.raises(NotFound, match="device eth7"):
        kernel.features("eth7")


def test_sysctls(lab: Lab, kernel: Netlink) -> None:
    lab.a.sysctl("net.ipv4.fib_multipath_hash_policy", 1)
    assert kernel.sysctl("net.ipv4.fib_multipath_hash_policy") == "1"
    with pytest.raises(NotSupported, match=r"net\.ipv4\.nothing"):
        kernel.sysctl("net.ipv4.nothing")


@pytest.fixture
async def watch(lab: Lab) -> AsyncIterator[Watch]:
    async with Netlink.watch() as made:
        yield made


async def seen(watch: Watch, kind: str, *, gone: bool = False) -> Event:
    async with asyncio.timeout(3):
        async for event in watch:
            if (event.kind, event.gone) == (kind, gone):
                return event
    raise AssertionError


async def test_questions_are_answered_inside_a_loop_and_changes_announced(lab: Lab, watch: Watch) -> None:
    with Netlink() as kernel:
        kernel.set_link(lab.ifindex, mtu=1300)
        changed = await seen(watch, "link")
        assert changed.fact == kernel.link(lab.ifindex)
        lab.a.run("ip address add 192.0.2.77/32 dev eth0")
        address = await seen(watch, "address")
        assert address.fact == Address(ifindex=lab.ifindex, address="192.0.2.77", prefix=32, usable=True)
        kernel.ensure_managed_neighbour(lab.ifindex, "192.0.2.2")
        neighbour = await seen(watch, "neighbour")
        assert isinstance(neighbour.fact, Neighbour)
        assert neighbour.fact.managed
        lab.a.run("ip route add 198.51.100.0/24 via 192.0.2.2")
        await seen(watch, "route")
        lab.a.run("ip link delete eth0")
        deleted = await seen(watch, "link", gone=True)
        assert isinstance(deleted.fact, Link)
        assert deleted.fact.name == "eth0"


async def test_missed_announcements_are_told(lab: Lab, watch: Watch) -> None:
    lines = "\n".join(f"route add 10.{high}.{low}.0/24 via 192.0.2.2" for high in range(80) for low in range(256))
    lab.a.run("ip -batch -", stdin=lines)
    await seen(watch, "lost")
    await seen(watch, "route")
