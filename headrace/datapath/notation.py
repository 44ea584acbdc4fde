"""A packet in one line, both ways: ``tcp 10.0.0.5:1234 > 10.0.0.9:80 syn``.

What ``describe`` writes, ``read`` understands, as far as a line can hold a packet:

    tcp|udp|sctp SOURCE[:PORT] > DESTINATION:PORT [syn|ack|fin|rst|psh|urg joined by +]    (IPv6: [ADDRESS]:PORT)
    icmp SOURCE > DESTINATION [echo|reply|TYPE[/CODE]] [id N]
    ip SOURCE > DESTINATION proto N
    arp who-has TARGET tell SENDER
    arp SENDER is-at MAC [to TARGET]
    ns TARGET from SOURCE
"""

from __future__ import annotations

import ipaddress
import re

import msgspec

from headrace.datapath import frame
from headrace.datapath.decision import IpAddress
from headrace.datapath.packet import ICMP, ICMPV6, SCTP, TCP, UDP, Ip, Packet, is_icmp
from headrace.errors import InvalidInput

FLAGS = {"fin": 0x01, "syn": 0x02, "rst": 0x04, "psh": 0x08, "ack": 0x10, "urg": 0x20}
PORTED = {"tcp": TCP, "udp": UDP, "sctp": SCTP}
ECHO = {4: (8, 0), 6: (128, 129)}
"""ICMP types of echo and its reply, by IP version."""
EPHEMERAL = 49152
EXAMPLES = (
    "tcp 10.0.0.5:1234 > 10.0.0.9:80 syn; udp [fd00::5]:53 > [fd00::9]:53; icmp 10.0.0.5 > 10.0.0.9 echo; "
    "ip 10.0.0.5 > 10.0.0.9 proto 47; arp who-has 10.0.0.9 tell 10.0.0.5; ns fd00::9 from fd00::5"
)

