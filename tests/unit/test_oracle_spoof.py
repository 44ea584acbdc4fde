"""The oracle's anti_spoof and respond: docs/pipeline.md, by those headings."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from headrace.abi import Reason
from headrace.datapath.oracle_spoof import eui64
from headrace.model import AddressPair
from headrace.testing import packet
from headrace.testing.packet import Somewhere
from headrace.testing.world import ANY, World, group, network, port

VRRP = "00:00:5e:00:01:07"
LOCAL = "fe80::ff:fe00:1"
"""EUI-64 of port a's MAC."""

A = Somewhere("02:00:00:00:00:01", ("10.0.0.1", "fd00::1"))
B = Somewhere("02:00:00:00:00:02", ("10.0.0.2", "fd00::2"))


@pytest.fixture
def world() -> World:
    pairs = (
        AddressPair(address="10.9.0.0/24"),
        AddressPair(address="10.8.0.8", mac=VRRP),
        AddressPair(address="0.0.0.0/0", mac="02:00:00:00:00:77"),
    )
    return World(
        network("blue"),
        group("any", *ANY),
        port("a", "blue", 1, "any"),
        port("b", "blue", 2, "any", host="h2"),
        port("pairs", "blue", 3, "any", address_pairs=pairs),
        port("bare", "blue", 4, "any", addresses=()),
        port("paired", "blue", 5, "any", addresses=(), address_pairs=(AddressPair(address="10.5.0.0/16"),)),
        port("open", "blue", 6, port_security=False),
        port("router", "blue", 7, "any", device_owner="network:router_interface"),
        port("loose", "blue", 8, "any", host=None),
    )


def reason(world: World, frame: bytes, name: str = "a", **fields: Any) -> Reason:
    return world.send(name, frame, **fields).hops[0].decision.reason


def end(world: World, name: str) -> Somewhere:
    found = world.port(name)
    return Somewhere(found.mac, found.addresses or ("10.0.0.4", "fd00::4"))


def test_eui64() -> None:
    assert eui64("02:00:00:00:00:01") == "fe80::ff:fe00:1"
    assert eui64("00:25:96:12:34:56") == "fe80::225:96ff:fe12:3456"


def test_spoofed_mac(world: World) -> None:
    assert reason(world, packet.tcp(A, B, 1, 80, smac=B.mac)) == Reason.SPOOFED_MAC
    assert reason(world, packet.arp(B, "10.0.0.9")) == Reason.SPOOFED_MAC
    assert reason(world, packet.raw(B, 0x88CC)) == Reason.SPOOFED_MAC
    assert reason(world, packet.raw(A, 0x88CC)) == Reason.ETHERTYPE


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Reason.FLOODED),
        ({"psrc": "0.0.0.0"}, Reason.FLOODED),
        ({"psrc": "10.0.0.2"}, Reason.SPOOFED_ARP),
        ({"hwsrc": "02:00:00:00:00:02"}, Reason.SPOOFED_ARP),
        ({"op": 2}, Reason.FLOODED),
        ({"op": 2, "psrc": "10.0.0.2"}, Reason.SPOOFED_ARP),
    ],
)
def test_arp(world: World, fields: dict[str, Any], expected: Reason) -> None:
    assert reason(world, packet.arp(A, "10.0.0.200", **fields)) == expected


@pytest.mark.parametrize(
    ("name", "mac", "address", "expected"),
    [
        ("a", None, "10.0.0.1", Reason.NONE),
        ("a", None, "10.0.0.2", Reason.SPOOFED_ADDRESS),
        ("pairs", None, "10.0.0.3", Reason.NONE),
        ("pairs", None, "10.9.0.200", Reason.NONE),
        ("pairs", None, "10.8.0.8", Reason.SPOOFED_ADDRESS),
        ("pairs", VRRP, "10.8.0.8", Reason.NONE),
        ("pairs", VRRP, "10.9.0.1", Reason.SPOOFED_ADDRESS),
        ("pairs", VRRP, "10.0.0.3", Reason.SPOOFED_ADDRESS),
        ("pairs", "02:00:00:00:00:77", "198.51.100.1", Reason.NONE),
        ("bare", None, "203.0.113.1", Reason.NONE),
        ("bare", "02:00:00:00:00:77", "203.0.113.1", Reason.SPOOFED_MAC),
        ("paired", None, "10.5.1.1", Reason.NONE),
        ("paired", None, "10.0.0.5", Reason.SPOOFED_ADDRESS),
        ("open", "02:00:00:00:00:01", "10.0.0.1", Reason.NONE),
    ],
)
def test_sources(world: World, name: str, mac: str | None, address: str, expected: Reason) -> None:
    frame = packet.tcp(end(world, name), B, 1, 80, smac=mac or world.port(name).mac, src=address)
    assert reason(world, frame, name) == expected


