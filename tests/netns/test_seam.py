"""What the kernel cannot cut behind our outer headers is cut in the seam: nothing is lost, or counted twice."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from headrace import abi
from headrace.model import Segment
from headrace.testing.bulk import Sent, bulk, frames_sent
from headrace.testing.cloud import Cloud, CloudHost
from headrace.testing.outer import take_off
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import ETH_P_ALL, ping, tcp_pair, udp
from headrace.testing.wait import wait_until

SEGMENTS = {
    "geneve": Segment(type="geneve", id=77),
    "mpls over udp": Segment(type="mpls", id=77, transport="udp"),
    "nsh over ethernet": Segment(type="nsh", id=77, transport="ethernet"),
}
MTU = 1400
GENEVE = (6081).to_bytes(2, "big")
SO_NO_CHECK = 11
"""Of asm-generic/socket.h: send datagrams without a checksum."""
INNER_MTU = MTU - 50
LOST = 50
"""One segment in so many may seem lost: not all that was overtaken on its way between two CPUs is told so."""


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """An underlay of IPv6 whose veths take no super-packets as they are."""
    with Topology() as topology, Cloud(topology, families=[6], settings='uplink_hook = "xdp"\nverify = 1') as made:
        yield made


@pytest.fixture
def scene(cloud: Cloud, request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Scene(cloud, mtu=MTU) as made:
        if segment := SEGMENTS.get(getattr(request, "param", "")):
            made.network = replace(made.network, segment=segment)
        yield made


@contextlib.contextmanager
def listening(host: CloudHost, device: str) -> Iterator[socket.socket]:
    """Hears what arrives at a device of a host."""
    with host.namespace.enter():
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with opened:
        opened.bind((device, ETH_P_ALL))
        opened.setblocking(False)
        yield opened


def drain(heard: socket.socket) -> Iterator[bytes]:
    """All that has arrived."""
    with contextlib.suppress(BlockingIOError):
        while True:
            yield heard.recv(1 << 16)


def taken(host: CloudHost) -> int:
    """Frames that came out at the seam's far end."""
    (facts,) = host.namespace.ip("-statistics link show dev hr-seam1")
    return int(facts["stats64"]["rx"]["packets"])


def carries(scene: Scene, names: tuple[str, str], address: str) -> Sent:
    """Bulk arrives, in single frames, from the seam."""
    a, b = (scene[name] for name in names)
    host = scene.cloud.hosts["h1"]
    before, cut = frames_sent(host), taken(host)
    sent = bulk(a, b, address)
    assert sent.lost < sent.segments / LOST
    assert frames_sent(host) - before >= sent.segments, "none was longer than the underlay takes"
    assert taken(host) - cut > sent.segments / 2
    return sent


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("scene", SEGMENTS, indirect=True)
def test_bulk_is_cut_once_and_counts_exactly(scene: Scene, family: int) -> None:
    scene.pair()
    wait_until(lambda: ping(scene["a"], scene["b"].address(family)), what="both hosts know each other's next hop")
    sent = carries(scene, ("a", "b"), scene["b"].address(family))
    closed = {abi.State.TIME_WAIT, abi.State.CLOSED}

    def seen(host: str) -> abi.Conn:
        return next(conn for conn in scene.connections(host) if conn.key[0].sport == sent.port)

    wait_until(lambda: all(seen(name).state in closed for name in ("h1", "h2")), what="it is closed")
    here, there = (seen(name).counter for name in ("h1", "h2"))
    assert (here[0].packets, here[0].octets) == (sent.segments, sent.frames(family))
    assert sent.segments - sent.again <= there[0].packets <= sent.segments
    assert (there[1].packets, there[1].octets) == (here[1].packets, here[1].octets)


@pytest.mark.parametrize("scene", ["geneve"], indirect=True)
def test_every_outer_checksum_on_the_wire_is_right(scene: Scene) -> None:
    """Also of what workloads leave to a device, of fragments, and of what is flooded."""
    a, b = scene.pair()
    host = scene.cloud.hosts["h2"]
    broadcast = "10.0.0.255"
    with listening(host, "uplink") as heard, udp(b, "0.0.0.0", 7) as taker:
        wait_until(lambda: ping(a, b.address()), what="both hosts know each other's next hop")
        a.namespace.run(f"ping -c 1 -W 3 -s 3000 {b.address()}")
        a.namespace.run(f"ping -c 1 -W 3 -s 3000 {b.address(6)}")
        with tcp_pair(a, b, b.address(6), 80) as (here, there):
            here.sendall(b"x" * 101)
            assert len(there.recv(200)) == 101
        with udp(a, "0.0.0.0") as giver:
            giver.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            giver.sendto(b"to whom it may concern", (broadcast, 7))
            giver.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
            giver.sendto(b"y" * 1001, (b.address(), 7))
        assert taker.recv(100) == b"to whom it may concern"
        assert taker.recv(2000) == b"y" * 1001
        frames = [frame for frame in drain(heard) if frame[54 + 2 : 54 + 4] == GENEVE and frame[12:14] == b"\x86\xdd"]
    assert len(frames) >= 12
    for frame in frames:
        take_off(frame)  # asserts that the checksum is right


def test_bulk_through_a_workloads_own_tunnel(scene: Scene) -> None:
    a, b = scene.pair()
    for workload, other, number in ((a, b, 1), (b, a, 2)):
        ns = workload.namespace
        ns.run(f"ip link add own mtu {INNER_MTU} type vxlan id 5 dstport 8472 remote {other.address()} dev eth0")
        ns.run(f"ip address add 172.16.0.{number}/24 dev own")
        ns.run("ip link set own up")
    wait_until(lambda: ping(a, "172.16.0.2"), what="its tunnel is up")
    before = scene.cloud.hosts["h1"].reasons(a.port.id)["NESTED_SUPERPACKET"]
    carries(scene, ("a", "b"), "172.16.0.2")
    assert scene.cloud.hosts["h1"].reasons(a.port.id)["NESTED_SUPERPACKET"] == before
