"""Physical networks: flat, VLAN and QinQ, and the wire as a place. docs/pipeline.md, "admit" and "forward"."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.abi import Reason
from headrace.datapath.decision import Arrival
from headrace.model import AddressPair, Host, Object, Segment
from headrace.testing import packet
from headrace.testing.outer import put_on, put_tags
from headrace.testing.packet import BROADCAST, Somewhere
from headrace.testing.twin import Twin, sent
from headrace.testing.world import ANY, HOSTS, OUT, group, network, port

MakeTwin = Callable[..., Twin]

WIRE = "physnet1"
SEGMENTS: dict[str, Segment] = {
    "flat": Segment(type="flat", physical_network=WIRE),
    "vlan": Segment(type="vlan", id=12, physical_network=WIRE),
    "the last vlan": Segment(type="vlan", id=4094, physical_network=WIRE),
    "qinq": Segment(type="vlan", id=12, physical_network=WIRE, service_vlan=7),
}
VRRP = "00:00:5e:00:01:07"
A, B = port("a", "blue", 1, "any"), port("b", "blue", 2, "any")
FAR, UNBOUND = port("far", "blue", 3, "any", host="h2"), port("unbound", "blue", 4, "any", host=None)
OPEN = port("open", "blue", 5, port_security=False)
PORTS = (group("any", *ANY), A, B, FAR, UNBOUND, OPEN)
GUEST = Somewhere("02:00:00:00:99:99", ("10.0.0.99", "fd00::99"))
STRANGER = Somewhere("02:00:00:00:77:77", ("10.0.0.77", "fd00::77"))


def on(segment: Segment, mtu: int = 1450) -> tuple[Object, ...]:
    return (network("blue", segment=segment, mtu=mtu), *PORTS)


def came(segment: Segment, frame: bytes, tci: int = 0) -> Arrival:
    """A frame from the wire. ``tci``: more bits of the outer tag."""
    tagged = put_tags(frame, segment)
    if tci:
        tagged = tagged[:14] + (int.from_bytes(tagged[14:16], "big") | tci).to_bytes(2, "big") + tagged[16:]
    return Arrival(physical=WIRE, frame=tagged)


@pytest.fixture(params=SEGMENTS)
def segment(request: pytest.FixtureRequest) -> Segment:
    found: Segment = SEGMENTS[request.param]
    return found


def test_out_with_tags_and_no_headers(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(*on(segment))
    for to in (FAR, UNBOUND, GUEST):
        for family in (4, 6):
            frame = packet.udp(A, to, 1, 2, family=family)
            observed = asked.thrice(sent("a", frame))
            (output,) = observed.outputs
            assert (output.segment, output.vtep, output.frame) == (segment, None, frame)
            assert observed.outer == put_tags(frame, segment)
            assert observed.replayed


def test_in_and_back(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(*on(segment))
    for family in (4, 6):
        frame = packet.udp(GUEST, A, 1000, 53, family=family)
        observed = asked.thrice(came(segment, frame))
        assert [(output.port, output.frame) for output in observed.outputs] == [("a", frame)]
        assert (observed.replayed, observed.passed) == (True, False)
        answer = asked.thrice(sent("a", packet.udp(A, GUEST, 53, 1000, family=family)))
        assert (answer.rule_from, answer.outputs[0].segment) == ("ESTABLISHED", segment)


def test_priority_is_not_looked_at(twin: MakeTwin) -> None:
    asked = twin(*on(SEGMENTS["vlan"]))
    for tci in (0x2000, 0xE000, 0x1000, 0xF000):
        assert asked.thrice(came(SEGMENTS["vlan"], packet.udp(GUEST, A, 1, 2), tci)).outputs[0].port == "a"


def test_a_priority_tag_is_flat(twin: MakeTwin) -> None:
    asked = twin(*on(SEGMENTS["flat"]))
    frame = packet.udp(GUEST, A, 1, 2)
    for tci in (0, 0xA000):
        arrival = Arrival(physical=WIRE, frame=packet.tagged(frame, tci))
        assert asked.thrice(arrival).outputs[0].frame == frame


@pytest.mark.parametrize("how", ["in the frame", "beside it"])
def test_other_tags_are_the_kernels(twin: MakeTwin, segment: Segment, how: str) -> None:
    asked = twin(*on(segment))
    for frame in (packet.udp(GUEST, A, 1, 2), packet.udp(GUEST, A, 1, 2, dmac=BROADCAST)):
        for tags in ([], [(0x8100, 13)], [(0x88A8, 12)], [(0x88A8, 8), (0x8100, 12)], [(0x88A8, 7), (0x8100, 13)]):
            if segment.type == "flat" and not tags:
                continue
            inner = frame
            for kind, vid in tags[1:]:
                inner = packet.tagged(inner, vid, kind)
            if tags and how == "beside it":
                kind, vid = tags[0]
                arrival = Arrival(physical=WIRE, frame=inner, vlan=vid, vlan_type=kind)
            else:
                arrival = Arrival(physical=WIRE, frame=packet.tagged(inner, *reversed(tags[0])) if tags else inner)
            assert asked.thrice(arrival).passed


@pytest.mark.parametrize(
    "tags",
    [
        [(0x88A8, 0), (0x8100, 12)],
        [(0x88A8, 7), (0x8100, 0)],
        [(0x88A8, 0)],
        [(0x88A8, 7), (0x88A8, 12)],
    ],
)
def test_tags_that_name_no_segment_are_the_kernels(twin: MakeTwin, tags: list[tuple[int, int]]) -> None:
    """A service tag needs a VID, and a customer's with one behind it."""
    ports = [port(f"p{number}", f"n{number}", 1, "any") for number in range(len(SEGMENTS))]
    networks = [network(f"n{number}", segment=one) for number, one in enumerate(SEGMENTS.values())]
    asked = twin(group("any", *ANY), *networks, *ports)
    frame = packet.udp(GUEST, A, 1, 2)
    for kind, vid in reversed(tags):
        frame = packet.tagged(frame, vid, kind)
    assert asked.thrice(Arrival(physical=WIRE, frame=frame)).passed