def test_link_local_addresses(world: World) -> None:
    def from_local(mac: str, name: str, address: str) -> Reason:
        return reason(world, packet.tcp(end(world, name), B, 1, 80, family=6, smac=mac, src=address), name)

    assert from_local(A.mac, "a", LOCAL) == Reason.NONE
    assert from_local(A.mac, "a", eui64(B.mac)) == Reason.SPOOFED_ADDRESS
    assert from_local(VRRP, "pairs", eui64(VRRP)) == Reason.NONE
    assert from_local(world.port("pairs").mac, "pairs", eui64(VRRP)) == Reason.SPOOFED_ADDRESS


@pytest.mark.parametrize(
    ("source", "sport", "dport", "expected"),
    [
        ("0.0.0.0", 68, 67, Reason.NONE),
        ("0.0.0.0", 68, 68, Reason.SPOOFED_ADDRESS),
        ("0.0.0.0", 1000, 67, Reason.SPOOFED_ADDRESS),
        ("10.0.0.1", 67, 68, Reason.ROGUE_DHCP),
        ("10.0.0.2", 67, 68, Reason.ROGUE_DHCP),
    ],
)
def test_dhcp(world: World, source: str, sport: int, dport: int, expected: Reason) -> None:
    assert reason(world, packet.udp(A, B, sport, dport, src=source)) == expected


def test_unspecified_is_for_nothing_else(world: World) -> None:
    assert reason(world, packet.tcp(A, B, 68, 67, src="0.0.0.0")) == Reason.SPOOFED_ADDRESS
    bare = end(world, "bare")
    assert reason(world, packet.tcp(bare, B, 1, 80, src="0.0.0.0"), "bare") == Reason.SPOOFED_ADDRESS
    with_all = packet.tcp(bare, B, 1, 80, smac="02:00:00:00:00:77", src="0.0.0.0")
    assert reason(world, with_all, "pairs") == Reason.SPOOFED_ADDRESS


def test_dhcpv6(world: World) -> None:
    assert reason(world, packet.udp(A, B, 547, 546, family=6)) == Reason.ROGUE_DHCP
    assert reason(world, packet.udp(A, B, 546, 547, family=6)) == Reason.NONE
    assert reason(world, packet.udp(A, B, 67, 68, family=6)) == Reason.NONE, "DHCP's ports are of each family's own"
    assert reason(world, packet.udp(A, B, 546, 547, family=6, src="::")) == Reason.SPOOFED_ADDRESS


@pytest.mark.parametrize("kind", range(128, 145))
def test_icmpv6_from_the_unspecified_address(world: World, kind: int) -> None:
    frame = packet.icmp(A, B, kind, family=6, src="::", hlim=255)
    found = reason(world, frame)
    if kind in {134, 137}:
        assert found == Reason.ROGUE_RA
    elif kind == 135:
        assert found == Reason.MALFORMED_ND
    elif kind in {131, 132, 143}:
        assert found == Reason.NONE
    else:
        assert found == Reason.SPOOFED_ADDRESS


def test_routers_advertise_themselves(world: World) -> None:
    assert reason(world, packet.ra(A)) == Reason.ROGUE_RA
    assert reason(world, packet.icmp(A, B, 137, family=6)) == Reason.ROGUE_RA
    assert reason(world, packet.ra(end(world, "router")), "router") == Reason.FLOODED
    assert reason(world, packet.ra(end(world, "open")), "open") == Reason.FLOODED


