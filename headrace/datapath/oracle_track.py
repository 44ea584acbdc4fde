"""track: flow keys, and which connection a packet belongs to. docs/pipeline.md, "track"."""

from __future__ import annotations

import ipaddress

import msgspec

from headrace.abi import Reason, State
from headrace.datapath.connection import Connection, Connections, FirstFragment
from headrace.datapath.decision import Course, Dropped, Key, Place, Side
from headrace.datapath.oracle_admit import Entry
from headrace.datapath.oracle_tcp import Segment, segment_of
from headrace.datapath.packet import (
    ACK,
    ICMPV6,
    IPV4,
    IPV6,
    QUERIES,
    SCTP,
    SYN,
    TCP,
    UDP,
    Fragment,
    Ip,
    is_icmp,
    number,
)

ICMP_HEADER = 8
QUOTED_TRANSPORT = 8
SYN_ACK = SYN | ACK


class Bond(msgspec.Struct, frozen=True, kw_only=True):
    """What a packet is to its host's connections.

    ``tracked``: it may belong to a connection or make one. ``connection`` with ``course``: the one it belongs to, or,
    of an ICMP ``error``, the one it is about. ``segment``: TCP's; ``later``: it is a later fragment.
    """

    key: Key | None = None
    tracked: bool = False
    connection: Connection | None = None
    course: Course | None = None
    error: bool = False
    segment: Segment | None = None
    later: bool = False

    def role(self, side: Side) -> Side:
        """What a side of this packet was to the original direction."""
        if self.course == "original":
            return side
        return "to" if side == "from" else "from"

    @property
    def is_new_answer(self) -> bool:
        """Whether it is a SYN+ACK that answers nothing known."""
        new = self.tracked and self.connection is None
        return new and self.segment is not None and self.segment.flags & SYN_ACK == SYN_ACK


def key_of(connections: Connections, entry: Entry, ip: Ip, now: int) -> Key:
    """The packet's flow key; a later fragment finds its ports with the first. Raises Dropped."""
    sport = ip.transport.sport if ip.transport else 0
    dport = ip.transport.dport if ip.transport else 0
    if ip.fragment is not None and ip.is_later_fragment:
        name = fragmented(entry, ip, ip.fragment)
        known = connections.first_fragment(name, now)
        if known is None:
            raise Dropped(Reason.FRAGMENT_ORPHAN, f"no first fragment of packet {ip.fragment.id} was forwarded")
        if ip.fragment.offset < known.length:
            raise Dropped(Reason.FRAGMENT_OVERLAP, f"octet {ip.fragment.offset} was in the first fragment")
        sport, dport = known.sport, known.dport
    return Key(ip.source, ip.destination, ip.protocol, sport, dport, entry.place)


def fragmented(entry: Entry, ip: Ip, fragment: Fragment) -> tuple[Place, str, str, int, int]:
    """What the fragments of one packet have in common."""
    return entry.place, str(ip.source), str(ip.destination), ip.protocol, fragment.id


def remember(connections: Connections, entry: Entry, now: int) -> None:
    """Keep the ports of a packet that goes on, if it is a first fragment."""
    ip = entry.packet.ip
    if ip is None or ip.fragment is None or ip.is_later_fragment:
        return
    connections.fragments[fragmented(entry, ip, ip.fragment)] = FirstFragment(
        sport=ip.transport.sport if ip.transport else 0,
        dport=ip.transport.dport if ip.transport else 0,
        length=ip.end - ip.fragment.start,
        seen=now,
    )


def bind(connections: Connections, entry: Entry, key: Key, receiver: Place | None, now: int, *, stateful: bool) -> Bond:
    """Find the packet's connection. ``receiver``: where it goes; ``stateful``: a local side's port tracks.

    Raises Dropped.
    """
    ip = entry.packet.ip
    assert ip is not None
    if entry.packet.is_multicast or is_discovery(key):
        return Bond(key=key)
    if is_error(key):
        return bind_error(connections, entry, key, receiver, now)
    segment = segment_of(ip)
    connection = connections.live(key, now)
    if connection is not None and connection.reopened_by(segment):
        connections.remove(connection)
        connection = None
    if connection is None or (connection.state == State.STATELESS and stateful):
        return Bond(key=key, tracked=True, segment=segment, later=ip.is_later_fragment)
    course: Course = "original" if key == connection.original else "reply"
    if connection.refuses(course, segment):
        raise Dropped(Reason.TCP_WINDOW, "its receiver would not believe the sequence number of this reset")
    return Bond(key=key, tracked=True, connection=connection, course=course, segment=segment)


def bind_error(connections: Connections, entry: Entry, key: Key, receiver: Place | None, now: int) -> Bond:
    """Find the connection that an ICMP error is about: it travels against the packet that it quotes."""
    ip = entry.packet.ip
    assert ip is not None
    quoted = quoted_key(entry.packet.frame, ip, receiver) if receiver is not None else None
    connection = connections.live(quoted, now) if quoted is not None else None
    if connection is None:
        return Bond(key=key, error=True)
    course: Course = "reply" if quoted == connection.original else "original"
    return Bond(key=key, error=True, connection=connection, course=course)


