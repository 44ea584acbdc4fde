"""Frames for tests, by scapy: what one port sends another, and what nobody should send.

Builders take ports (or `Somewhere`, for places that are no port) and return octets. They share no code with the
datapath, so a mistake in a header is not made twice. scapy comes with the ``dev`` dependencies.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6Unknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Ether
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from headrace.model import Port

BROADCAST = "ff:ff:ff:ff:ff:ff"
ETHERNET = 14


class Somewhere(NamedTuple):
    """A MAC and its addresses, as a port has them."""

    mac: str
    addresses: tuple[str, ...] = ()


End = Port | Somewhere


def address(end: End, family: int = 4) -> str:
    """The first address of a family."""
    return next(text for text in end.addresses if ipaddress.ip_address(text).version == family)


def over_ip(source: End, destination: End, transport: Packet, *, family: int = 4, **fields: Any) -> Packet:
    """A scapy packet between two ends. ``fields``: of the IP header, or ``smac``, ``dmac``, ``df``."""
    if fields.pop("df", False) and family == 4:
        fields["flags"] = "DF"
    ether = Ether(src=fields.pop("smac", source.mac), dst=fields.pop("dmac", destination.mac))
    ends = {"src": fields.pop("src", None), "dst": fields.pop("dst", None)}
    ends["src"] = ends["src"] or address(source, family)
    ends["dst"] = ends["dst"] or address(destination, family)
    header = IP(**ends, **fields) if family == 4 else IPv6(**ends, **fields)
    return ether / header / transport


def tcp(
    source: End,
    destination: End,
    sport: int,
    dport: int,
    flags: str = "S",
    *,
    seq: int = 0,
    ack: int = 0,
    options: Iterable[tuple[Any, Any]] = (),
    payload: bytes = b"",
    **fields: Any,
) -> bytes:
    """A TCP segment. ``flags`` and ``options`` as scapy has them: S, SA, A, F, R, P, U; "" for none.

    Numbers are modulo 2^32.
    """
    header = TCP(sport=sport, dport=dport, flags=flags, seq=seq % 2**32, ack=ack % 2**32, options=list(options))
    return bytes(over_ip(source, destination, header / Raw(payload), **fields))


def udp(source: End, destination: End, sport: int, dport: int, *, payload: bytes = b"", **fields: Any) -> bytes:
    return bytes(over_ip(source, destination, UDP(sport=sport, dport=dport) / Raw(payload), **fields))


def sctp(source: End, destination: End, sport: int, dport: int, **fields: Any) -> bytes:
    return bytes(over_ip(source, destination, SCTP(sport=sport, dport=dport), **fields))


def other(source: End, destination: End, protocol: int, *, payload: bytes = b"", **fields: Any) -> bytes:
    """A protocol without ports."""
    name = "proto" if fields.get("family", 4) == 4 else "nh"
    return bytes(over_ip(source, destination, Raw(payload), **{name: protocol}, **fields))


def icmp(source: End, destination: End, kind: int = 8, code: int = 0, *, ident: int = 1, **fields: Any) -> bytes:
    """ICMP, or ICMPv6 with ``family=6``."""
    if fields.get("family", 4) == 4:
        return bytes(over_ip(source, destination, ICMP(type=kind, code=code, id=ident), **fields))
    if kind in {128, 129}:
        echo = ICMPv6EchoRequest if kind == 128 else ICMPv6EchoReply
        return bytes(over_ip(source, destination, echo(code=code, id=ident), **fields))
    rest = ident.to_bytes(2, "big") + bytes(2)
    return bytes(over_ip(source, destination, ICMPv6Unknown(type=kind, code=code, msgbody=rest), **fields))


def icmp_error(
    source: End, destination: End, quoted: bytes, kind: int = 3, code: int = 1, *, room: int = 64, **fields: Any
) -> bytes:
    """An ICMP error that quotes the first ``room`` octets of the packet in a frame."""
    packet = Ether(quoted).payload
    quote = Raw(bytes(packet)[:room])
    if fields.get("family", 4) == 4:
        return bytes(over_ip(source, destination, ICMP(type=kind, code=code) / quote, **fields))
    body = bytes(4) + bytes(packet)[:room]
    return bytes(over_ip(source, destination, ICMPv6Unknown(type=kind, code=code, msgbody=body), **fields))


def arp(source: End, target: str, *, operation: int = 1, to: End | None = None, **fields: Any) -> bytes:
    """Who has ``target``, or with ``operation=2`` (and ``to``) an answer. ``fields``: of the message, or ``dmac``."""
    ether = Ether(src=fields.pop("smac", source.mac), dst=fields.pop("dmac", to.mac if to else BROADCAST))
    message: dict[str, Any] = {"hwsrc": source.mac, "psrc": source.addresses[0] if source.addresses else "0.0.0.0"}
    message |= {"hwdst": to.mac if to else "00:00:00:00:00:00", "pdst": target, "op": operation}
    return bytes(ether / ARP(**message | fields))


def ns(source: End, target: str, *, option: str | None = "own", to: str | None = None, **fields: Any) -> bytes:
    """A neighbour solicitation. ``option``: the MAC in it, "own" for the sender's; ``to``: a MAC, else multicast."""
    group = ipaddress.IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + ipaddress.IPv6Address(target).packed[13:])
    message = ICMPv6ND_NS(tgt=target)
    if option is not None:
        message /= ICMPv6NDOptSrcLLAddr(lladdr=source.mac if option == "own" else option)
    mac = to or "33:33:" + group.packed[12:].hex(":")
    given = {"dst": target if to else str(group), "dmac": mac, "hlim": 255} | fields
    return bytes(over_ip(source, source, message, family=6, **given))


