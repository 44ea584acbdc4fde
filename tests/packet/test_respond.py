"""respond: who is answered, by what octets, and who is not. docs/pipeline.md, "respond"."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether

from headrace.abi import Reason
from headrace.datapath.decision import Output
from headrace.model import AddressPair, Port
from headrace.testing import packet
from headrace.testing.observation import MARK, TC_ACT_REDIRECT
from headrace.testing.packet import BROADCAST, Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, group, network, port

MakeTwin = Callable[..., Twin]

A = port("a", "blue", 1, "any")
HERE = port("here", "blue", 2, "any")
FAR = port("far", "blue", 3, "any", host="h2")
UNBOUND = port("unbound", "blue", 4, "any", host=None)
OPEN = port("open", "blue", 5, port_security=False)
ROUTER = port("router", "blue", 6, "any", device_owner="network:router_interface")
PAIRED = port("paired", "blue", 7, "any", address_pairs=(AddressPair(address="10.0.0.100"),))
ELSEWHERE = port("elsewhere", "red", 8, "any")
LOST = port("lost", "blue", 9, "any", host="h9")
STATE = (
    *(network("blue"), network("red", 200), group("any", *ANY)),
    *(A, HERE, FAR, UNBOUND, OPEN, ROUTER, PAIRED, ELSEWHERE, LOST),
)


def answered(asked: Twin, frame: bytes, answer: bytes) -> None:
    """The frame is answered to its sender, every time, and nobody else hears of it."""
    for _ in range(2):
        observed = asked.run(sent("a", frame))
        assert observed.reason == Reason.ANSWERED
        assert observed.verdict == TC_ACT_REDIRECT
        assert observed.outputs == (Output(port="a", frame=answer),)
        assert observed.marked, f"an answer passes the guard by its mark {MARK:#x}"
        assert observed.counts.reasons == {("a", Reason.ANSWERED): 1}
        assert not asked.memory.flows


def reply(owner: Port, target: str, asker: str, asker_address: str) -> bytes:
    """The ARP reply as scapy writes it."""
    message = ARP(op=2, hwsrc=owner.mac, psrc=target, hwdst=asker, pdst=asker_address)
    return bytes(Ether(src=owner.mac, dst=asker) / message)


@pytest.mark.parametrize("owner", [HERE, FAR, PAIRED, LOST], ids=lambda one: one.id)
def test_arp_for_a_neighbour_is_answered(twin: MakeTwin, owner: Port) -> None:
    asked = twin(*STATE)
    answered(asked, packet.arp(A, owner.addresses[0]), reply(owner, owner.addresses[0], A.mac, "10.0.0.1"))


def test_an_answer_is_as_long_as_its_question(twin: MakeTwin) -> None:
    padding = bytes(range(18))
    answered(twin(*STATE), packet.arp(A, "10.0.0.2") + padding, reply(HERE, "10.0.0.2", A.mac, "10.0.0.1") + padding)


def test_a_probe_is_answered_so_that_a_duplicate_is_found(twin: MakeTwin) -> None:
    answered(twin(*STATE), packet.arp(A, "10.0.0.2", psrc="0.0.0.0"), reply(HERE, "10.0.0.2", A.mac, "0.0.0.0"))


def test_a_unicast_question_is_answered_too(twin: MakeTwin) -> None:
    answered(twin(*STATE), packet.arp(A, "10.0.0.2", dmac=FAR.mac), reply(HERE, "10.0.0.2", A.mac, "10.0.0.1"))


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("10.0.0.4", {}),
        ("10.0.0.5", {}),
        ("10.0.0.6", {}),
        ("10.0.0.8", {}),
        ("10.0.0.99", {}),
        ("10.0.0.100", {}),
        ("10.0.0.1", {}),
        ("10.0.0.1", {"psrc": "0.0.0.0"}),
        ("10.0.0.2", {"op": 2}),
    ],
)
def test_all_other_arp_goes_on(twin: MakeTwin, target: str, fields: dict[str, Any]) -> None:
    observed = twin(*STATE).thrice(sent("a", packet.arp(A, target, **fields)))
    assert observed.reason == Reason.FLOODED
    assert {output.frame for output in observed.outputs} == {packet.arp(A, target, **fields)}


def test_who_announces_an_address_is_not_told_that_another_has_it(twin: MakeTwin) -> None:
    open_ = port("a", "blue", 1, port_security=False)
    asked = twin(*STATE, open_)
    announcement = packet.arp(open_, "10.0.0.2", psrc="10.0.0.2")
    assert asked.thrice(sent("a", announcement)).reason == Reason.FLOODED


def test_a_router_behind_an_open_port_is_answered(twin: MakeTwin) -> None:
    asked = twin(*STATE, port("a", "blue", 1, port_security=False))
    guest = Somewhere("02:00:00:00:00:77", ("10.0.0.77",))
    answered(asked, packet.arp(guest, "10.0.0.2"), reply(HERE, "10.0.0.2", guest.mac, "10.0.0.77"))


def test_the_asker_is_who_the_frame_is_from(twin: MakeTwin) -> None:
    """A bridge behind an open port passes on what its guests ask: the frame's MAC is answered."""
    asked = twin(*STATE, port("a", "blue", 1, port_security=False))
    guest = Somewhere("02:00:00:00:00:77", ("10.0.0.77",))
    question = packet.arp(guest, "10.0.0.2", smac=A.mac)
    message = ARP(op=2, hwsrc=HERE.mac, psrc="10.0.0.2", hwdst=guest.mac, pdst="10.0.0.77")
    answered(asked, question, bytes(Ether(src=HERE.mac, dst=A.mac) / message))


