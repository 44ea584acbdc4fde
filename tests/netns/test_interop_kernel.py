"""The kernel's own VXLAN device and we understand each other; what it cuts on the outside meets its reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace.model import Segment
from headrace.testing.kernel_party import DEVICE, KernelParty
from headrace.testing.party import UPLINK, Meeting, agree
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import IMPATIENCE, ping
from headrace.testing.wait import wait_until

NUMBER = 201
SEGMENT = Segment(type="vxlan", id=0x1234)


@pytest.fixture(scope="module")
def party() -> Iterator[KernelParty]:
    with Topology() as topology, Meeting(topology) as meeting:
        namespace = topology.host("kernel")
        meeting.join(namespace, UPLINK, NUMBER)
        shell = lambda script: namespace.run(["bash"], stdin=script).stdout  # noqa: E731
        yield KernelParty(meeting, "kernel", NUMBER, UPLINK, shell)


@pytest.fixture
def scene(party: KernelParty) -> Iterator[Scene]:
    with Scene(party.meeting) as made:
        yield made


@pytest.mark.parametrize("version", [4, 6])
def test_full_size_packets_both_ways(party: KernelParty, scene: Scene, version: int) -> None:
    agree(party.meet(scene, SEGMENT, version), party, scene.network.mtu)


def test_a_fragment_of_the_outer_packet_meets_its_reason(party: KernelParty, scene: Scene) -> None:
    a = party.meet(scene, SEGMENT, 4, fragments=True)
    host = party.meeting.hosts["h1"]
    wait_until(lambda: ping(party.far, a.address()), what="the wire works")
    before = host.reasons()["OUTER_FRAGMENT"]
    party.far.run(f"ip link set {DEVICE} mtu {scene.network.mtu + 1}")
    assert not ping(party.far, a.address(), size=scene.network.mtu + 1 - 28, patience=IMPATIENCE)
    assert host.reasons()["OUTER_FRAGMENT"] == before + 1
    assert ping(party.far, a.address(), size=scene.network.mtu - 28)