def na(source: End, destination: End, target: str, *, option: str | None = "own", **fields: Any) -> bytes:
    """A neighbour advertisement. ``option``: the MAC in it, "own" for the sender's."""
    message = ICMPv6ND_NA(tgt=target, R=0, S=1, O=1)
    if option is not None:
        message /= ICMPv6NDOptDstLLAddr(lladdr=source.mac if option == "own" else option)
    return bytes(over_ip(source, destination, message, family=6, **{"hlim": 255} | fields))


def ra(source: End, **fields: Any) -> bytes:
    """A router advertisement to all nodes."""
    given = {"dst": "ff02::1", "dmac": "33:33:00:00:00:01", "hlim": 255} | fields
    return bytes(over_ip(source, source, ICMPv6ND_RA(), family=6, **given))


def raw(source: End, ethertype: int, payload: bytes = b"", *, dmac: str = BROADCAST) -> bytes:
    """Any ethertype."""
    return bytes(Ether(src=source.mac, dst=dmac, type=ethertype) / Raw(payload))


def fragments(frame: bytes, size: int = 8, ident: int = 0x1234) -> list[bytes]:
    """The fragments of a frame's IP packet, ``size`` octets of payload each (a multiple of 8), in order."""
    ether = Ether(frame)
    header = ether.payload.copy()
    payload = bytes(ether.payload.payload)
    header.remove_payload()
    parts = []
    for start in range(0, len(payload), size):
        more = start + size < len(payload)
        own: Packet
        if isinstance(header, IP):
            own = header.copy()
            own.flags, own.frag, own.id, own.len, own.chksum = (
                ("MF" if more else 0),
                start // 8,
                ident & 0xFFFF,
                None,
                None,
            )
            own.proto = header.proto
        else:
            extension = IPv6ExtHdrFragment(offset=start // 8, m=int(more), id=ident, nh=header.nh)
            own = IPv6(src=header.src, dst=header.dst, hlim=header.hlim, nh=44) / extension
        parts.append(bytes(Ether(src=ether.src, dst=ether.dst) / own / Raw(payload[start : start + size])))
    return parts


def extended(frame: bytes, headers: Iterable[Packet]) -> bytes:
    """An IPv6 frame with extension headers put in front of its transport."""
    ether = Ether(frame)
    base = ether.payload
    payload = Raw(bytes(base.payload))
    chain: Packet | None = None
    for header in headers:
        chain = header.copy() if chain is None else chain / header.copy()
    assert chain is not None
    last = chain.lastlayer()
    last.nh = base.nh
    own = IPv6(src=base.src, dst=base.dst, hlim=base.hlim) / chain / payload
    return bytes(Ether(src=ether.src, dst=ether.dst) / own)


def padded(frame: bytes, count: int = 1) -> bytes:
    """An IPv6 frame behind ``count`` destination option headers."""
    return extended(frame, [IPv6ExtHdrDestOpt() for _ in range(count)])


def tagged(frame: bytes, vlan: int = 7, ethertype: int = 0x8100) -> bytes:
    """A frame with a VLAN tag in it."""
    return frame[:12] + ethertype.to_bytes(2, "big") + vlan.to_bytes(2, "big") + frame[12:]


def truncations(frame: bytes) -> Iterator[bytes]:
    """The frame cut short after every number of octets, the shortest first."""
    for length in range(len(frame)):
        yield frame[:length]


def with_octet(frame: bytes, offset: int, value: int) -> bytes:
    """A frame with one octet changed; the checksums stay as they were."""
    return frame[:offset] + bytes([value]) + frame[offset + 1 :]


def vxlan(source: str, destination: str, vni: int, inner: bytes, *, sport: int = 50000, **fields: Any) -> bytes:
    """A frame of the underlay between two VTEPs; ``fields``: of the outer IP header."""
    header = IPv6 if ":" in source else IP
    outer = header(src=source, dst=destination, **fields) / UDP(sport=sport, dport=4789, chksum=0)
    return bytes(Ether() / outer / VXLAN(vni=vni, flags="Instance") / Raw(inner))
