"""Frames cut short at every length and with octets flipped: always a reason, never an abort, nothing that leaks.

The oracle is asked about each of them too: a frame that still gets somewhere gets where it should. The seed is fixed.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable

import pytest

from headrace.abi import Reason
from headrace.datapath.decision import Arrival
from headrace.testing import packet
from headrace.testing.outer import put_on
from headrace.testing.twin import Twin, sent, tunnelled
from headrace.testing.world import ANY, group, network, port

MakeTwin = Callable[..., Twin]

A, B, C = port("a", "blue", 1, "any"), port("b", "blue", 2, "any"), port("c", "blue", 3, "any", host="h2")
OPEN = port("open", "blue", 5, port_security=False)
STATE = (network("blue"), group("any", *ANY), A, B, C, OPEN)
FLIPS = 300
"""Frames with flipped octets, for each way in."""

VALID = {
    "tcp": packet.tcp(A, B, 1000, 80),
    "tcp over IPv6": packet.tcp(A, B, 1000, 80, family=6),
    "udp": packet.udp(A, B, 1000, 53, payload=b"12345678"),
    "udp over IPv6": packet.udp(A, B, 1000, 53, payload=b"12345678", family=6),
    "sctp": packet.sctp(A, B, 1000, 80),
    "icmp": packet.icmp(A, B),
    "icmp error": packet.icmp_error(A, B, packet.udp(B, A, 53, 1000, payload=b"12345678")),
    "icmpv6 error": packet.icmp_error(A, B, packet.udp(B, A, 53, 1000, payload=b"12345678", family=6), 1, family=6),
    "arp": packet.arp(A, "10.0.0.2"),
    "gratuitous arp": packet.arp(A, "10.0.0.1", operation=2),
    "ns": packet.ns(A, "fd00::2"),
    "na": packet.na(A, B, "fd00::1"),
    "extensions": packet.padded(packet.udp(A, B, 1000, 53, family=6), 6),
    "fragment": packet.fragments(packet.udp(A, B, 1000, 53, payload=bytes(40)), 24)[0],
    "fragment of IPv6": packet.fragments(packet.udp(A, B, 1000, 53, payload=bytes(40), family=6), 24)[1],
    "gre": packet.other(A, B, 47, payload=bytes(12)),
    "broadcast": packet.udp(A, B, 1000, 53, dmac=packet.BROADCAST),
}


def shortened(frame: bytes, length: int) -> bytes:
    """The frame cut, and its IP header made to say so: what is missing is the transport's."""
    cut = frame[:length]
    if frame[12:14] == b"\x08\x00" and length >= 34:
        return cut[:16] + struct.pack("!H", length - 14) + cut[18:]
    if frame[12:14] == b"\x86\xdd" and length >= 54:
        return cut[:18] + struct.pack("!H", length - 54) + cut[20:]
    return cut


def ways(frame: bytes) -> list[Arrival]:
    """How a frame may come: from a port with port security, from one without, and by tunnel."""
    return [sent("a", frame), sent("open", frame), tunnelled(frame)]


@pytest.mark.parametrize("name", VALID)
def test_cut_at_every_length(twin: MakeTwin, name: str) -> None:
    asked = twin(*STATE)
    for length in range(len(VALID[name]) + 1):
        for arrival in ways(VALID[name][:length]):
            if len(arrival.frame) >= packet.ETHERNET or arrival.port is None:  # the kernel takes no shorter ones
                asked.run(arrival)
    assert asked.seen.total() > len(VALID[name])


@pytest.mark.parametrize("name", VALID)
def test_cut_with_headers_that_say_so(twin: MakeTwin, name: str) -> None:
    asked = twin(*STATE)
    for length in range(packet.ETHERNET, len(VALID[name])):
        for arrival in ways(shortened(VALID[name], length)):
            asked.run(arrival, "xdp")
            asked.run(arrival)


@pytest.mark.parametrize("family", [4, 6])
def test_outer_headers_cut_at_every_length(twin: MakeTwin, family: int) -> None:
    asked = twin(*STATE)
    ends = ("192.0.2.2", "192.0.2.1") if family == 4 else ("2001:db8::2", "2001:db8::1")
    whole = put_on(*ends, 100, packet.udp(C, A, 1000, 53))
    for length in range(packet.ETHERNET, len(whole) + 1):
        asked.run(Arrival(frame=whole[:length]), "xdp")
        asked.run(Arrival(frame=whole[:length]))


@pytest.mark.parametrize("way", ["a", "open", "tunnel", "outer"])
def test_flipped_octets(twin: MakeTwin, way: str) -> None:
    """Mostly within the headers, mostly one octet or two; to what is likely to mean something, or to anything."""
    chance = random.Random(f"{way} 4711")
    asked, frames = twin(*STATE), sorted(VALID.values())
    telling = (0, 1, 4, 5, 6, 8, 16, 17, 20, 40, 43, 44, 45, 51, 58, 59, 60, 127, 128, 132, 135, 136, 255)
    for _ in range(FLIPS):
        frame = bytearray(chance.choice(frames))
        if way == "outer":
            ends = chance.choice((("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")))
            frame = bytearray(put_on(*ends, 100, bytes(frame)))
        for _ in range(chance.choice((1, 1, 2, 4))):
            at = chance.randrange(min(len(frame), 90 if chance.random() < 0.9 else len(frame)))
            value = chance.choice(telling) if chance.random() < 0.6 else frame[at] ^ 1 << chance.randrange(8)
            frame[at] = value
        arrival = {"tunnel": tunnelled(bytes(frame)), "outer": Arrival(frame=bytes(frame))}.get(way) or sent(
            way, bytes(frame)
        )
        asked.run(arrival, "xdp" if chance.random() < 0.3 else "tc")
        asked.run(arrival)
    assert len({reason for reason, _, _ in asked.seen}) >= 8
    assert not asked.host.memory.inconsistencies()


def test_noise(twin: MakeTwin) -> None:
    chance = random.Random(4711)
    asked = twin(*STATE)
    for _ in range(FLIPS):
        frame = bytes.fromhex(A.mac.replace(":", "")) + chance.randbytes(chance.randrange(8, 120))
        if chance.random() < 0.7:
            frame = frame[:12] + chance.choice((b"\x08\x00", b"\x86\xdd", b"\x08\x06")) + frame[14:]
        if len(frame) > 14 and chance.random() < 0.7:
            frame = frame[:14] + {b"\x08\x00": b"\x45", b"\x86\xdd": b"\x60"}.get(frame[12:14], b"\0") + frame[15:]
        for arrival in ways(frame):
            asked.run(arrival)
    reasons = Counter({reason: number for (reason, _, _), number in asked.seen.items()})
    assert reasons[Reason.NONE] < asked.seen.total() // 2