def quoted_key(frame: bytes, ip: Ip, receiver: Place) -> Key | None:
    """The key that the packet an ICMP error quotes had when the error's receiver sent it; None if it tells none."""
    if ip.is_later_fragment:
        return None
    quote = frame[ip.payload + ICMP_HEADER : ip.end]
    source: ipaddress.IPv4Address | ipaddress.IPv6Address
    destination: ipaddress.IPv4Address | ipaddress.IPv6Address
    if ip.version == 4:
        if len(quote) < IPV4 or quote[0] >> 4 != 4 or quote[0] & 0x0F < 5 or number(quote[6:8]) & 0x1FFF:
            return None
        protocol, transport = quote[9], quote[(quote[0] & 0x0F) * 4 :]
        source, destination = ipaddress.IPv4Address(quote[12:16]), ipaddress.IPv4Address(quote[16:20])
    else:
        if len(quote) < IPV6 or quote[0] >> 4 != 6:
            return None
        protocol, transport = quote[6], quote[IPV6:]
        source, destination = ipaddress.IPv6Address(quote[8:24]), ipaddress.IPv6Address(quote[24:40])
    if source != ip.destination or len(transport) < QUOTED_TRANSPORT:
        return None
    sport = dport = 0
    if protocol in {TCP, UDP, SCTP}:
        sport, dport = number(transport[0:2]), number(transport[2:4])
    if is_icmp(ip.version, protocol):
        if not is_query(ip.version, transport[0]):
            return None
        sport, dport = number(transport[4:6]), number(transport[0:2])
    return Key(source, destination, protocol, sport, dport, receiver)


def settle(
    connections: Connections,
    bond: Bond,
    receiver: Place,
    now: int,
    *,
    tracks: dict[Side, bool],
    weight: tuple[int, int],
) -> Connection | None:
    """Make or change the connection of a packet that is forwarded.

    ``tracks``: the sides that allowed it by their rules and whose ports are stateful. ``weight``: packets and octets.
    """
    if not bond.tracked:
        return None
    connection = bond.connection or open_connection(connections, bond, receiver, tracks=tracks)
    if connection is None:
        return None
    connection.seen, connection.is_cut = now, False
    way = 1 if bond.course == "reply" else 0
    connection.packets[way] += weight[0]
    connection.octets[way] += weight[1]
    if bond.course is None:
        return connection
    connection.advance(bond.course, bond.segment)
    if bond.course == "original" and connection.state != State.STATELESS:
        if receiver != connection.receiver:
            connection.tracks_to = False
            connections.move(connection, receiver)
        connection.tracks_from |= tracks["from"]
        connection.tracks_to |= tracks["to"]
    return connection


def open_connection(
    connections: Connections, bond: Bond, receiver: Place, *, tracks: dict[Side, bool]
) -> Connection | None:
    """Make a connection of a new packet, unless it is one that makes none."""
    key, segment = bond.key, bond.segment
    assert key is not None
    if bond.later or (segment is not None and segment.resets):
        return None
    state = State.NEW
    if not tracks["from"] and not tracks["to"]:
        state = State.STATELESS
    elif key.protocol == TCP:
        state = State.SYN_SENT
    connection = Connection(
        state=state,
        original=key,
        receiver=receiver,
        reply=None if state == State.STATELESS else reply_of(key, receiver),
        tracks_from=tracks["from"],
        tracks_to=tracks["to"],
        adopted=state == State.SYN_SENT and not (segment is not None and segment.flags & SYN),
    )
    connection.advance("original", segment)
    connections.add(connection)
    return connection


def reply_of(key: Key, receiver: Place) -> Key | None:
    """The key that answers have; None if nothing answers."""
    version = key.source.version
    if not is_icmp(version, key.protocol):
        return Key(key.destination, key.source, key.protocol, key.dport, key.sport, receiver)
    question = key.dport >> 8
    if question not in QUERIES[version]:
        return None
    answer = QUERIES[version][question] << 8 | key.dport & 0xFF
    return Key(key.destination, key.source, key.protocol, key.sport, answer, receiver)


def is_query(version: int, kind: int) -> bool:
    """An ICMP query or its answer."""
    return kind in QUERIES[version] or kind in QUERIES[version].values()


def is_discovery(key: Key) -> bool:
    """Neighbour discovery and multicast listeners (RFC 4861, RFC 2710, RFC 9777)."""
    kind = key.dport >> 8
    return key.source.version == 6 and key.protocol == ICMPV6 and (130 <= kind <= 137 or kind == 143)


def is_error(key: Key) -> bool:
    """An ICMP error or redirect, which quotes the packet it is about."""
    if not is_icmp(key.source.version, key.protocol):
        return False
    return key.dport >> 8 in ({3, 4, 5, 11, 12} if key.source.version == 4 else {1, 2, 3, 4})