def nd_variants() -> dict[str, tuple[bytes, Reason]]:
    bare_ns = packet.ns(A, "fd00::99", option=None)
    icmp_at = packet.ETHERNET + 40
    whole = packet.na(A, B, "fd00::1")
    return {
        "dad": (packet.ns(A, "fd00::1", option=None, src="::"), Reason.FLOODED),
        "ns": (packet.ns(A, "fd00::99"), Reason.FLOODED),
        "ns for another's address, hop limit 64": (packet.ns(A, "fd00::99", hlim=64), Reason.MALFORMED_ND),
        "ns code 1": (packet.with_octet(bare_ns, icmp_at + 1, 1), Reason.MALFORMED_ND),
        "ns multicast target": (packet.with_octet(bare_ns, icmp_at + 8, 0xFF), Reason.MALFORMED_ND),
        "ns of 23 octets": (packet.with_octet(bare_ns[:-1], packet.ETHERNET + 5, 23), Reason.MALFORMED_ND),
        "ns names another's mac": (packet.ns(A, "fd00::99", option=B.mac), Reason.SPOOFED_ND),
        "na": (whole, Reason.NONE),
        "na of link-local": (packet.na(A, B, LOCAL), Reason.NONE),
        "na without option": (packet.na(A, B, "fd00::1", option=None), Reason.NONE),
        "na for another's address": (packet.na(A, B, "fd00::2"), Reason.SPOOFED_ND),
        "na for the unspecified address": (packet.na(A, B, "::"), Reason.SPOOFED_ND),
        "na for an ipv4-mapped address": (packet.na(A, B, "::ffff:10.0.0.1"), Reason.MALFORMED_ND),
        "na names another's mac": (packet.na(A, B, "fd00::1", option=B.mac), Reason.SPOOFED_ND),
        "na in an atomic fragment": (packet.fragments(whole, 64)[0], Reason.NONE),
        "na in a fragment": (packet.fragments(whole, 24)[0], Reason.MALFORMED_ND),
        "na from a wrong address": (packet.na(A, B, "fd00::1", src="fd00::2"), Reason.SPOOFED_ADDRESS),
    }


@pytest.mark.parametrize("name", nd_variants())
def test_neighbour_discovery(world: World, name: str) -> None:
    frame, expected = nd_variants()[name]
    assert reason(world, frame) == expected


def test_nobody_hides_in_later_fragments(world: World) -> None:
    first, later = packet.fragments(packet.na(A, B, "fd00::2"), 24)
    assert reason(world, first) == Reason.MALFORMED_ND
    assert reason(world, later) == Reason.FRAGMENT_ORPHAN
    first, later = packet.fragments(packet.udp(A, B, 67, 68, payload=bytes(8)), 8)
    assert reason(world, first) == Reason.ROGUE_DHCP
    assert reason(world, later) == Reason.FRAGMENT_ORPHAN
    first, later = packet.fragments(packet.udp(A, B, 1, 80, payload=bytes(8), src="10.0.0.2"), 8)
    assert [reason(world, part) for part in (first, later)] == [Reason.SPOOFED_ADDRESS] * 2


def test_what_comes_by_tunnel_was_judged_by_its_sender(world: World) -> None:
    journey = world.send("b", packet.tcp(B, A, 1, 80))
    assert journey.receivers == ["a"]
    assert journey.hops[1].decision.rule_from == "REMOTE"


def answer(world: World, frame: bytes, name: str = "a") -> bytes | None:
    decision = world.send(name, frame).hops[0].decision
    if decision.reason != Reason.ANSWERED:
        return None
    assert [output.port for output in decision.outputs] == [name]
    assert not world.memory["h1"].learnt
    return decision.outputs[0].frame


def test_arp_answered(world: World) -> None:
    frame = packet.arp(A, "10.0.0.2") + b"padding"
    reply = answer(world, frame)
    assert reply is not None
    expected = Ether(src=B.mac, dst=A.mac) / ARP(op=2, hwsrc=B.mac, psrc="10.0.0.2", hwdst=A.mac, pdst="10.0.0.1")
    assert reply == bytes(expected) + b"padding"


def test_arp_probe_is_answered_so_that_duplicates_are_found(world: World) -> None:
    reply = answer(world, packet.arp(A, "10.0.0.2", psrc="0.0.0.0"))
    assert reply is not None
    assert Ether(reply)[ARP].pdst == "0.0.0.0"


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("10.0.0.1", {"psrc": "0.0.0.0"}),
        ("10.0.0.1", {}),
        ("10.0.0.99", {}),
        ("10.9.0.1", {}),
        ("10.0.0.6", {}),
        ("10.0.0.7", {}),
        ("10.0.0.8", {}),
        ("10.0.0.2", {"op": 2}),
    ],
    ids=["own, probe", "own, gratuitous", "nobody's", "a pair's", "open port's", "router's", "unbound port's", "reply"],
)
def test_arp_not_answered(world: World, target: str, fields: dict[str, Any]) -> None:
    assert answer(world, packet.arp(A, target, **fields)) is None


