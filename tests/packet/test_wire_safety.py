"""What a hostile machine on a wire, or a workload that sends from others' MACs, cannot bring about."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace import abi
from headrace.datapath.decision import Arrival
from headrace.model import Network, Object, Segment
from headrace.stages.view import segment_number
from headrace.testing import packet
from headrace.testing.observation import Hook
from headrace.testing.outer import put_on
from headrace.testing.packet import BROADCAST, Somewhere
from headrace.testing.twin import Twin, sent
from headrace.testing.world import ANY, group, network, port

MakeTwin = Callable[..., Twin]
HOOKS: tuple[Hook, ...] = ("tc", "xdp")

VLAN = Network(id="lan", segment=Segment(type="vlan", id=12, physical_network="physnet1"), mtu=1500)
FLAT = Network(id="flat", segment=Segment(type="flat", physical_network="physnet1"), mtu=1500)
QINQ = Network(id="ring", segment=Segment(type="vlan", id=12, service_vlan=7, physical_network="physnet1"), mtu=1496)
A, B = port("a", "lan", 1, "any"), port("b", "lan", 2, port_security=False)
BLUE = port("blue-a", "blue", 1, "any")
GATEWAY = Somewhere("02:00:00:00:00:fe", ("10.0.0.254", "fd00::fe"))
STATE = (VLAN, network("blue"), group("any", *ANY), A, B, BLUE)


def test_a_mac_that_comes_to_a_port_unannounced(twin: MakeTwin) -> None:
    """Nobody knew it, so it was on the wire, and flows to it went there."""
    asked = twin(*STATE)
    out = sent("a", packet.udp(A, GATEWAY, 1, 2))
    assert asked.thrice(out).outputs[0].segment == VLAN.segment
    asked.run(sent("b", packet.udp(GATEWAY, A, 1, 9, dmac=BROADCAST)))
    assert asked.run(out).outputs[0].port == "b"
    assert asked.thrice(out).outputs[0].port == "b"


@pytest.mark.parametrize("source", ["::ffff:192.0.2.2", "100::{mac}"])
def test_sources_that_no_packet_has(twin: MakeTwin, source: str) -> None:
    """Tables know IPv4 VTEPs and those of NSH over Ethernet by addresses that are not legal on a wire."""
    nsh = Network(id="path", segment=Segment(type="nsh", id=9, transport="ethernet"), mtu=1400)
    asked = twin(*STATE, nsh, port("p", "path", 7, "any"))
    mac = bytes.fromhex(asked.host.stand.macs["192.0.2.2"].replace(":", ""))  # type: ignore[union-attr]
    text = source.format(mac="")
    if "{mac}" in source:
        text = "100::" + ":".join(mac.hex()[at : at + 4] for at in (0, 4, 8))
    inner = packet.udp(Somewhere("02:00:00:00:00:09", ("10.0.0.9",)), BLUE, 1, 2)
    observed = asked.run(Arrival(frame=put_on(text, "2001:db8::1", 100, inner)))
    assert observed.outputs == ()


def tunnelled_by_wire(asked: Twin) -> Arrival:
    """From a machine on a physical network that takes a VTEP's address, to a network that travels by tunnel."""
    inner = packet.udp(Somewhere("02:00:00:00:00:09", ("10.0.0.9",)), BLUE, 1, 2)
    frame = put_on("192.0.2.2", "192.0.2.1", 100, inner)
    assert asked.thrice(Arrival(frame=frame)).outputs[0].port == "blue-a"
    return Arrival(physical="physnet1", frame=frame)


@pytest.mark.parametrize("ports", [STATE, STATE[1:3] + STATE[5:]], ids=["used", "unused"])
def test_no_tunnel_comes_by_a_physical_network(twin: MakeTwin, ports: tuple[Object, ...]) -> None:
    """Neither by a walk nor by the replay of what has come by an uplink."""
    asked = twin(*ports)
    arrival = tunnelled_by_wire(asked)
    for hook in HOOKS:
        observed = asked.run(arrival, hook)
        assert (observed.passed, observed.outputs) == (True, ()), hook


def test_ageing_does_not_forget_what_came_to_a_port_meanwhile(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    datapath, segment = asked.host.datapath, segment_number(VLAN.segment, 1)
    asked.run(sent("b", packet.udp(GATEWAY, A, 1, 9, dmac=BROADCAST)))
    ((octets, place),) = [(key, value) for key, value in datapath.maps["hr_learnt"].items()]
    key = abi.FdbKey.unpack(octets)
    assert key.segment == segment
    late = abi.Unlearning(segment=key.segment, mac=key.mac, aged=1).pack()
    assert datapath.programs["hr_unlearn"].test_run(ctx=late).retval == 0
    assert dict(datapath.maps["hr_learnt"].items()) == {octets: place}
    assert asked.thrice(sent("a", packet.udp(A, GATEWAY, 1, 2))).outputs[0].port == "b"


def test_an_entry_that_nobody_deleted_is_no_obstacle_for_ever(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    datapath, guest = asked.host.datapath, packet.udp(GATEWAY, A, 1, 9, dmac=BROADCAST)
    asked.run(sent("b", guest))
    ((octets, _),) = datapath.maps["hr_learnt"].items()
    datapath.maps["hr_learnt"].update(octets, bytes(abi.Learnt.SIZE))
    for _ in range(2):
        datapath.learnt.age(0)
    assert not dict(datapath.maps["hr_learnt"].items())


@pytest.mark.parametrize("priority", [0, 5 << 13, 1 << 12, 0xF000])
@pytest.mark.parametrize("vid", [0, 12])
def test_the_kernel_gets_tags_back_as_they_came(twin: MakeTwin, vid: int, priority: int) -> None:
    """Of every fate of a frame that is the kernel's too."""
    asked = twin(*STATE, FLAT, port("f", "flat", 7, "any"))
    for frame in (
        packet.udp(GATEWAY, A, 1, 2, dmac=BROADCAST),
        packet.udp(A, B, 1, 2, dmac=BROADCAST),
        packet.arp(GATEWAY, "10.0.0.1")[:30],
    ):
        assert asked.run(Arrival(physical="physnet1", frame=frame, vlan=vid | priority)).passed


@pytest.mark.parametrize("priority", [0, 0x5000])
def test_so_it_does_of_two_tags(twin: MakeTwin, priority: int) -> None:
    asked = twin(*STATE, QINQ, port("q", "ring", 7, "any"))
    frame = packet.udp(GATEWAY, A, 1, 2, dmac=BROADCAST)
    inner = frame[:12] + b"\x81\x00" + (12 | priority).to_bytes(2, "big") + frame[12:]
    assert asked.run(Arrival(physical="physnet1", frame=inner, vlan=7 | 0x3000, vlan_type=0x88A8)).passed
