"""Open vSwitch's userspace datapath and we understand each other on every wire that it has, in full-size packets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from headrace.model import Segment
from headrace.testing.ovs_party import OvsParty
from headrace.testing.party import PHYSICAL, Meeting, agree
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology
from headrace.testing.traffic import IMPATIENCE, ping

pytestmark = pytest.mark.needs("ovs")

ID = 0x1234
MORE_NSH = 16
"""MD type 1 beyond what we send."""
PACKET_SOCKET = 4
"""A packet socket sends a frame longer than the MTU by a tag where that is 802.1Q's, not 802.1ad's (packet_snd)."""
TUNNELS = (
    Segment(type="vxlan", id=ID),
    Segment(type="geneve", id=ID),
    Segment(type="gre", id=ID),
    Segment(type="mpls", id=ID, transport="gre"),
    Segment(type="nsh", id=ID, transport="gpe"),
)
ETHERNET = (
    Segment(type="nsh", id=ID, transport="ethernet"),
    Segment(type="flat", physical_network=PHYSICAL),
    Segment(type="vlan", id=12, physical_network=PHYSICAL),
    Segment(type="vlan", id=12, service_vlan=7, physical_network=PHYSICAL),
)
WIRES = [(segment, version) for segment in TUNNELS for version in (4, 6)] + [(segment, 4) for segment in ETHERNET]


@pytest.fixture(scope="module")
def party() -> Iterator[OvsParty]:
    with Topology() as topology, Meeting(topology) as meeting:
        yield OvsParty(meeting)


@pytest.fixture
def scene(party: OvsParty) -> Iterator[Scene]:
    with Scene(party.meeting) as made:
        yield made


@pytest.mark.parametrize("critical", [False, True])
def test_geneve_options(party: OvsParty, scene: Scene, *, critical: bool) -> None:
    """Those that need not be understood are skipped; one that must be is not."""
    option = f"{{class=0x102,type={0x80 if critical else 1:#x},len=4}}"
    a = party.meet(scene, Segment(type="geneve", id=ID), 4, spare=8, option=option)
    host = party.meeting.hosts["h1"]
    before = host.reasons()["GENEVE_OPTION"]
    if critical:
        assert not ping(party.far, a.address(), patience=IMPATIENCE)
        assert host.reasons()["GENEVE_OPTION"] > before
    else:
        agree(a, party, scene.network.mtu)
        assert host.reasons()["GENEVE_OPTION"] == before


@pytest.mark.parametrize("metadata", ["md_type=1", "md_type=2,tlv(0x1000,10,0x12345678)"])
@pytest.mark.parametrize("transport", ["gpe", "ethernet"])
def test_nsh_metadata(party: OvsParty, scene: Scene, transport: Literal["gpe", "ethernet"], metadata: str) -> None:
    """Both types of metadata are skipped."""
    segment = Segment(type="nsh", id=ID, transport=transport)
    agree(party.meet(scene, segment, 4, spare=MORE_NSH, metadata=metadata), party, scene.network.mtu)


@pytest.mark.parametrize(
    ("segment", "version"), WIRES, ids=[f"{segment.text}-v{version}".replace(" ", "-") for segment, version in WIRES]
)
def test_full_size_packets_both_ways(party: OvsParty, scene: Scene, segment: Segment, version: int) -> None:
    spare = PACKET_SOCKET if segment.service_vlan else 0
    agree(party.meet(scene, segment, version, spare=spare), party, scene.network.mtu)