ENDPOINT = re.compile(r"^(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:]+)|(?P<bare>.*:.*:.*))(?::(?P<port>\d+))?$")
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A packet as read from a line. ``kind``: tcp, udp, sctp, icmp, ip, arp, ns."""

    kind: str
    source: IpAddress
    destination: IpAddress
    sport: int = 0
    dport: int = 0
    flags: int = 0
    protocol: int = 0
    mac: str | None = None
    """ARP: set in a reply."""


def read(text: str) -> Line:
    """Parse a line; raises InvalidInput that says what is wrong and shows lines that are right."""
    words = text.split()
    try:
        kind, rest = words[0].lower(), words[1:]
        if kind in PORTED:
            return read_ported(kind, rest)
        if kind in {"icmp", "icmp6", "icmpv6"}:
            return read_icmp(rest)
        if kind == "ip":
            source, destination = pair(rest[:3])
            expect(rest[3] == "proto", "proto N after the addresses")
            return Line(kind="ip", source=source, destination=destination, protocol=bounded(rest[4], 255))
        if kind == "arp":
            return read_arp(rest)
        if kind == "ns":
            expect(rest[1] == "from", "ns TARGET from SOURCE")
            return Line(kind="ns", source=address(rest[2], 6), destination=address(rest[0], 6))
    except IndexError:
        raise InvalidInput(f"packet {text!r} ends too early; for example: {EXAMPLES}") from None
    except ValueError as error:
        raise InvalidInput(f"packet {text!r}: {error}; for example: {EXAMPLES}") from None
    raise InvalidInput(f"packet {text!r}: {kind!r} is no protocol known here; for example: {EXAMPLES}")


def read_ported(kind: str, rest: list[str]) -> Line:
    source, sport = endpoint(rest[0])
    expect(rest[1] == ">", "> between source and destination")
    destination, dport = endpoint(rest[2])
    same_family(source, destination)
    expect(dport is not None, f"a destination port in {rest[2]!r}")
    flags = 0
    if kind == "tcp":
        for name in (rest[3] if len(rest) > 3 else "syn").lower().split("+"):
            expect(name in FLAGS, f"TCP flags of {', '.join(FLAGS)}, not {name!r},")
            flags |= FLAGS[name]
    expect(len(rest) <= (4 if kind == "tcp" else 3), f"nothing after {rest[2]!r} but TCP's flags")
    return Line(
        kind=kind,
        source=source,
        destination=destination,
        sport=EPHEMERAL if sport is None else sport,
        dport=dport or 0,
        flags=flags,
        protocol=PORTED[kind],
    )


def read_icmp(rest: list[str]) -> Line:
    source, destination = pair(rest[:3])
    words = rest[3:]
    identifier = 1
    if len(words) >= 2 and words[-2] == "id":
        identifier = bounded(words[-1], 65535)
        words = words[:-2]
    name = words[0] if words else "echo"
    expect(len(words) <= 1, "echo, reply or TYPE/CODE")
    if name in {"echo", "reply"}:
        kind, code = ECHO[source.version][name == "reply"], 0
    else:
        first, _, second = name.partition("/")
        kind, code = bounded(first, 255), bounded(second or "0", 255)
    protocol = ICMP if source.version == 4 else ICMPV6
    return Line(
        kind="icmp",
        source=source,
        destination=destination,
        sport=identifier,
        dport=kind << 8 | code,
        protocol=protocol,
    )


def read_arp(rest: list[str]) -> Line:
    if rest[0] == "who-has":
        expect(rest[2] == "tell", "arp who-has TARGET tell SENDER")
        return Line(kind="arp", source=address(rest[3], 4), destination=address(rest[1], 4))
    expect(rest[1] == "is-at", "arp who-has TARGET tell SENDER, or arp SENDER is-at MAC")
    expect(MAC.fullmatch(rest[2].lower()), f"a MAC after is-at, not {rest[2]!r}")
    target = address(rest[4 if rest[3:4] == ["to"] else 0], 4)
    return Line(kind="arp", source=address(rest[0], 4), destination=target, mac=rest[2].lower())


def build(line: Line, *, source: str, destination: str) -> bytes:
    """The Ethernet frame of a line, between two MACs."""
    if line.kind == "arp":
        ethertype, payload = frame.arp(
            operation=2 if line.mac else 1,
            sender_mac=line.mac or source,
            sender=line.source,
            target_mac=destination if line.mac else "00:00:00:00:00:00",
            target=line.destination,
        )
        return frame.ethernet(source=source, destination=destination, ethertype=ethertype, payload=payload)
    to, hop_limit = line.destination, frame.HOP_LIMIT
    if line.kind == "tcp":
        payload = frame.tcp(line.source, to, line.sport, line.dport, line.flags)
    elif line.kind == "udp":
        payload = frame.udp(line.source, to, line.sport, line.dport)
    elif line.kind == "sctp":
        payload = frame.sctp(line.sport, line.dport)
    elif line.kind == "icmp":
        rest = line.sport.to_bytes(2, "big") + b"\0\1"
        payload = frame.icmp(line.source, to, line.dport >> 8, line.dport & 0xFF, rest)
    elif line.kind == "ns":
        assert isinstance(line.source, ipaddress.IPv6Address)
        assert isinstance(to, ipaddress.IPv6Address)
        payload = frame.neighbour_solicitation(source=line.source, target=to, mac=source)
        to, hop_limit = frame.solicited_node(to), 255
    else:
        payload = b""
    protocol = ICMPV6 if line.kind == "ns" else line.protocol
    ethertype, packet = frame.ip(line.source, to, protocol, payload, hop_limit=hop_limit)
    return frame.ethernet(source=source, destination=destination, ethertype=ethertype, payload=packet)


def describe(packet: Packet) -> str:
    """The packet as a line."""
    if packet.arp is not None:
        arp = packet.arp
        if arp.operation == 1:
            return f"arp who-has {arp.target} tell {arp.sender}"
        return f"arp {arp.sender} is-at {arp.sender_mac} to {arp.target}"
    if packet.ip is None:
        return f"ethertype {packet.ethertype:#06x}, {packet.source} > {packet.destination}"
    part = ""
    if packet.ip.fragment is not None:
        part = f", fragment at {packet.ip.fragment.offset} of {packet.ip.fragment.id:#x}"
    return describe_ip(packet.ip) + part


def describe_ip(ip: Ip) -> str:
    names = {number: name for name, number in PORTED.items()}
    transport = ip.transport
    if transport is None or not (ip.protocol in names or is_icmp(ip.version, ip.protocol)):
        return f"ip {ip.source} > {ip.destination} proto {ip.protocol}"
    if is_icmp(ip.version, ip.protocol):
        kind, code = transport.dport >> 8, transport.dport & 0xFF
        ends = f"icmp {ip.source} > {ip.destination}"
        if kind in ECHO[ip.version] and code == 0:
            return f"{ends} {'echo' if kind == ECHO[ip.version][0] else 'reply'} id {transport.sport}"
        return f"{ends} {kind}/{code}"
    ends = f"{with_port(ip.source, transport.sport)} > {with_port(ip.destination, transport.dport)}"
    flags = "+".join(name for name, bit in FLAGS.items() if transport.flags & bit)
    return f"{names[ip.protocol]} {ends} {flags}".rstrip()


def with_port(ip: IpAddress, port: int) -> str:
    return f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}"


def endpoint(word: str) -> tuple[IpAddress, int | None]:
    match = ENDPOINT.match(word)
    if match is None:
        raise ValueError(f"{word!r} is no address with a port")
    port = match["port"]
    return address(match["v4"] or match["v6"] or match["bare"]), None if port is None else bounded(port, 65535)


def pair(words: list[str]) -> tuple[IpAddress, IpAddress]:
    expect(words[1] == ">", "> between source and destination")
    source, destination = address(words[0]), address(words[2])
    same_family(source, destination)
    return source, destination


def address(word: str, family: int | None = None) -> IpAddress:
    found = ipaddress.ip_address(word)
    expect(family in {None, found.version}, f"an IPv{family} address, not {word}")
    return found


def bounded(word: str, most: int) -> int:
    if not word.isdecimal() or int(word) > most:
        raise ValueError(f"{word!r} is no number from 0 to {most}")
    return int(word)


def same_family(source: IpAddress, destination: IpAddress) -> None:
    expect(source.version == destination.version, f"addresses of one family, not {source} and {destination}")


def expect(condition: object, what: str) -> None:
    if not condition:
        raise ValueError(f"expected {what}")