def test_arp_from_an_open_port(world: World) -> None:
    asker = Somewhere("02:00:00:00:00:66", ("10.0.0.66",))
    assert answer(world, packet.arp(asker, "10.0.0.2"), "open") is not None
    assert answer(world, packet.arp(asker, "10.0.0.2", smac=B.mac), "open") is None, "the neighbour itself, it seems"
    assert answer(world, packet.arp(asker, "10.0.0.2", psrc="10.0.0.2"), "open") is None


@pytest.mark.parametrize("target", ["fd00::2", "fd00::3"])
def test_solicitation_answered(world: World, target: str) -> None:
    owner = next(p.mac for p in world.state.ports.values() if target in p.addresses)
    reply = answer(world, packet.ns(A, target))
    assert reply is not None
    advertisement = Ether(reply)
    assert (advertisement.src, advertisement.dst) == (owner, A.mac)
    assert (advertisement[IPv6].src, advertisement[IPv6].dst, advertisement[IPv6].hlim) == (target, "fd00::1", 255)
    message = advertisement[ICMPv6ND_NA]
    assert (message.R, message.S, message.O, message.tgt) == (0, 1, 1, target)
    assert message[ICMPv6NDOptDstLLAddr].lladdr == owner
    given = message.cksum
    del message.cksum
    assert Ether(bytes(advertisement))[ICMPv6ND_NA].cksum == given


def test_unicast_solicitation_without_option(world: World) -> None:
    frame = packet.ns(A, "fd00::2", option=None, to=B.mac, tc=0xB8, fl=77)
    reply = answer(world, frame)
    assert reply is not None
    assert len(reply) == len(frame)
    assert reply[14:18] == frame[14:18], "traffic class and flow label stay"
    assert ICMPv6NDOptDstLLAddr not in Ether(reply)
    assert answer(world, packet.ns(A, "fd00::2", to=B.mac)) is not None


def unanswered() -> dict[str, bytes]:
    odd_length = bytearray(packet.ns(A, "fd00::2"))
    odd_length[packet.ETHERNET + 40 + 25] = 2
    nonce = bytearray(packet.ns(A, "fd00::2", to=B.mac))
    nonce[packet.ETHERNET + 40 + 24] = 14
    longer = packet.ns(A, "fd00::2") + bytes([14, 1]) + bytes(6)
    return {
        "own": packet.ns(A, "fd00::1"),
        "nobody's": packet.ns(A, "fd00::99"),
        "link-local": packet.ns(A, "fe80::ff:fe00:2"),
        "duplicate address detection": packet.ns(A, "fd00::2", option=None, src="::"),
        "multicast without option": packet.ns(A, "fd00::2", option=None),
        "option of length 2": bytes(odd_length),
        "unicast with another option": bytes(nonce),
        "more options": packet.with_octet(longer, packet.ETHERNET + 5, 40),
        "extension header": packet.padded(packet.ns(A, "fd00::2")),
        "unbound port's": packet.ns(A, "fd00::8"),
        "router's": packet.ns(A, "fd00::7"),
    }


@pytest.mark.parametrize("name", unanswered())
def test_solicitation_not_answered(world: World, name: str) -> None:
    assert answer(world, unanswered()[name]) is None
    assert reason(world, unanswered()[name]) in {Reason.FLOODED, Reason.NONE}


def test_malformed_solicitation_of_an_open_port_goes_on(world: World) -> None:
    asker = end(world, "open")
    assert answer(world, packet.ns(asker, "fd00::2"), "open") is not None
    assert answer(world, packet.ns(asker, "fd00::2", hlim=64), "open") is None


def test_every_allowed_source_is_one_address_family(world: World) -> None:
    assert {ipaddress.ip_address(text).version for text in A.addresses} == {4, 6}
    world.put(port("a", "blue", 1, "any", addresses=("10.0.0.1",), address_pairs=(AddressPair(address="::/0"),)))
    assert reason(world, packet.tcp(A, B, 1, 80, src="10.0.0.250")) == Reason.SPOOFED_ADDRESS, (
        "IPv6's any is not IPv4's"
    )
    assert reason(world, packet.tcp(A, B, 1, 80, family=6, src="2001:db8::7")) == Reason.NONE
