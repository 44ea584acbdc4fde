"""Workloads learn what the path takes: an underlay narrower than the network needs, with and without clamping."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from headrace.testing import packet
from headrace.testing.cloud import Cloud, Workload
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import PATIENCE, Stream, make_socket, ping, tcp_pair
from headrace.testing.wait import wait_until

UNDERLAY = 1400
ROOM = {4: UNDERLAY - 50, 6: UNDERLAY - 70}
"""What the underlay leaves, by its IP version."""
HEADERS = {4: 20 + 8, 6: 40 + 8}
IP_AND_TCP = {4: 40, 6: 60}
TIMESTAMPS = 12
AMOUNT = 300_000
IP_MTU_DISCOVER, IP_MTU, IP_PMTUDISC_DO = 10, 14, 2
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24
"""linux/in.h, linux/in6.h"""
SOL_PACKET, PACKET_VNET_HDR = 263, 15
"""linux/if_packet.h"""
VNET = struct.Struct("=BBHHHH")
"""linux/virtio_net.h, struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset"""
NEEDS_CSUM, TCPV4, TCPV6, CSUM_OFFSET = 1, 1, 4, 16


@pytest.fixture(scope="module", params=[4, 6], ids=["v4", "v6"])
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """By the underlay's IP version."""
    with Topology() as topology, Cloud(topology, families=[request.param], mtu=UNDERLAY) as made:
        yield made


def room(cloud: Cloud) -> int:
    return ROOM[cloud.families[0]]


def known(workload: Workload, address: str) -> int:
    """The path's MTU as the workload's kernel remembers it."""
    (route,) = workload.namespace.ip(f"route get {address}")
    metrics = route.get("metrics", [{}])
    return int(metrics[0].get("mtu", 0))


def moved(a: Workload, b: Workload, address: str) -> tuple[int, int]:
    """Move the amount, and the size of segments that both ends came to."""
    with tcp_pair(a, b, address, 80) as (here, there):
        here.sendall(bytes(AMOUNT))
        there.settimeout(PATIENCE * 3)
        left = AMOUNT
        while left:
            part = there.recv(left)
            assert part
            left -= len(part)
        sizes = [end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for end in (here, there)]
    return sizes[0], sizes[1]


@pytest.mark.parametrize("family", [4, 6])
def test_ping_is_told(scene: Scene, family: int) -> None:
    a, b = scene.pair()
    address, most = b.address(family), room(scene.cloud)
    told = a.namespace.run(f"ping -n -c 1 -W {PATIENCE} -M do -s {most - HEADERS[family] + 1} {address}", check=False)
    assert (f"Frag needed and DF set (mtu = {most})" if family == 4 else f"Packet too big: mtu={most}") in told.stdout
    assert known(a, address) == most
    assert ping(a, address, size=most - HEADERS[family])
    assert scene.cloud.hosts["h1"].reasons(a.port.id)["TOO_BIG"] == 1


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_settles(scene: Scene, family: int) -> None:
    """Super-packets that the workload's TCP cuts for its own device's MTU are answered, and cut anew."""
    a, b = scene.pair()
    size, _ = moved(a, b, b.address(family))
    assert size == room(scene.cloud) - IP_AND_TCP[family] - TIMESTAMPS
    assert known(a, b.address(family)) == room(scene.cloud)
    assert scene.cloud.hosts["h1"].reasons(a.port.id)["TOO_BIG"] >= 1


@pytest.mark.parametrize("family", [4, 6])
def test_a_udp_socket_learns_it_by_its_error(scene: Scene, family: int) -> None:
    a, b = scene.pair()
    level, discover, mtu = (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_MTU)
        if family == 4
        else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_MTU)
    )
    with make_socket(a, b.address(family), socket.SOCK_DGRAM) as here:
        here.setsockopt(level, discover, IP_PMTUDISC_DO)
        here.connect((b.address(family), 9))
        here.send(bytes(room(scene.cloud) - HEADERS[family] + 1))
        with pytest.raises(OSError, match="Message too long") as told:
            here.recv(1)
        assert told.value.errno == errno.EMSGSIZE
        assert here.getsockopt(level, mtu) == room(scene.cloud)
        here.send(bytes(room(scene.cloud) - HEADERS[family]))


def test_datagrams_that_may_be_cut_are_dropped_in_silence(scene: Scene) -> None:
    a, b = scene.pair()
    h1 = scene.cloud.hosts["h1"]
    with make_socket(a, b.address(), socket.SOCK_DGRAM) as here:
        here.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)
        here.sendto(bytes(1420), (b.address(), 9))
        wait_until(lambda: h1.reasons(a.port.id)["TOO_BIG"] == 1, what="it is dropped")
    assert known(a, b.address()) == 0


