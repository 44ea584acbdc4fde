"""Trunks: sub-ports that share their parent's device, each with its tag. docs/pipeline.md, "admit", "Trunks"."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.abi import Reason
from headrace.datapath.decision import Arrival
from headrace.model import Object, Segment
from headrace.testing import packet
from headrace.testing.outer import put_on, put_tags, take_off
from headrace.testing.packet import BROADCAST, Somewhere, tagged
from headrace.testing.stand import underlay_mac
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, HOSTS, OUT, group, network, port, subnet

MakeTwin = Callable[..., Twin]

RED = Segment(type="geneve", id=200)
WIRE = Segment(type="vlan", id=12, physical_network="physnet1")
ETHERNET = Segment(type="nsh", id=300, transport="ethernet")
TRUNK = port("trunk", "blue", 1, "any")
ON_RED = port("tr", "red", 2, "any", parent="trunk", vlan=7)
ON_WIRE = port("tw", "wired", 3, "any", parent="trunk", vlan=4094)
ON_NSH = port("tn", "nsh", 4, "any", parent="trunk", vlan=1)
B, R, W = port("b", "blue", 11, "any"), port("r", "red", 12, "any"), port("w", "wired", 13, "any")
FAR_R, FAR_N = port("fr", "red", 22, "any", host="h2"), port("fn", "nsh", 24, "any", host="h2")
GUEST = Somewhere("02:00:00:00:99:99", ("10.0.0.99", "fd00::99"))
STATE: tuple[Object, ...] = (
    network("blue"),
    network("red", segment=RED, mtu=1400),
    network("wired", segment=WIRE),
    network("nsh", segment=ETHERNET, mtu=1400),
    group("any", *ANY),
    *(TRUNK, ON_RED, ON_WIRE, ON_NSH, B, R, W, FAR_R, FAR_N),
)


def beside(frame: bytes, vid: int, kind: int = 0x8100) -> Arrival:
    """From the trunk's device, its tag taken off by the NIC."""
    return sent("trunk", frame, vlan=vid, vlan_type=kind)


@pytest.mark.parametrize("how", ["in the frame", "beside it"])
def test_tags_tell_the_port(twin: MakeTwin, how: str) -> None:
    asked = twin(*STATE)

    def come(frame: bytes, vid: int) -> Arrival:
        return beside(frame, vid) if how == "beside it" else sent("trunk", tagged(frame, vid))

    for family in (4, 6):
        frame = packet.udp(ON_RED, R, 1, 2, family=family)
        observed = asked.thrice(come(frame, 7))
        assert [(output.port, output.frame) for output in observed.outputs] == [("r", frame)]
        assert observed.replayed
        assert observed.key is not None
        assert observed.key.where.id == "tr on red"
        frame = packet.udp(TRUNK, B, 1, 2, family=family)
        assert asked.thrice(sent("trunk", frame)).outputs[0].port == "b"
        assert asked.thrice(come(packet.udp(ON_WIRE, W, 1, 2, family=family), 4094)).outputs[0].port == "w"


