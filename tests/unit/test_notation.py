"""A packet in one line, both ways, and the frames that lines make; scapy checks the octets."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from headrace.datapath.notation import EXAMPLES, build, describe, read
from headrace.datapath.packet import parse
from headrace.errors import InvalidInput
from headrace.testing import packet

A, B = "02:00:00:00:00:01", "02:00:00:00:00:02"

LINES = [
    "tcp 10.0.0.5:1234 > 10.0.0.9:80 syn",
    "tcp 10.0.0.5:1234 > 10.0.0.9:80 syn+ack",
    "tcp [fd00::5]:1234 > [fd00::9]:80 fin+psh+ack+urg",
    "udp 10.0.0.5:0 > 10.0.0.9:65535",
    "udp [fd00::5]:1000 > [fd00::9]:53",
    "sctp 10.0.0.5:9 > 10.0.0.9:9",
    "sctp [fd00::5]:9 > [fd00::9]:9",
    "icmp 10.0.0.5 > 10.0.0.9 echo id 7",
    "icmp 10.0.0.5 > 10.0.0.9 reply id 7",
    "icmp fd00::5 > fd00::9 echo id 7",
    "icmp fd00::5 > fd00::9 reply id 65535",
    "icmp 10.0.0.5 > 10.0.0.9 3/1",
    "icmp fd00::5 > fd00::9 143/0",
    "ip 10.0.0.5 > 10.0.0.9 proto 47",
    "ip fd00::5 > fd00::9 proto 50",
    "arp who-has 10.0.0.9 tell 10.0.0.5",
    "arp 10.0.0.5 is-at 02:00:00:00:00:01 to 10.0.0.9",
]


def frame_of(line: str) -> bytes:
    return build(read(line), source=A, destination=B)


@pytest.mark.parametrize("line", LINES)
def test_both_ways(line: str) -> None:
    assert describe(parse(frame_of(line))) == line


def checksums(layer: Packet) -> list[tuple[str, int]]:
    """Every checksum that scapy shows in a packet."""
    found: list[tuple[str, int]] = []
    while layer:
        found += [(name, getattr(layer, name)) for name in ("chksum", "cksum") if name in layer.fields]
        layer = layer.payload
    return found


@pytest.mark.parametrize("line", [line for line in LINES if not line.startswith("sctp")])
def test_checksums_and_lengths(line: str) -> None:
    frame: Packet = Ether(frame_of(line))
    given = checksums(frame)
    layer = frame
    while layer:
        for name in ("chksum", "cksum", "len", "plen"):
            layer.fields.pop(name, None)
        layer.raw_packet_cache = None
        layer = layer.payload
    assert checksums(Ether(bytes(frame))) == given
    assert bytes(frame) == frame_of(line)


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("tcp 10.0.0.5 > 10.0.0.9:80", "tcp 10.0.0.5:49152 > 10.0.0.9:80 syn"),
        ("TCP 10.0.0.5:1 > 10.0.0.9:80 SYN", "tcp 10.0.0.5:1 > 10.0.0.9:80 syn"),
        ("udp fd00::5 > [fd00::9]:53", "udp [fd00::5]:49152 > [fd00::9]:53"),
        ("icmp 10.0.0.5 > 10.0.0.9", "icmp 10.0.0.5 > 10.0.0.9 echo id 1"),
        ("icmpv6 fd00::5 > fd00::9 reply", "icmp fd00::5 > fd00::9 reply id 1"),
        ("icmp 10.0.0.5 > 10.0.0.9 11", "icmp 10.0.0.5 > 10.0.0.9 11/0"),
        ("arp 10.0.0.5 is-at 02:00:00:00:00:01", "arp 10.0.0.5 is-at 02:00:00:00:00:01 to 10.0.0.5"),
    ],
)
def test_what_may_be_left_out(short: str, whole: str) -> None:
    assert describe(parse(frame_of(short))) == whole


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "ends too early"),
        ("quic 10.0.0.5 > 10.0.0.9", "'quic' is no protocol known here"),
        ("tcp 10.0.0.5:1", "ends too early"),
        ("tcp 10.0.0.5:1 10.0.0.9:80", "expected > between source and destination"),
        ("tcp 10.0.0.5:1 > 10.0.0.9", "expected a destination port in '10.0.0.9'"),
        ("tcp 10.0.0.5:1 > 10.0.0.9:80 sin", "not 'sin'"),
        ("tcp 10.0.0.5:1 > 10.0.0.9:99999", "'99999' is no number from 0 to 65535"),
        ("tcp 10.0.0.5:1 > [fd00::9]:80", "addresses of one family"),
        ("tcp 10.0.0:1 > 10.0.0.9:80", "'10.0.0' does not appear to be an IPv4 or IPv6 address"),
        ("udp 10.0.0.5:1 > 10.0.0.9:53 syn", "nothing after '10.0.0.9:53'"),
        ("icmp 10.0.0.5 > 10.0.0.9 hello", "'hello' is no number"),
        ("icmp 10.0.0.5 > 10.0.0.9 echo twice", "echo, reply or TYPE/CODE"),
        ("ip 10.0.0.5 > 10.0.0.9 protocol 47", "proto N"),
        ("ip 10.0.0.5 > 10.0.0.9 proto 256", "'256' is no number from 0 to 255"),
        ("arp 10.0.0.5 at 02:00:00:00:00:01", "is-at MAC"),
        ("arp who-has fd00::9 tell fd00::5", "IPv4"),
        ("arp 10.0.0.5 is-at here", "MAC"),
        ("ns 10.0.0.9 from 10.0.0.5", "IPv6"),
        ("ns fd00::9 tell fd00::5", "ns TARGET from SOURCE"),
    ],
)
def test_mistakes_are_named(line: str, says: str) -> None:
    with pytest.raises(InvalidInput) as error:
        read(line)
    assert says in str(error.value)
    assert EXAMPLES in str(error.value)


def test_examples_are_right() -> None:
    assert [read(example.strip()).kind for example in EXAMPLES.split(";")] == ["tcp", "udp", "icmp", "ip", "arp", "ns"]


def test_solicitation() -> None:
    frame = Ether(frame_of("ns fd00::9 from fd00::5"))
    assert (frame[IPv6].dst, frame[IPv6].hlim, frame[ICMPv6ND_NS].tgt) == ("ff02::1:ff00:9", 255, "fd00::9")
    assert frame[ICMPv6NDOptSrcLLAddr].lladdr == A


def test_frames_are_what_scapy_makes() -> None:
    frame = Ether(frame_of("tcp 10.0.0.5:1234 > 10.0.0.9:80 syn+ack"))
    assert (frame.src, frame.dst, frame[IP].flags, frame[TCP].flags) == (A, B, "DF", "SA")
    asked = Ether(frame_of("arp who-has 10.0.0.9 tell 10.0.0.5"))
    assert (asked[ARP].hwsrc, asked[ARP].hwdst) == (A, "00:00:00:00:00:00")


def test_what_a_line_cannot_hold_is_still_described() -> None:
    ends = packet.Somewhere(A, ("10.0.0.5", "fd00::5")), packet.Somewhere(B, ("10.0.0.9", "fd00::9"))
    assert describe(parse(packet.raw(ends[0], 0x88CC))) == f"ethertype 0x88cc, {A} > ff:ff:ff:ff:ff:ff"
    first, later = packet.fragments(packet.udp(*ends, 1, 53, payload=bytes(8)), 8, ident=0x77)
    assert describe(parse(first)) == "udp 10.0.0.5:1 > 10.0.0.9:53, fragment at 0 of 0x77"
    assert describe(parse(later)) == "ip 10.0.0.5 > 10.0.0.9 proto 17, fragment at 8 of 0x77"