def test_a_tag_too_many(twin: MakeTwin, segment: Segment) -> None:
    """Workloads of a segment send no tags, wherever they are."""
    asked = twin(*on(segment))
    if segment.type == "flat":
        assert asked.thrice(came(segment, packet.tagged(packet.udp(GUEST, A, 1, 2)))).passed, "it names another segment"
    else:
        tagged = packet.tagged(packet.udp(GUEST, A, 1, 2))
        assert asked.thrice(came(segment, tagged)).reason == Reason.VLAN_TAGGED


def test_for_nobody_here_it_is_the_kernels(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(*on(segment))
    for to in (GUEST, FAR, UNBOUND):
        observed = asked.thrice(came(segment, packet.udp(STRANGER, to, 1, 2)))
        assert (observed.passed, observed.counts.reasons) == (True, {})
    broken = packet.with_octet(packet.udp(STRANGER, GUEST, 1, 2), 14, 0x44)
    assert asked.thrice(came(segment, broken)).passed, "malformed or not"
    assert asked.thrice(came(segment, broken[:14])).passed


def test_a_multicast_is_the_kernels_too(twin: MakeTwin, segment: Segment) -> None:
    """With its tags, whatever becomes of it here."""
    asked = twin(*on(segment))
    for frame in (
        packet.arp(GUEST, "10.0.0.99"),
        packet.udp(GUEST, A, 1, 2, dmac=BROADCAST),
        packet.udp(GUEST, A, 1, 2, family=6, dst="ff02::fb", dmac="33:33:00:00:00:fb"),
    ):
        observed = asked.thrice(came(segment, frame))
        assert (observed.reason, observed.passed) == (Reason.FLOODED, True)
        assert {output.port: output.frame for output in observed.outputs} == dict.fromkeys("ab", frame) | {
            "open": frame
        }
    for frame, reason in (
        (packet.with_octet(packet.udp(GUEST, A, 1, 2, dmac=BROADCAST), 14, 0x44), Reason.MALFORMED_IPV4),
        (packet.with_octet(packet.arp(GUEST, "10.0.0.99"), 6, 3), Reason.MULTICAST_SOURCE),
        (packet.arp(A, "10.0.0.99"), Reason.SPOOFED_MAC),
    ):
        observed = asked.thrice(came(segment, frame))
        assert (observed.reason, observed.passed, observed.outputs) == (reason, True, ())


def test_receivers_judge_a_multicast(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(network("blue", segment=segment), group("deaf", *OUT), port("a", "blue", 1, "deaf"))
    observed = asked.thrice(came(segment, packet.udp(GUEST, A, 1, 2, dmac=BROADCAST)))
    assert (observed.outputs, observed.passed) == ((), True)
    assert [(one.port, one.reason) for one in observed.refused] == [("a", Reason.ACL_TO_PORT)]


def test_our_macs_do_not_come_from_there(twin: MakeTwin, segment: Segment) -> None:
    """A loop, or somebody who would have our ports' traffic."""
    asked = twin(*on(segment))
    for frame in (packet.udp(B, A, 1, 2), packet.arp(B, "10.0.0.1", to=A, operation=2)):
        observed = asked.thrice(came(segment, frame))
        assert (observed.reason, observed.outputs, observed.passed) == (Reason.SPOOFED_MAC, (), False)
    broken = packet.with_octet(packet.udp(B, A, 1, 2), 14, 0x44)
    assert asked.thrice(came(segment, broken)).reason == Reason.MALFORMED_IPV4, "it is admitted first"
    assert asked.thrice(came(segment, packet.udp(FAR, A, 1, 2))).outputs[0].port == "a"


def test_a_port_that_is_down(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(*on(segment), port("a", "blue", 1, "any", admin_up=False))
    assert asked.thrice(came(segment, packet.udp(GUEST, A, 1, 2))).reason == Reason.PORT_DOWN


def test_a_flood_goes_to_the_wire_once(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(*on(segment))
    frame = packet.udp(A, GUEST, 1, 2, dmac=BROADCAST)
    observed = asked.thrice(sent("a", frame))
    away = [output for output in observed.outputs if output.port is None]
    assert [(output.segment, output.frame) for output in away] == [(segment, frame)]
    assert observed.copies == (put_tags(frame, segment),)
    assert observed.wires == (WIRE,)
    alone = twin(network("blue", segment=segment), group("any", *ANY), A)
    assert [output.segment for output in alone.thrice(sent("a", frame)).outputs] == [segment]


def test_fragments(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(*on(segment))
    for first, later in (
        packet.fragments(packet.udp(GUEST, A, 1, 2, payload=bytes(48)), 32),
        packet.fragments(packet.udp(GUEST, A, 1, 2, payload=bytes(48), family=6), 32),
    ):
        assert asked.run(came(segment, later)).reason == Reason.FRAGMENT_ORPHAN
        assert asked.thrice(came(segment, first)).reason == Reason.NONE
        assert asked.thrice(came(segment, later)).reason == Reason.NONE


def test_anti_spoofing_and_rules_are_a_ports_own(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(network("blue", segment=segment), group("deaf", *OUT), port("a", "blue", 1, "deaf"))
    assert asked.thrice(sent("a", packet.udp(GUEST, FAR, 1, 2))).reason == Reason.SPOOFED_MAC
    assert asked.thrice(came(segment, packet.udp(GUEST, A, 1, 2))).reason == Reason.ACL_TO_PORT
    assert asked.thrice(sent("a", packet.udp(A, GUEST, 2, 1))).reason == Reason.NONE
    assert asked.thrice(came(segment, packet.udp(GUEST, A, 1, 2))).rule_to == "ESTABLISHED"


# Learning


def test_a_guest_behind_a_port_is_learnt_there(twin: MakeTwin, segment: Segment) -> None:
    """Then it is here, and the wire's frames for it are ours."""
    asked = twin(*on(segment))
    to_guest = came(segment, packet.udp(STRANGER, GUEST, 1, 2))
    assert asked.thrice(to_guest).passed
    asked.run(sent("open", packet.udp(GUEST, STRANGER, 2, 1)))
    assert asked.thrice(to_guest).outputs[0].port == "open"
    assert asked.thrice(sent("a", packet.udp(A, GUEST, 1, 2))).outputs[0].port == "open"


def test_a_mac_that_moves_to_the_wire(twin: MakeTwin, segment: Segment) -> None:
    """VRRP's, from a port here to another elsewhere, and back."""
    pairs = (AddressPair(address="10.0.0.100", mac=VRRP),)
    asked = twin(*on(segment), port("b", "blue", 2, "any", address_pairs=pairs))
    virtual = Somewhere(VRRP, ("10.0.0.100",))
    to_virtual = sent("a", packet.udp(A, virtual, 1, 2))
    for _ in range(2):
        asked.thrice(sent("b", packet.arp(virtual, "10.0.0.100")))
        assert asked.thrice(to_virtual).outputs[0].port == "b"
        asked.thrice(came(segment, packet.arp(virtual, "10.0.0.100")))
        assert asked.thrice(to_virtual).outputs[0].segment == segment
        asked.thrice(sent("b", packet.udp(virtual, A, 1, 2)))
        assert asked.thrice(to_virtual).outputs[0].port == "b"


def test_a_ports_own_mac_is_never_learnt_over(twin: MakeTwin, segment: Segment) -> None:
    """Nor is one's that is bound elsewhere, by a port here that may send from any."""
    asked = twin(*on(segment))
    asked.run(sent("open", packet.udp(Somewhere(FAR.mac, ("10.9.9.9",)), B, 1, 2)))
    assert asked.thrice(sent("a", packet.udp(A, FAR, 1, 2))).outputs[0].segment == segment
    asked.run(came(segment, packet.udp(Somewhere(B.mac, ("10.9.9.9",)), A, 1, 2)))
    assert asked.thrice(sent("a", packet.udp(A, B, 1, 2))).outputs[0].port == "b"


def test_a_full_wire_forgets_what_moves_to_it(twin: MakeTwin) -> None:
    segment = SEGMENTS["vlan"]
    asked = twin(*on(segment))
    host = asked.host
    with host.stand.inside():
        for number in range(1024):
            mac = f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}"
            asked.run(came(segment, packet.arp(Somewhere(mac, ()), "10.0.0.99", dmac=A.mac, psrc="10.0.0.98")))
    assert not host.memory.inconsistencies()
    asked.run(sent("open", packet.udp(GUEST, A, 1, 2)))
    to_guest = sent("a", packet.udp(A, GUEST, 1, 2))
    assert asked.thrice(to_guest).outputs[0].port == "open"
    asked.run(came(segment, packet.udp(GUEST, A, 1, 2)))
    assert asked.thrice(to_guest).outputs[0].segment == segment, "it is not behind the port any more"
    assert not host.memory.inconsistencies()


def test_what_is_not_shown_again_is_forgotten(twin: MakeTwin) -> None:
    segment = SEGMENTS["vlan"]
    asked = twin(*on(segment))
    asked.run(came(segment, packet.udp(GUEST, A, 1, 2)))
    learnt = asked.host.datapath.maps["hr_learnt"]
    ((key, value),) = learnt.items()
    assert asked.host.datapath.learnt.age(int.from_bytes(value[6:8], "little") + 300) == 0
    assert dict(learnt.items()) == {key: value}
    assert asked.host.datapath.learnt.age(int.from_bytes(value[6:8], "little") + 301) == 1
    assert not dict(learnt.items())
    assert not asked.host.memory.inconsistencies()


# Around


def test_the_paths_mtu_is_the_devices(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(*on(segment, mtu=9000))
    fits = 1500 - (4 if segment.service_vlan else 0)
    assert asked.thrice(sent("a", packet.udp(A, FAR, 1, 2, payload=bytes(fits - 28), df=True))).reason == Reason.NONE
    observed = asked.thrice(sent("a", packet.udp(A, FAR, 1, 2, payload=bytes(fits - 27), df=True)))
    assert observed.reason == Reason.TOO_BIG
    assert int.from_bytes(observed.outputs[0].frame[40:42], "big") == fits
    flooded = asked.thrice(sent("a", packet.udp(A, FAR, 1, 2, payload=bytes(fits - 27), dmac=BROADCAST)))
    assert all(output.port for output in flooded.outputs)
    assert ("a", Reason.TOO_BIG) in {(one.port, one.reason) for one in flooded.refused}
    asked.clamp(mss=True)
    syn = packet.tcp(A, FAR, 1000, 80, options=[("MSS", 8960)])
    assert asked.thrice(sent("a", syn)).outputs[0].frame == packet.tcp(A, FAR, 1000, 80, options=[("MSS", fits - 40)])


def test_without_a_device_its_ports_are_not_here(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(*on(segment), physical=("physnet2",))
    assert asked.run(sent("a", packet.udp(A, FAR, 1, 2))).reason == Reason.NO_PORT


def test_two_physical_networks_are_apart(twin: MakeTwin, segment: Segment) -> None:
    """The same tags and addresses on both; and a tenant's VXLAN with them beside it."""
    other = Segment.on("physical", segment.number, "physnet2", segment.service_vlan or 0)
    asked = twin(*on(segment), network("red", segment=other), port("r", "red", 1, "any"))
    frame = packet.udp(GUEST, A, 1, 2)
    assert asked.thrice(came(segment, frame)).outputs[0].port == "a"
    assert asked.thrice(Arrival(physical="physnet2", frame=put_tags(frame, other))).outputs[0].port == "r"
    assert asked.thrice(sent("r", packet.udp(A, GUEST, 2, 1))).outputs[0].segment == other
    assert asked.thrice(sent("a", packet.udp(A, GUEST, 2, 1))).outputs[0].segment == segment


def test_tunnels_are_looked_for_first(twin: MakeTwin) -> None:
    """A device may lead to a physical network and to other hosts."""
    red = network("red", 200), port("r", "red", 7, "any"), port("rc", "red", 8, "any", host="h2")
    asked = twin(*on(SEGMENTS["flat"]), *red, shared=(WIRE,))
    inner = packet.udp(port("rc", "red", 8), port("r", "red", 7), 1, 2)
    outer = put_on("192.0.2.2", "192.0.2.1", 200, inner)
    assert asked.thrice(Arrival(physical=WIRE, frame=outer)).outputs[0].port == "r"


def test_a_host_needs_no_vtep(twin: MakeTwin, segment: Segment) -> None:
    hosts = (Host(id="h1"), Host(id="h2"))
    asked = twin(*on(segment), hosts=hosts)
    assert asked.thrice(sent("a", packet.udp(A, FAR, 1, 2))).outputs[0].segment == segment
    assert asked.thrice(came(segment, packet.udp(FAR, A, 2, 1))).outputs[0].port == "a"


def test_a_network_may_move_to_another_wire(twin: MakeTwin, segment: Segment) -> None:
    asked = twin(*on(Segment(id=9)), hosts=HOSTS)
    arrival = sent("a", packet.udp(A, FAR, 1, 2))
    assert asked.thrice(arrival).outputs[0].vtep == "192.0.2.2"
    asked.apply(asked.state.of((*asked.state.all(), network("blue", segment=segment))))
    assert asked.thrice(arrival).outputs[0].segment == segment
    assert asked.thrice(came(segment, packet.udp(FAR, A, 2, 1))).outputs[0].port == "a"
    asked.apply(asked.state.of((*asked.state.all(), network("blue", 9))))
    assert asked.thrice(came(segment, packet.udp(FAR, A, 2, 1))).passed


def test_what_is_for_the_devices_own_mac_is_the_hosts(twin: MakeTwin, segment: Segment) -> None:
    """Also where a workload sends from that MAC; a broadcast from there is for both, as ever."""
    asked = twin(*on(segment))
    device = Somewhere(asked.host.stand.wire_macs["wire1"], ("10.0.0.98", "fd00::98"))
    asked.thrice(sent("open", packet.udp(device, A, 1, 2)))
    assert asked.thrice(came(segment, packet.udp(GUEST, device, 2, 1))).passed
    asked.thrice(came(segment, packet.arp(GUEST, "10.0.0.98")))