def test_by_every_kind_of_wire(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    frame = packet.udp(ON_RED, FAR_R, 1, 2)
    observed = asked.thrice(sent("trunk", tagged(frame, 7)))
    assert take_off(observed.outer)[2] == RED
    assert take_off(observed.outer).inner == frame
    frame = packet.udp(ON_NSH, FAR_N, 1, 2)
    assert take_off(asked.thrice(sent("trunk", tagged(frame, 1))).outer).inner == frame
    frame = packet.udp(ON_WIRE, GUEST, 1, 2)
    assert asked.thrice(sent("trunk", tagged(frame, 4094))).outer == put_tags(frame, WIRE), "another tag"


def test_what_is_sent_to_a_sub_port_gets_its_tag(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for arrival, own, vid in (
        (sent("r", packet.udp(R, ON_RED, 1, 2)), "tr", 7),
        (sent("r", packet.udp(R, ON_RED, 1, 2, family=6)), "tr", 7),
        (tunnelled(packet.udp(FAR_R, ON_RED, 1, 2), segment=RED), "tr", 7),
        (tunnelled(packet.udp(FAR_N, ON_NSH, 1, 2, family=6), segment=ETHERNET), "tn", 1),
        (sent("w", packet.udp(W, ON_WIRE, 1, 2)), "tw", 4094),
    ):
        observed = asked.thrice(arrival)
        (output,) = observed.outputs
        assert (output.port, output.frame) == (own, tagged(arrival.frame, vid))
        assert observed.replayed
    from_wire = Arrival(physical="physnet1", frame=put_tags(packet.udp(GUEST, ON_WIRE, 1, 2), WIRE))
    assert asked.thrice(from_wire).outputs[0].frame == tagged(packet.udp(GUEST, ON_WIRE, 1, 2), 4094)
    assert asked.thrice(sent("b", packet.udp(B, TRUNK, 1, 2))).outputs[0].frame == packet.udp(B, TRUNK, 1, 2)


def test_floods(twin: MakeTwin) -> None:
    """Each receiver on the trunk's device gets its own copy, with its own tag."""
    asked = twin(*STATE, port("also", "red", 5, "any", parent="trunk", vlan=8))
    frame = packet.udp(R, ON_RED, 1, 2, dmac=BROADCAST)
    found = {output.port: output.frame for output in asked.thrice(sent("r", frame)).outputs if output.port}
    assert found == {"tr": tagged(frame, 7), "also": tagged(frame, 8)}
    frame = packet.arp(ON_RED, "10.0.0.77")
    outputs = {output.port: output.frame for output in asked.thrice(sent("trunk", tagged(frame, 7))).outputs}
    assert outputs == {"also": tagged(frame, 8), "r": frame, None: frame}


def test_between_ports_of_one_trunk(twin: MakeTwin) -> None:
    asked = twin(
        *STATE,
        port("also", "red", 5, "any", parent="trunk", vlan=8),
        port("tb", "blue", 6, "any", parent="trunk", vlan=9),
    )
    frame = packet.udp(ON_RED, port("also", "red", 5), 1, 2)
    assert asked.thrice(sent("trunk", tagged(frame, 7))).outputs[0].frame == tagged(frame, 8)
    frame = packet.udp(TRUNK, port("tb", "blue", 6), 1, 2)
    assert asked.thrice(sent("trunk", frame)).outputs[0].frame == tagged(frame, 9)
    frame = packet.udp(port("tb", "blue", 6), TRUNK, 1, 2)
    assert asked.thrice(sent("trunk", tagged(frame, 9))).outputs[0].frame == frame
    frame = packet.udp(ON_RED, ON_RED, 1, 2)
    assert asked.thrice(sent("trunk", tagged(frame, 7))).reason == Reason.HAIRPIN


def test_what_comes_from_a_multicast_mac_is_the_parents(twin: MakeTwin) -> None:
    frame = tagged(packet.with_octet(packet.udp(ON_RED, R, 1, 2), 6, 3), 7)
    assert twin(*STATE).thrice(sent("trunk", frame)).counts.reasons == {("trunk", Reason.MULTICAST_SOURCE): 1}


@pytest.mark.parametrize(
    "tags",
    [
        [(0x8100, 5)],
        [(0x8100, 0)],
        [(0x8100, 4095)],
        [(0x88A8, 7)],
        [(0x88A8, 7), (0x8100, 7)],
        [(0x8100, 5), (0x8100, 7)],
    ],
)
def test_other_tags_are_the_parents(twin: MakeTwin, tags: list[tuple[int, int]]) -> None:
    asked = twin(*STATE)
    frame = packet.udp(ON_RED, R, 1, 2)
    for kind, vid in reversed(tags[1:]):
        frame = tagged(frame, vid, kind)
    kind, vid = tags[0]
    for arrival in (beside(frame, vid, kind), sent("trunk", tagged(frame, vid, kind))):
        observed = asked.thrice(arrival)
        assert observed.reason == Reason.VLAN_TAGGED
        assert observed.counts.reasons == {("trunk", Reason.VLAN_TAGGED): 1}


def test_a_tag_within(twin: MakeTwin) -> None:
    """A sub-port is no trunk."""
    observed = twin(*STATE).thrice(sent("trunk", tagged(tagged(packet.udp(ON_RED, R, 1, 2), 5), 7)))
    assert observed.counts.reasons == {("tr", Reason.VLAN_TAGGED): 1}


def test_priority_is_not_looked_at(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for tci in (0xE007, 0x1007):
        assert asked.thrice(sent("trunk", tagged(packet.udp(ON_RED, R, 1, 2), tci))).outputs[0].port == "r"


def test_another_ports_tags_mean_nothing(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    assert asked.thrice(sent("b", tagged(packet.udp(ON_RED, R, 1, 2), 7))).reason == Reason.VLAN_TAGGED


def test_macs_and_addresses_are_a_sub_ports_own(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    assert asked.thrice(sent("trunk", tagged(packet.udp(TRUNK, R, 1, 2), 7))).reason == Reason.SPOOFED_MAC
    assert asked.thrice(sent("trunk", packet.udp(ON_RED, B, 1, 2))).reason == Reason.SPOOFED_MAC
    spoofed = packet.udp(ON_RED, R, 1, 2, src="10.0.0.1")
    observed = asked.thrice(sent("trunk", tagged(spoofed, 7)))
    assert observed.counts.reasons == {("tr", Reason.SPOOFED_ADDRESS): 1}


def test_groups_and_counters_are_a_sub_ports_own(twin: MakeTwin) -> None:
    asked = twin(*STATE, group("deaf", *OUT), port("tr", "red", 2, "deaf", parent="trunk", vlan=7))
    assert asked.thrice(sent("r", packet.udp(R, ON_RED, 1, 2))).reason == Reason.ACL_TO_PORT
    sending = asked.thrice(sent("trunk", tagged(packet.udp(ON_RED, R, 2, 1), 7)))
    assert sending.counts.traffic["tr", "from_port", "octets"] == 42, "without its tag"
    assert asked.thrice(sent("r", packet.udp(R, ON_RED, 1, 2))).rule_to == "ESTABLISHED"


def test_answers_have_the_tag(twin: MakeTwin) -> None:
    """ARP, ND, and what tells of an MTU."""
    asked = twin(*STATE)
    for frame in (packet.arp(ON_RED, "10.0.0.12"), packet.ns(ON_RED, "fd00::c")):
        observed = asked.thrice(sent("trunk", tagged(frame, 7)))
        assert observed.reason == Reason.ANSWERED
        assert (observed.outputs[0].port, observed.outputs[0].frame[12:16]) == ("tr", b"\x81\0\0\x07")
    for family in (4, 6):
        frame = packet.udp(ON_RED, R, 1, 2, payload=bytes(1400), family=family, df=True)
        observed = asked.thrice(sent("trunk", tagged(frame, 7)))
        assert observed.reason == Reason.TOO_BIG
        assert (observed.outputs[0].port, observed.outputs[0].frame[12:16]) == ("tr", b"\x81\0\0\x07")
    assert asked.thrice(sent("trunk", packet.arp(TRUNK, "10.0.0.11"))).outputs[0].frame[12:14] == b"\x08\x06"


def test_the_agent_is_asked_for_the_sub_port(twin: MakeTwin) -> None:
    asked = twin(*STATE, subnet("s", "red", "10.0.0.0/24"))
    question = packet.udp(ON_RED, R, 68, 67, src="0.0.0.0", dst="255.255.255.255", dmac=BROADCAST)
    assert asked.run(sent("trunk", tagged(question, 7))).reason == Reason.PUNTED
    (punt,) = asked.host.punts
    assert punt.port == asked.host.ports["tr"]
    assert bytes(punt.octets[: punt.length]) == question


def test_ports_that_are_down(twin: MakeTwin) -> None:
    """Each by itself; a sub-port's goes before all else."""
    down = port("tr", "red", 2, "any", parent="trunk", vlan=7, admin_up=False)
    asked = twin(*STATE, down)
    for frame in (packet.udp(ON_RED, R, 1, 2), packet.with_octet(packet.udp(ON_RED, R, 1, 2), 14, 0x44)):
        observed = asked.thrice(sent("trunk", tagged(frame, 7)))
        assert observed.counts.reasons == {("tr", Reason.PORT_DOWN): 1}
    assert asked.thrice(sent("r", packet.udp(R, ON_RED, 1, 2))).reason == Reason.PORT_DOWN
    assert asked.thrice(sent("trunk", packet.udp(TRUNK, B, 1, 2))).reason == Reason.NONE
    asked = twin(*STATE, port("trunk", "blue", 1, "any", admin_up=False))
    assert asked.thrice(sent("trunk", packet.udp(TRUNK, B, 1, 2))).reason == Reason.PORT_DOWN
    assert asked.thrice(sent("trunk", tagged(packet.udp(ON_RED, R, 1, 2), 7))).reason == Reason.NONE
    assert asked.thrice(sent("r", packet.udp(R, ON_RED, 1, 2))).outputs[0].port == "tr"


def test_a_sub_port_without_its_trunk(twin: MakeTwin) -> None:
    for change in (port("trunk", "blue", 1, "any", host="h2"), port("tr", "red", 2, "any", parent="nobody", vlan=7)):
        asked = twin(*STATE, change)
        assert asked.thrice(sent("r", packet.udp(R, ON_RED, 1, 2))).reason == Reason.PORT_DOWN


def test_sub_ports_come_and_go(twin: MakeTwin) -> None:
    """Flows of one are decided anew when its tag changes; a VID that is free again is the parent's."""
    asked = twin(*STATE)
    to, back = sent("r", packet.udp(R, ON_RED, 1, 2)), packet.udp(ON_RED, R, 2, 1)
    assert asked.thrice(to).outputs[0].frame == tagged(to.frame, 7)
    assert asked.thrice(sent("trunk", tagged(back, 7))).outputs[0].port == "r"
    asked.apply(asked.state.of((*asked.state.all(), port("tr", "red", 2, "any", parent="trunk", vlan=77))))
    assert asked.thrice(to).outputs[0].frame == tagged(to.frame, 77)
    assert asked.thrice(sent("trunk", tagged(back, 7))).reason == Reason.VLAN_TAGGED
    assert asked.thrice(sent("trunk", tagged(back, 77))).outputs[0].port == "r"
    kept = [one for one in asked.state.all() if one.id != "tr"]
    asked.apply(asked.state.of(kept))
    assert asked.thrice(sent("trunk", tagged(back, 77))).reason == Reason.VLAN_TAGGED
    assert asked.thrice(to).reason == Reason.UNKNOWN_MAC


def test_what_is_learnt_behind_a_sub_port(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("tr", "red", 2, parent="trunk", vlan=7, port_security=False))
    to_guest = sent("r", packet.udp(R, GUEST, 1, 2))
    assert asked.run(to_guest).reason == Reason.UNKNOWN_MAC
    asked.run(sent("trunk", tagged(packet.udp(GUEST, R, 2, 1), 7)))
    observed = asked.thrice(to_guest)
    assert (observed.outputs[0].port, observed.outputs[0].frame) == ("tr", tagged(to_guest.frame, 7))


def test_fragments_of_a_sub_port(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    for family in (4, 6):
        first, later = packet.fragments(packet.udp(ON_RED, R, 1, 2, payload=bytes(48), family=family), 32)
        assert asked.run(sent("trunk", later)).reason == Reason.SPOOFED_MAC
        assert asked.run(sent("trunk", tagged(later, 7))).reason == Reason.FRAGMENT_ORPHAN
        assert asked.thrice(sent("trunk", tagged(first, 7))).reason == Reason.NONE
        assert asked.thrice(sent("trunk", tagged(later, 7))).reason == Reason.NONE


def test_cut_short_anywhere(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    frame = packet.tcp(ON_RED, R, 1000, 80)
    for length in range(14, len(frame)):
        asked.run(sent("trunk", tagged(frame[:length], 7)))
        asked.run(sent("trunk", tagged(frame[:length], 7)), "xdp")


def test_the_same_macs_and_addresses_on_both(twin: MakeTwin) -> None:
    """Networks of one trunk may overlap; connections keep them apart."""
    same = port("tr", "red", 1, "any", parent="trunk", vlan=7)
    asked = twin(*STATE, same, port("r", "red", 11, "any"))
    frame = packet.udp(TRUNK, B, 1, 2)
    assert asked.thrice(sent("trunk", frame)).outputs[0].port == "b"
    assert asked.thrice(sent("trunk", tagged(frame, 7))).outputs[0].port == "r"
    answer = packet.udp(B, TRUNK, 2, 1)
    assert asked.thrice(sent("b", answer)).outputs[0].frame == answer
    assert asked.thrice(sent("r", answer)).outputs[0].frame == tagged(answer, 7)


def test_a_hostile_underlay_does_not_reach_sub_ports(twin: MakeTwin) -> None:
    asked = twin(*STATE, hosts=HOSTS)
    macs = bytes.fromhex((asked.host.stand.own_mac + underlay_mac("192.0.2.2")).replace(":", ""))
    inner = tagged(packet.udp(FAR_R, ON_RED, 1, 2), 7)
    frame = put_on("192.0.2.2", "192.0.2.1", RED, inner, macs=macs)
    assert asked.thrice(Arrival(frame=frame)).reason == Reason.VLAN_TAGGED
