"""anti_spoof: what a port may say it is. docs/pipeline.md, "anti_spoof"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headrace.abi import Reason
from headrace.model import AddressPair, Port
from headrace.testing import packet
from headrace.testing.packet import Somewhere
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, group, network, port

MakeTwin = Callable[..., Twin]

B = port("b", "blue", 2, "any")
OTHER = "02:00:00:00:00:77"
VIRTUAL = "00:00:5e:00:01:07"
EUI64 = "fe80::ff:fe00:1"
"""What 02:00:00:00:00:01 gives itself."""


def make(twin: MakeTwin, **fields: Any) -> tuple[Twin, Port]:
    """A port to judge, beside one that gets what passes."""
    one = port("a", "blue", 1, "any", **fields)
    return twin(network("blue"), group("any", *ANY), one, B), one


def udp(one: Port, source: str, mac: str | None = None, sport: int = 1000, dport: int = 53) -> bytes:
    family = 6 if ":" in source else 4
    return packet.udp(one, B, sport, dport, family=family, src=source, smac=mac or one.mac)


@pytest.mark.parametrize(
    ("source", "mac", "reason"),
    [
        ("10.0.0.1", None, Reason.NONE),
        ("fd00::1", None, Reason.NONE),
        (EUI64, None, Reason.NONE),
        ("10.0.0.2", None, Reason.SPOOFED_ADDRESS),
        ("fd00::2", None, Reason.SPOOFED_ADDRESS),
        ("fe80::1", None, Reason.SPOOFED_ADDRESS),
        ("127.0.0.1", None, Reason.SPOOFED_ADDRESS),
        ("0.0.0.0", None, Reason.SPOOFED_ADDRESS),
        ("::", None, Reason.SPOOFED_ADDRESS),
        ("::1", None, Reason.SPOOFED_ADDRESS),
        ("10.0.0.1", OTHER, Reason.SPOOFED_MAC),
        ("10.0.0.1", B.mac, Reason.SPOOFED_MAC),
        ("fd00::1", OTHER, Reason.SPOOFED_MAC),
        ("fe80::ff:fe00:77", OTHER, Reason.SPOOFED_MAC),
    ],
)
def test_a_port_sends_from_its_own_mac_and_addresses(
    twin: MakeTwin, source: str, mac: str | None, reason: Reason
) -> None:
    asked, one = make(twin)
    assert asked.thrice(sent("a", udp(one, source, mac))).reason == reason


def test_without_port_security_it_may_be_anybody(twin: MakeTwin) -> None:
    asked, one = make(twin, port_security=False)
    for source in ("10.0.0.2", "fd00::2", "0.0.0.0"):
        assert asked.thrice(sent("a", udp(one, source, OTHER))).replayed
    for sport, dport, source in ((67, 68, "10.0.0.9"), (547, 546, "fd00::9")):
        assert asked.thrice(sent("a", udp(one, source, OTHER, sport, dport))).reason == Reason.NONE
    assert asked.thrice(sent("a", packet.ra(one))).reason == Reason.FLOODED
    assert asked.thrice(sent("a", packet.arp(one, "10.0.0.99", psrc="10.0.0.2", hwsrc=OTHER))).reason == Reason.FLOODED


def test_the_from_side_of_a_tunnel_was_judged_elsewhere(twin: MakeTwin) -> None:
    asked, _ = make(twin)
    stranger = Somewhere(OTHER, ("10.0.0.66", "fd00::66"))
    assert asked.thrice(tunnelled(packet.udp(stranger, B, 67, 68))).reason == Reason.NONE
    assert asked.thrice(tunnelled(packet.ra(stranger))).reason == Reason.FLOODED


def test_a_port_without_addresses_may_use_any_with_its_mac(twin: MakeTwin) -> None:
    asked, one = make(twin, addresses=())
    for source in ("10.9.9.9", "fd00::99", "fe80::99"):
        assert asked.thrice(sent("a", udp(one, source))).replayed
    for source in ("0.0.0.0", "::"):
        assert asked.thrice(sent("a", udp(one, source))).reason == Reason.SPOOFED_ADDRESS
    assert asked.thrice(sent("a", udp(one, "10.9.9.9", OTHER))).reason == Reason.SPOOFED_MAC


def test_pairs_take_the_freedom_of_a_port_without_addresses(twin: MakeTwin) -> None:
    asked, one = make(twin, addresses=(), address_pairs=(AddressPair(address="10.0.0.9"),))
    assert asked.thrice(sent("a", udp(one, "10.0.0.9"))).reason == Reason.NONE
    assert asked.thrice(sent("a", udp(one, "10.0.0.8"))).reason == Reason.SPOOFED_ADDRESS
    assert asked.thrice(sent("a", udp(one, "fd00::9"))).reason == Reason.SPOOFED_ADDRESS


PAIRS = (
    AddressPair(address="198.51.100.0/24"),
    AddressPair(address="10.0.0.100", mac=VIRTUAL),
    AddressPair(address="2001:db8:5::/48", mac=VIRTUAL),
)


@pytest.mark.parametrize(
    ("source", "mac", "reason"),
    [
        ("198.51.100.0", None, Reason.NONE),
        ("198.51.100.255", None, Reason.NONE),
        ("198.51.101.0", None, Reason.SPOOFED_ADDRESS),
        ("10.0.0.100", VIRTUAL, Reason.NONE),
        ("2001:db8:5:ffff::1", VIRTUAL, Reason.NONE),
        ("2001:db8:6::", VIRTUAL, Reason.SPOOFED_ADDRESS),
        ("fe80::200:5eff:fe00:107", VIRTUAL, Reason.NONE),
        ("10.0.0.100", None, Reason.SPOOFED_ADDRESS),
        ("2001:db8:5::1", None, Reason.SPOOFED_ADDRESS),
        ("198.51.100.1", VIRTUAL, Reason.SPOOFED_ADDRESS),
        ("10.0.0.1", VIRTUAL, Reason.SPOOFED_ADDRESS),
        (EUI64, VIRTUAL, Reason.SPOOFED_ADDRESS),
        ("fe80::200:5eff:fe00:107", None, Reason.SPOOFED_ADDRESS),
    ],
)
def test_an_address_pair_binds_its_addresses_to_its_mac(
    twin: MakeTwin, source: str, mac: str | None, reason: Reason
) -> None:
    asked, one = make(twin, address_pairs=PAIRS)
    assert asked.thrice(sent("a", udp(one, source, mac))).reason == reason


@pytest.mark.parametrize(
    ("pair", "good", "bad"),
    [
        ("0.0.0.0/0", ("10.9.9.9", "1.0.0.1"), ("fd00::9", "::1", "0.0.0.0")),
        ("::/0", ("fd00::9", "::1", "1::"), ("10.9.9.9", "1.0.0.1", "::", "0.0.0.0")),
        ("::/64", ("::5", "::fffe:0:1"), ("10.9.9.9", "fd00::9")),
        ("0.0.0.0/32", (), ("0.0.0.0", "10.9.9.9")),
        ("::/128", (), ("::", "fd00::9")),
        ("::ffff:0:0/96", (), ("10.9.9.9",)),
        ("10.9.0.77/16", ("10.9.0.0", "10.9.255.255"), ("10.8.255.255", "10.10.0.0")),
    ],
)
def test_a_pair_of_one_family_says_nothing_of_the_other(
    twin: MakeTwin, pair: str, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    asked, one = make(twin, address_pairs=(AddressPair(address=pair),))
    for source in good:
        assert asked.thrice(sent("a", udp(one, source))).reason == Reason.NONE, source
    for source in bad:
        assert asked.thrice(sent("a", udp(one, source))).reason == Reason.SPOOFED_ADDRESS, source
    assert asked.thrice(sent("a", udp(one, "10.0.0.1"))).reason == Reason.NONE


def test_two_pairs_of_everything(twin: MakeTwin) -> None:
    pairs = (AddressPair(address="0.0.0.0/0"), AddressPair(address="::/0"))
    asked, one = make(twin, address_pairs=pairs)
    for source in ("10.9.9.9", "fd00::9"):
        assert asked.thrice(sent("a", udp(one, source))).reason == Reason.NONE


# ARP


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, Reason.FLOODED),
        ({"psrc": "0.0.0.0"}, Reason.FLOODED),
        ({"op": 2}, Reason.FLOODED),
        ({"psrc": "10.0.0.2"}, Reason.SPOOFED_ARP),
        ({"psrc": "10.0.0.2", "op": 2}, Reason.SPOOFED_ARP),
        ({"psrc": "255.255.255.255"}, Reason.SPOOFED_ARP),
        ({"hwsrc": OTHER}, Reason.SPOOFED_ARP),
        ({"hwsrc": OTHER, "psrc": "0.0.0.0"}, Reason.SPOOFED_ARP),
        ({"smac": OTHER, "hwsrc": OTHER}, Reason.SPOOFED_MAC),
        ({"smac": VIRTUAL, "hwsrc": VIRTUAL, "psrc": "10.0.0.100"}, Reason.FLOODED),
        ({"smac": VIRTUAL, "hwsrc": VIRTUAL, "psrc": "0.0.0.0"}, Reason.FLOODED),
        ({"smac": VIRTUAL, "hwsrc": VIRTUAL}, Reason.SPOOFED_ARP),
        ({"psrc": "10.0.0.100"}, Reason.SPOOFED_ARP),
    ],
)
def test_arp_names_the_frames_mac_and_an_address_of_it(twin: MakeTwin, fields: dict[str, Any], reason: Reason) -> None:
    asked, one = make(twin, address_pairs=PAIRS)
    assert asked.thrice(sent("a", packet.arp(one, "10.0.0.99", **fields))).reason == reason


# What only servers and routers send


@pytest.mark.parametrize(
    ("sport", "dport", "source", "reason"),
    [
        (67, 68, "10.0.0.1", Reason.ROGUE_DHCP),
        (547, 546, "fd00::1", Reason.ROGUE_DHCP),
        (67, 68, "10.0.0.2", Reason.ROGUE_DHCP),
        (67, 67, "10.0.0.1", Reason.NONE),
        (68, 67, "10.0.0.1", Reason.NONE),
        (546, 547, EUI64, Reason.NONE),
        (547, 546, "10.0.0.1", Reason.NONE),
        (67, 68, "fd00::1", Reason.NONE),
        (68, 67, "0.0.0.0", Reason.NONE),
        (546, 547, "::", Reason.SPOOFED_ADDRESS),
        (68, 68, "0.0.0.0", Reason.SPOOFED_ADDRESS),
    ],
)
def test_a_workload_is_no_dhcp_server(twin: MakeTwin, sport: int, dport: int, source: str, reason: Reason) -> None:
    asked, one = make(twin)
    assert asked.thrice(sent("a", udp(one, source, None, sport, dport))).reason == reason


def test_tcp_between_the_same_ports_is_no_dhcp(twin: MakeTwin) -> None:
    asked, one = make(twin)
    assert asked.thrice(sent("a", packet.tcp(one, B, 67, 68))).reason == Reason.NONE
    assert asked.thrice(sent("a", packet.tcp(one, B, 68, 67, src="0.0.0.0"))).reason == Reason.SPOOFED_ADDRESS


@pytest.mark.parametrize("kind", [134, 137])
def test_a_workload_is_no_router_unless_it_is(twin: MakeTwin, kind: int) -> None:
    asked, one = make(twin)
    frame = packet.icmp(one, B, kind, family=6, hlim=255)
    assert asked.thrice(sent("a", frame)).reason == Reason.ROGUE_RA
    asked, one = make(twin, device_owner="network:router_interface")
    assert asked.thrice(sent("a", frame)).reason == Reason.NONE
    spoofed = packet.icmp(one, B, kind, family=6, hlim=255, src="fd00::2")
    assert asked.thrice(sent("a", spoofed)).reason == Reason.SPOOFED_ADDRESS, "a router has its own addresses too"


def test_router_advertisements_to_all_nodes(twin: MakeTwin) -> None:
    asked, one = make(twin)
    assert asked.thrice(sent("a", packet.ra(one, src=EUI64))).reason == Reason.ROGUE_RA
    asked, one = make(twin, device_owner="network:router_interface_distributed")
    assert asked.thrice(sent("a", packet.ra(one, src=EUI64))).reason == Reason.FLOODED


@pytest.mark.parametrize("kind", [128, 130, 131, 132, 133, 135, 143])
def test_icmpv6_from_the_unspecified_address(twin: MakeTwin, kind: int) -> None:
    asked, one = make(twin)
    allowed = kind in {131, 132, 135, 143}
    frame = packet.icmp(one, B, kind, family=6, src="::", hlim=255)
    if kind == 135:
        frame = packet.ns(one, "fd00::1", option=None, src="::", to=B.mac)
    observed = asked.thrice(sent("a", frame))
    assert (observed.reason == Reason.NONE) is allowed
    assert observed.reason in {Reason.NONE, Reason.SPOOFED_ADDRESS}


def test_icmp_of_those_types_in_ipv4_is_nothing_special(twin: MakeTwin) -> None:
    asked, one = make(twin)
    assert asked.thrice(sent("a", packet.icmp(one, B, 135, src="0.0.0.0"))).reason == Reason.SPOOFED_ADDRESS
    assert asked.thrice(sent("a", packet.icmp(one, B, 134))).reason == Reason.NONE


# Neighbour discovery

NS = packet.ns(port("a", "blue", 1), "fd00::99", to=B.mac)
NA = packet.na(port("a", "blue", 1), B, "fd00::1")


def with_octets(frame: bytes, offset: int, octets: bytes) -> bytes:
    return frame[:offset] + octets + frame[offset + len(octets) :]


def shorter(frame: bytes, octets: int) -> bytes:
    """An IPv6 frame whose packet ends so much earlier."""
    length = int.from_bytes(frame[18:20], "big") - octets
    return with_octets(frame, 18, length.to_bytes(2, "big"))[: len(frame) - octets]


DISCOVERY = {
    "NS": (NS, Reason.NONE),
    "NA": (NA, Reason.NONE),
    "NS, hop limit": (with_octets(NS, 21, b"\xfe"), Reason.MALFORMED_ND),
    "NA, hop limit": (with_octets(NA, 21, b"\x40"), Reason.MALFORMED_ND),
    "NS, code": (with_octets(NS, 55, b"\x01"), Reason.MALFORMED_ND),
    "NA, code": (with_octets(NA, 55, b"\x01"), Reason.MALFORMED_ND),
    "NS of 23 octets": (shorter(NS, 9), Reason.MALFORMED_ND),
    "NA of 23 octets": (shorter(NA, 9), Reason.MALFORMED_ND),
    "NS of 8 octets": (shorter(NS, 24), Reason.MALFORMED_ND),
    "NS of 24 octets": (shorter(NS, 8), Reason.NONE),
    "NA of 24 octets": (shorter(NA, 8), Reason.NONE),
    "NS of 31 octets, whose option is cut": (with_octets(shorter(NS, 1), 80, b"\x02" * 5), Reason.NONE),
    "NS for multicast": (with_octets(NS, 62, b"\xff\x02"), Reason.MALFORMED_ND),
    "NA for multicast": (with_octets(NA, 62, b"\xff\x02"), Reason.MALFORMED_ND),
    "NS for mapped": (with_octets(NS, 62, bytes(10) + b"\xff\xff\x0a\0\0\1"), Reason.MALFORMED_ND),
    "NA for mapped": (with_octets(NA, 62, bytes(10) + b"\xff\xff\x0a\0\0\1"), Reason.MALFORMED_ND),
    "NA for another's address": (with_octets(NA, 77, b"\x02"), Reason.SPOOFED_ND),
    "NA for the unspecified address": (with_octets(NA, 62, bytes(16)), Reason.SPOOFED_ND),
    "NA for its link-local address": (
        with_octets(NA, 62, b"\xfe\x80" + bytes(6) + b"\0\0\0\xff\xfe\0\0\1"),
        Reason.NONE,
    ),
    "NS with another MAC": (with_octets(NS, 80, b"\x02\0\0\0\0\x02"), Reason.SPOOFED_ND),
    "NA with another MAC": (with_octets(NA, 80, b"\x02\0\0\0\0\x02"), Reason.SPOOFED_ND),
    "NS with another option": (with_octets(NS, 78, b"\x0e"), Reason.NONE),
    "NS with a target option": (with_octets(NS, 78, b"\x02\x01\x02\0\0\0\0\x02"), Reason.NONE),
    "NA with a source option": (with_octets(NA, 78, b"\x01\x01\x02\0\0\0\0\x02"), Reason.NONE),
    "NS fragment": (packet.fragments(NS, 24)[0], Reason.MALFORMED_ND),
    "NA fragment": (packet.fragments(NA, 24)[0], Reason.MALFORMED_ND),
    "NS behind destination options": (packet.padded(NS), Reason.NONE),
    "NS from another's address": (with_octets(NS, 37, b"\x02"), Reason.SPOOFED_ADDRESS),
}


@pytest.mark.parametrize("name", DISCOVERY)
def test_neighbour_discovery(twin: MakeTwin, name: str) -> None:
    asked, _ = make(twin)
    frame, reason = DISCOVERY[name]
    assert asked.thrice(sent("a", frame)).reason == reason


def test_an_na_may_name_what_the_frames_mac_may(twin: MakeTwin) -> None:
    asked, one = make(twin, address_pairs=(*PAIRS, AddressPair(address="fd00::50", mac=VIRTUAL)))
    virtual = Somewhere(VIRTUAL, ("fd00::50",))
    assert asked.thrice(sent("a", packet.na(virtual, B, "fd00::50"))).reason == Reason.NONE
    assert asked.thrice(sent("a", packet.na(virtual, B, "fd00::1"))).reason == Reason.SPOOFED_ND
    assert asked.thrice(sent("a", packet.na(one, B, "fd00::50"))).reason == Reason.SPOOFED_ND


# Fragments


def test_a_later_fragment_is_judged_by_what_it_shows(twin: MakeTwin) -> None:
    asked, one = make(twin)
    first, later = packet.fragments(packet.udp(one, B, 1000, 53, payload=bytes(8)), 8)
    assert asked.thrice(sent("a", with_octets(later, 29, b"\x02"))).reason == Reason.SPOOFED_ADDRESS
    assert asked.thrice(sent("a", later)).reason == Reason.FRAGMENT_ORPHAN
    server = packet.fragments(packet.udp(one, B, 67, 68, payload=bytes(8)), 8)
    assert asked.thrice(sent("a", server[0])).reason == Reason.ROGUE_DHCP
    assert asked.thrice(sent("a", server[1])).reason == Reason.FRAGMENT_ORPHAN
    assert asked.thrice(sent("a", first)).reason == Reason.NONE
    assert asked.thrice(sent("a", later)).reason == Reason.NONE
    unset = packet.fragments(packet.udp(one, B, 68, 67, payload=bytes(8), src="0.0.0.0"), 8)
    assert asked.thrice(sent("a", unset[0])).reason == Reason.NONE
    assert asked.thrice(sent("a", unset[1])).reason == Reason.SPOOFED_ADDRESS


def test_other_ethertypes_need_a_port_without_port_security(twin: MakeTwin) -> None:
    asked, one = make(twin)
    assert asked.thrice(sent("a", packet.raw(one, 0x88CC, bytes(46)))).reason == Reason.ETHERTYPE
    assert asked.thrice(sent("a", packet.raw(one, 0x0026, bytes(46)))).reason == Reason.ETHERTYPE
    assert asked.thrice(sent("a", packet.raw(Somewhere(OTHER), 0x88CC, bytes(46)))).reason == Reason.SPOOFED_MAC


def test_a_source_that_is_taken_away_ends_what_used_it(twin: MakeTwin) -> None:
    pairs = (AddressPair(address="10.0.0.50"),)
    asked, one = make(twin, address_pairs=pairs)
    frame = udp(one, "10.0.0.50")
    assert asked.thrice(sent("a", frame)).replayed
    changed = port("a", "blue", 1, "any")
    asked.apply(type(asked.state).of((*asked.state.all(), changed)))
    assert asked.thrice(sent("a", frame)).reason == Reason.SPOOFED_ADDRESS