@pytest.mark.parametrize("family", [4, 6])
def test_a_guests_super_packet_is_answered_by_a_plain_one(scene: Scene, family: int) -> None:
    """What the guest left to the device, segments and a checksum, the answer does not."""
    a, b = scene.pair()
    segment = TCP(sport=1000, dport=80, flags="A") / Raw(bytes(range(256)) * 20)
    frame = bytes(packet.over_ip(a.port, b.port, segment, family=family, **({"flags": "DF"} if family == 4 else {})))
    header = len(frame) - len(segment.payload)
    size = room(scene.cloud) - IP_AND_TCP[family] + 1
    work = VNET.pack(NEEDS_CSUM, TCPV4 if family == 4 else TCPV6, header, size, header - 20, CSUM_OFFSET)
    with a.namespace.enter():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind(("eth0", 3))
    with wire:
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.send(work + frame)
        left, answer = heard(wire, bytes.fromhex(b.port.mac.replace(":", "")))
    assert VNET.unpack(left)[:2] == (0, 0), "neither segments nor a checksum are left to the device"
    assert len(answer) == 14 + (576 if family == 4 else 1280)
    assert answer == bytes(rebuilt(answer)), "lengths and checksums are those that scapy makes"
    assert answer[-100:] in frame


def heard(wire: socket.socket, sender: bytes) -> tuple[bytes, bytes]:
    """The next IP packet from a MAC: what its device is left to do, and its octets."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        wire.settimeout(PATIENCE)
        octets = wire.recv(65536)
        left, frame = octets[: VNET.size], octets[VNET.size :]
        if frame[6:12] == sender and frame[12:14] in {b"\x08\x00", b"\x86\xdd"}:
            return left, frame
    raise TimeoutError("nobody answers")


def rebuilt(frame: bytes) -> Ether:
    """The frame with everything that can be computed computed anew."""
    ether = Ether(frame)
    if isinstance(ether.payload, IP):
        ether.payload.len = ether.payload.chksum = ether.payload.payload.chksum = None
    else:
        assert isinstance(ether.payload, IPv6)
        ether.payload.plen = ether.payload.payload.cksum = None
    return ether


def test_on_one_host_the_network_counts(scene: Scene) -> None:
    a, b = scene.pair(hosts=("h1", "h1"))
    assert ping(a, b.address(), size=1450 - HEADERS[4])
    assert moved(a, b, b.address())[0] == 1450 - IP_AND_TCP[4] - TIMESTAMPS


def test_an_uplink_that_becomes_narrower_and_wider(scene: Scene) -> None:
    """Flows that were decided by the old MTU are decided again, and their senders are told."""
    a, b = scene.pair()
    address, most = b.address(), room(scene.cloud)
    h1 = scene.cloud.hosts["h1"]
    with Stream(a, b, address, 80) as stream:
        assert known(a, address) == most
        h1.namespace.run(f"ip link set uplink mtu {UNDERLAY - 100}")
        try:
            stream.advance(blocks=50)
            wait_until(lambda: known(a, address) == most - 100, what="the workload is told")
            stream.advance(blocks=50)
        finally:
            h1.namespace.run(f"ip link set uplink mtu {UNDERLAY}")
        wait_until(lambda: passes_again(a, address, most - HEADERS[4]), what="the longer one passes")
        stream.advance(blocks=50)


def passes_again(workload: Workload, address: str, size: int) -> bool:
    """Whether a ping of a size passes, when the workload has forgotten what it was told."""
    workload.namespace.run("ip route flush cache")
    return ping(workload, address, size=size, patience=0.2)


def test_clamping_spares_tcp_the_learning() -> None:
    """Both ends of a handshake are told, and nothing that is too big is ever sent."""
    with (
        Topology() as topology,
        Cloud(topology, families=[4], mtu=UNDERLAY, settings="mss_clamp = true") as cloud,
        Scene(cloud) as scene,
    ):
        a, b = scene.pair()
        for family in (4, 6):
            expected = ROOM[4] - IP_AND_TCP[family] - TIMESTAMPS
            assert moved(a, b, b.address(family)) == (expected, expected)
            assert moved(b, a, a.address(family)) == (expected, expected)
        for host, workload in (("h1", a), ("h2", b)):
            assert cloud.hosts[host].reasons(workload.port.id)["TOO_BIG"] == 0
