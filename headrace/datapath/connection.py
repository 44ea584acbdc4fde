"""What a host remembers for the oracle: connections and their states, first fragments, learnt MACs.

docs/pipeline.md, "track". Times are milliseconds of whatever clock the caller has.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.abi import State
from headrace.datapath.decision import Course, Key, Place, Side
from headrace.datapath.oracle_tcp import Segment as TcpSegment
from headrace.datapath.oracle_tcp import TcpSide, believed, is_just_above, plausible
from headrace.datapath.packet import FIN, ICMP, ICMPV6, SYN, TCP, UDP
from headrace.model import Segment

FRAGMENT_LIFE = 30_000
"""Milliseconds that the ports of a first fragment are kept."""

LEARNT_LIFE = 300_000
"""Milliseconds that a MAC is remembered on the wire of a physical network."""

TIMEOUTS = {
    State.SYN_SENT: 120_000,
    State.SYN_RECEIVED: 60_000,
    State.ESTABLISHED: 432_000_000,
    State.CLOSING: 240_000,
    State.TIME_WAIT: 120_000,
    State.CLOSED: 10_000,
    State.STATELESS: 30_000,
}
"""Milliseconds of silence that a connection survives; NEW and ASSURED depend on the protocol."""


CUT_TIMEOUT = 300_000
"""The same for a TCP connection that was cut."""


class Connection(msgspec.Struct, kw_only=True):
    """What outlives decisions. ``reply`` None: nothing answers it.

    ``receiver``: where the original direction went, and so where replies enter. ``tracks_from``, ``tracks_to``: the
    original sender's and receiver's side let replies pass. Counters are of (original, reply) packets, and so is what
    the sides of a TCP connection have sent, ``tcp``.
    """

    state: State
    original: Key
    receiver: Place
    reply: Key | None = None
    tracks_from: bool = False
    tracks_to: bool = False
    adopted: bool = False
    fin_original: bool = False
    fin_reply: bool = False
    is_cut: bool = False
    seen: int = 0
    packets: list[int] = msgspec.field(default_factory=lambda: [0, 0])
    octets: list[int] = msgspec.field(default_factory=lambda: [0, 0])
    tcp: tuple[TcpSide, TcpSide] = msgspec.field(default_factory=lambda: (TcpSide(), TcpSide()))

    @property
    def keys(self) -> list[Key]:
        """Its one or two keys."""
        return [self.original] if self.reply is None else [self.original, self.reply]

    @property
    def timeout(self) -> int:
        """Milliseconds of silence that it survives."""
        protocol = self.original.protocol
        if self.is_cut:
            return CUT_TIMEOUT
        if self.state == State.NEW:
            return 30_000 if protocol in {UDP, ICMP, ICMPV6} else 600_000
        if self.state == State.ASSURED:
            return {UDP: 180_000, ICMP: 30_000, ICMPV6: 30_000}.get(protocol, 600_000)
        return TIMEOUTS[self.state]

    def tracks(self, role: Side) -> bool:
        """Whether the original sender's ("from") or receiver's ("to") side tracks it."""
        return self.tracks_from if role == "from" else self.tracks_to

    def place(self, role: Side) -> Place | None:
        """Where the key of the original sender or receiver enters; None if it has none."""
        if role == "from":
            return self.original.where
        return self.reply.where if self.reply else None

    def sides(self, course: Course) -> tuple[TcpSide, TcpSide]:
        """What the sender of a segment and the other side have sent."""
        original, reply = self.tcp
        return (reply, original) if course == "reply" else (original, reply)

    def refuses(self, course: Course, segment: TcpSegment | None) -> bool:
        """Whether a segment is a RST that its receiver would neither believe nor ask about."""
        if segment is None or not segment.resets or self.state == State.STATELESS:
            return False
        own, other = self.sides(course)
        return not believed(segment, own, other) and not is_just_above(segment.seq, own)

    def advance(self, course: Course, segment: TcpSegment | None) -> None:
        """Take the state on by a packet. ``segment``: None of a later fragment or another protocol."""
        if self.original.protocol != TCP:
            if self.state == State.NEW and course == "reply":
                self.state = State.ASSURED
            return
        if segment is None or self.state == State.STATELESS:
            return
        own, other = self.sides(course)
        if segment.resets:
            if believed(segment, own, other):
                self.state = State.CLOSED
        elif self.state == State.SYN_SENT and (course == "reply" or segment.opens):
            own.edge, own.ack = segment.end, segment.ack
            self.state = self._after_segment(course, segment.flags)
        elif plausible(segment, own, other):
            if not segment.flags & SYN or self.state in {State.SYN_SENT, State.SYN_RECEIVED}:
                own.advance(segment)
            self.state = self._after_segment(course, segment.flags)

    def _after_segment(self, course: Course, flags: int) -> State:
        if self.state == State.CLOSED:
            return self.state
        if flags & FIN:
            if course == "original":
                self.fin_original = True
            else:
                self.fin_reply = True
            return State.TIME_WAIT if self.fin_original and self.fin_reply else State.CLOSING
        if self.state == State.SYN_SENT and course == "reply":
            if flags & SYN:
                return State.SYN_RECEIVED
            return State.ESTABLISHED if self.adopted else State.SYN_SENT
        if self.state == State.SYN_RECEIVED and course == "original" and not flags & SYN:
            return State.ESTABLISHED
        return self.state

    def reopened_by(self, segment: TcpSegment | None) -> bool:
        """Whether a segment is a SYN that finds this connection finished."""
        return self.state in {State.TIME_WAIT, State.CLOSED} and segment is not None and segment.opens


class FirstFragment(msgspec.Struct, frozen=True, kw_only=True):
    """What later fragments need of the first. ``length``: octets of its payload."""

    sport: int
    dport: int
    length: int
    seen: int


class Connections:
    """All that a host remembers of packets; as a mapping, connections by flow key.

    ``learnt``: (segment, MAC) -> ``("port", attachment)``, ``("vtep", address)`` or, of a physical network,
    ``("wire", "")``, which is forgotten when it was not ``shown`` there for a while.
    """

    def __init__(self) -> None:
        self.flows: dict[Key, Connection] = {}
        self.fragments: dict[tuple[Place, str, str, int, int], FirstFragment] = {}
        self.learnt: dict[tuple[Segment, str], tuple[str, str]] = {}
        self.shown: dict[tuple[Segment, str], int] = {}

    def __getitem__(self, key: Key) -> Connection:
        return self.flows[key]

    def __contains__(self, key: object) -> bool:
        return key in self.flows

    def __iter__(self) -> Iterator[Key]:
        return iter(self.flows)

    def __len__(self) -> int:
        return len(self.flows)

    def live(self, key: Key, now: int) -> Connection | None:
        """The connection that a key belongs to; one that expired is gone."""
        connection = self.flows.get(key)
        if connection is not None and now - connection.seen > connection.timeout:
            self.remove(connection)
            return None
        return connection

    def add(self, connection: Connection) -> None:
        """Take a new connection in; those that hold its keys end."""
        for key in connection.keys:
            if key in self.flows:
                self.remove(self.flows[key])
        for key in connection.keys:
            self.flows[key] = connection

    def remove(self, connection: Connection) -> None:
        for key in connection.keys:
            self.flows.pop(key, None)

    def cut(self, connection: Connection, now: int) -> None:
        """End what is no longer allowed; TCP's is kept for a while, so that its other side does not open it anew."""
        if connection.original.protocol != TCP:
            self.remove(connection)
            return
        connection.is_cut, connection.seen = True, now

    def move(self, connection: Connection, receiver: Place) -> None:
        """The receiver is elsewhere now, and there its replies enter."""
        self.remove(connection)
        connection.receiver = receiver
        if connection.reply is not None:
            connection.reply = connection.reply._replace(where=receiver)
        self.add(connection)

    def learn(self, segment: Segment, mac: str, where: tuple[str, str], now: int) -> None:
        """Keep where a MAC was last seen."""
        self.learnt[segment, mac] = where
        self.shown[segment, mac] = now

    def forget(self, segment: Segment, mac: str) -> None:
        self.learnt.pop((segment, mac), None)

    def age(self, now: int) -> None:
        """Forget what was learnt on wires too long ago."""
        for key, where in list(self.learnt.items()):
            if where[0] == "wire" and now - self.shown.get(key, now) > LEARNT_LIFE:
                del self.learnt[key]

    def first_fragment(self, name: tuple[Place, str, str, int, int], now: int) -> FirstFragment | None:
        """The first fragment of a packet, if it was seen lately."""
        first = self.fragments.get(name)
        return first if first is not None and now - first.seen <= FRAGMENT_LIFE else None
