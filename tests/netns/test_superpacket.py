"""Super-packets stay whole from port to port over the tunnel, and count as the segments that they stand for."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from headrace import abi
from headrace.model import Segment
from headrace.testing import kernel
from headrace.testing.bulk import AMOUNT, IP_AND_TCP, bulk, frames_sent, move
from headrace.testing.cloud import Cloud
from headrace.testing.guest import ECHO_PORT, Card, Guest
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import PATIENCE, connect, tcp_pair
from headrace.testing.wait import wait_until

SPARING = 8
"""How many segments a frame on the uplink stands for at least, on average."""


@pytest.fixture(scope="module", params=[4, 6], ids=["v4", "v6"])
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """By underlay: each has its own way to keep super-packets."""
    with Topology() as topology, Cloud(topology, families=[request.param]) as made:
        yield made


@pytest.fixture
def scene(cloud: Cloud) -> Iterator[Scene]:
    with Scene(cloud, mtu=1430) as made:
        yield made


def connection(scene: Scene, host: str, source: int) -> abi.Conn:
    return next(conn for conn in scene.connections(host) if conn.key[0].sport == source)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("hosts", [("h1", "h2"), ("h1", "h1")], ids=["across", "local"])
def test_bulk_stays_whole_and_counts_exactly(scene: Scene, hosts: tuple[str, str], family: int) -> None:
    a, b = scene.pair(hosts=hosts)
    host = scene.cloud.hosts["h1"]
    before = frames_sent(host)
    sent = bulk(a, b, b.address(family))
    frames = frames_sent(host) - before
    closed = {abi.State.TIME_WAIT, abi.State.CLOSED}
    wait_until(lambda: all(connection(scene, name, sent.port).state in closed for name in hosts), what="it is closed")
    seen = [connection(scene, name, sent.port) for name in hosts]
    original, reply = seen[0].counter
    for conn in seen:
        assert [(one.packets, one.octets) for one in conn.counter] == [
            (original.packets, original.octets),
            (reply.packets, reply.octets),
        ]
    assert original.packets == sent.segments
    assert original.octets == sent.frames(family)
    if hosts[0] != hosts[1]:
        assert frames < original.packets / SPARING
    else:
        assert frames < 1000  # the controller's, none of the stream


WIRES: dict[str, Segment] = {
    segment.wire: segment
    for segment in (
        Segment(type="geneve", id=77),
        Segment(type="gre", id=77),
        Segment(type="mpls", id=77, transport="udp"),
        Segment(type="nsh", id=77, transport="gpe"),
    )
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("cloud", [4], indirect=True)
def test_every_wire_inside_udp_or_gre_keeps_them_whole(cloud: Cloud, wire: str) -> None:
    with Scene(cloud, mtu=1430) as scene:
        scene.network = replace(scene.network, segment=WIRES[wire])
        a, b = scene.pair()
        before = frames_sent(cloud.hosts["h1"])
        sent = bulk(a, b, b.address())
        assert frames_sent(cloud.hosts["h1"]) - before < sent.segments / SPARING
        for host in ("h1", "h2"):
            assert connection(scene, host, sent.port).counter[0].packets == sent.segments


def test_a_super_packet_is_judged_by_its_segments(scene: Scene) -> None:
    """Segments above the network's MTU are too big, however they are packed; their sender cuts them anew."""
    a, b = scene.pair()
    for workload, host in ((a, "h1"), (b, "h2")):
        scene.cloud.hosts[host].namespace.run(f"ip link set {workload.port.device_name} mtu 1500")
        workload.namespace.run("ip link set eth0 mtu 1500")
    sender = scene.cloud.hosts["h1"]
    before = sender.reasons(a.port.id)["TOO_BIG"]
    with tcp_pair(a, b, b.address(), 80) as (here, there):
        here.sendall(bytes(20_000))
        received = 0
        while received < 20_000:
            received += len(there.recv(20_000))
        size = here.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    assert size + IP_AND_TCP[4] == scene.network.mtu
    assert sender.reasons(a.port.id)["TOO_BIG"] > before


@pytest.mark.timeout(240)
@pytest.mark.needs("qemu", "tun", "program:busybox", "program:gcc")
def test_a_guests_super_packets_reach_the_other_host_and_back(scene: Scene, lab_kernel: kernel.Kernel) -> None:
    _, b = scene.pair()
    host = scene.cloud.hosts["h1"].namespace
    port = scene.port("guest", 9, "g", device=f"tapg{scene.number}")
    scene.cloud.plugged.add(port.id)
    host.run(f"ip tuntap add dev {port.device_name} mode tap vnet_hdr")
    host.run(f"ip link set {port.device_name} mtu {scene.network.mtu} up")
    addresses = [f"{port.addresses[0]}/24", f"{port.addresses[1]}/64"]
    card = Card(mtu=scene.network.mtu)
    with Guest(
        host.name, port.device_name, port.mac, addresses=addresses, card=card, series=lab_kernel.series
    ) as guest:
        scene.put(port)
        for address in port.addresses:
            before = retransmitted(guest)
            with connect(b, address, ECHO_PORT, timeout=PATIENCE * 3) as here:
                move(here, here, PATIENCE * 10)
            assert retransmitted(guest) - before < AMOUNT / scene.network.mtu / 20


def retransmitted(guest: Guest) -> int:
    """Segments that a guest's TCP sent again (proc(5), /proc/net/snmp)."""
    return int(guest.run("grep '^Tcp: [0-9]' /proc/net/snmp").output.split()[12])