def test_what_comes_by_tunnel_was_asked_elsewhere(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    assert asked.thrice(tunnelled(packet.arp(FAR, "10.0.0.2"))).reason == Reason.FLOODED
    assert asked.thrice(tunnelled(packet.ns(FAR, "fd00::2"))).reason == Reason.FLOODED


def test_an_address_that_moved_has_a_new_owner_at_once(twin: MakeTwin) -> None:
    asked = twin(*STATE)
    answered(asked, packet.arp(A, "10.0.0.2"), reply(HERE, "10.0.0.2", A.mac, "10.0.0.1"))
    bare = port("here", "blue", 2, "any", addresses=())
    heir = port("far", "blue", 3, "any", host="h2", addresses=("10.0.0.2",))
    asked.apply(type(asked.state).of((*asked.state.all(), bare, heir)))
    answered(asked, packet.arp(A, "10.0.0.2"), reply(heir, "10.0.0.2", A.mac, "10.0.0.1"))


# Neighbour solicitations


def advertisement(owner: Port, target: str, to: str, *, option: bool, **fields: Any) -> bytes:
    """The NA as scapy writes it: solicited, overriding, checksum and all."""
    message = ICMPv6ND_NA(tgt=target, R=0, S=1, O=1)
    if option:
        message /= ICMPv6NDOptDstLLAddr(lladdr=owner.mac)
    return bytes(Ether(src=owner.mac, dst=A.mac) / IPv6(src=target, dst=to, hlim=255, **fields) / message)


@pytest.mark.parametrize("owner", [HERE, FAR, PAIRED], ids=lambda one: one.id)
@pytest.mark.parametrize("source", ["fd00::1", "fe80::ff:fe00:1"])
def test_a_solicitation_is_answered(twin: MakeTwin, owner: Port, source: str) -> None:
    target = owner.addresses[1]
    question = packet.ns(A, target, src=source)
    answered(twin(*STATE), question, advertisement(owner, target, source, option=True))


def test_a_unicast_solicitation_without_option_is_answered_without(twin: MakeTwin) -> None:
    question = packet.ns(A, "fd00::2", option=None, to=HERE.mac)
    answered(twin(*STATE), question, advertisement(HERE, "fd00::2", "fd00::1", option=False))


def test_a_unicast_solicitation_with_option_is_answered_with(twin: MakeTwin) -> None:
    question = packet.ns(A, "fd00::2", to=HERE.mac)
    answered(twin(*STATE), question, advertisement(HERE, "fd00::2", "fd00::1", option=True))


def test_the_rest_of_the_frame_stays(twin: MakeTwin) -> None:
    question = packet.ns(A, "fd00::2", tc=0xB8, fl=0x12345) + b"tail"
    answer = advertisement(HERE, "fd00::2", "fd00::1", option=True, tc=0xB8, fl=0x12345) + b"tail"
    answered(twin(*STATE), question, answer)


@pytest.mark.parametrize("last", [0, 1, 0xFFFE, 0xFFFF, 0x1234])
def test_checksums_with_every_carry(twin: MakeTwin, last: int) -> None:
    """Owners whose MAC and address make the sum wrap, or nearly."""
    mac = f"02:ff:ff:ff:{last >> 8:02x}:{last & 255:02x}"
    address = str(ipaddress.IPv6Address(b"\xfd" + b"\xff" * 13 + last.to_bytes(2, "big")))
    owner = port("here", "blue", 2, "any", mac=mac, addresses=(address,))
    answered(twin(*STATE, owner), packet.ns(A, address), advertisement(owner, address, "fd00::1", option=True))


def shorter(frame: bytes, octets: int) -> bytes:
    """An IPv6 frame whose packet, and itself, end so much earlier."""
    length = int.from_bytes(frame[18:20], "big") - octets
    return frame[:18] + length.to_bytes(2, "big") + frame[20 : len(frame) - octets]


def longer(frame: bytes, more: bytes) -> bytes:
    length = int.from_bytes(frame[18:20], "big") + len(more)
    return frame[:18] + length.to_bytes(2, "big") + frame[20:] + more


NS = packet.ns(A, "fd00::2")
PASSED_ON = {
    "for its own address": packet.ns(A, "fd00::1"),
    "for an unbound port's": packet.ns(A, "fd00::4"),
    "for an open port's": packet.ns(A, "fd00::5"),
    "for a router's": packet.ns(A, "fd00::6"),
    "for another segment's": packet.ns(A, "fd00::8"),
    "for nobody's": packet.ns(A, "fd00::99"),
    "for an EUI-64 address": packet.ns(A, "fe80::ff:fe00:2"),
    "duplicate address detection": packet.ns(A, "fd00::2", src="::", option=None),
    "multicast without option": packet.ns(A, "fd00::2", option=None),
    "another option": packet.with_octet(NS, 78, 14),
    "an option of 16 octets": packet.with_octet(NS, 79, 2),
    "an option of 0 octets": packet.with_octet(NS, 79, 0),
    "an option cut short": packet.with_octet(shorter(NS, 1), 78, 14),
    "two options": longer(NS, b"\x0e\x01" + bytes(6)),
    "behind destination options": packet.padded(NS),
    "behind an atomic fragment header": packet.extended(NS, [IPv6ExtHdrFragment(id=1)]),
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_all_other_solicitations_go_on(twin: MakeTwin, name: str) -> None:
    frame = PASSED_ON[name]
    observed = twin(*STATE).thrice(sent("a", frame))
    assert observed.reason == Reason.FLOODED
    assert {output.frame for output in observed.outputs} == {frame}


@pytest.mark.parametrize(("offset", "value"), [(21, 64), (55, 1)])
def test_an_invalid_solicitation_of_an_open_port_is_not_answered(twin: MakeTwin, offset: int, value: int) -> None:
    asked = twin(*STATE, port("a", "blue", 1, port_security=False))
    assert asked.thrice(sent("a", packet.with_octet(NS, offset, value))).reason == Reason.FLOODED
    assert asked.thrice(sent("a", NS)).reason == Reason.ANSWERED


def test_a_solicitation_does_not_ask_rules(twin: MakeTwin) -> None:
    bare = port("a", "blue", 1)
    asked = twin(*STATE, bare)
    answered(asked, NS, advertisement(HERE, "fd00::2", "fd00::1", option=True))
    answered(asked, packet.arp(bare, "10.0.0.2"), reply(HERE, "10.0.0.2", A.mac, "10.0.0.1"))


def test_one_address_in_two_networks_has_two_owners(twin: MakeTwin) -> None:
    twins = port("elsewhere", "red", 8, "any", addresses=("10.0.0.2", "fd00::2"))
    asker = port("asker", "red", 1, "any")
    asked = twin(*STATE, twins, asker)
    answered(asked, packet.arp(A, "10.0.0.2"), reply(HERE, "10.0.0.2", A.mac, "10.0.0.1"))
    observed = asked.run(sent("asker", packet.arp(asker, "10.0.0.2", dmac=BROADCAST)))
    assert observed.outputs[0].frame == reply(twins, "10.0.0.2", asker.mac, "10.0.0.1")
