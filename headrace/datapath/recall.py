"""What a host's datapath remembers of packets, in the oracle's words: looked up in its tables when the oracle asks."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping

from headrace import abi
from headrace.datapath.bpfmap import Map
from headrace.datapath.connection import CUT_TIMEOUT, Connection, Connections, FirstFragment
from headrace.datapath.decision import IpAddress, Key, Place
from headrace.datapath.oracle_tcp import TcpSide
from headrace.datapath.packet import TCP
from headrace.datapath.reader import Reader
from headrace.model import Segment
from headrace.stages.view import address_octets, segment_number, segment_place

NS_PER_MS = 1_000_000
Fragmented = tuple[Place, str, str, int, int]


class Recalled(Connections):
    """A host's connections, first fragments and learnt MACs, fetched one by one; what the oracle adds stays here.

    ``ports``: index -> attachment of the local ports; ``physicals``: number -> physical network. Times are milliseconds
    of CLOCK_MONOTONIC.
    """

    def __init__(self, reader: Reader, ports: Mapping[int, str], physicals: Mapping[int, str]) -> None:
        super().__init__()
        self._reader = reader
        self._ports = ports
        self._physicals = physicals
        self._indices = {port: index for index, port in ports.items()}
        self._numbers = {name: number for number, name in physicals.items()}
        self._asked: set[Key] = set()
        self.learnt = Learnt(reader.maps["hr_learnt"], ports, vteps(reader), self._segment)

    def live(self, key: Key, now: int) -> Connection | None:
        if key not in self._asked:
            self._asked.add(key)
            connection = self._fetch(key)
            if connection is not None and not any(one in self.flows for one in connection.keys):
                self._asked.update(connection.keys)
                self.add(connection)
        return super().live(key, now)

    def first_fragment(self, name: Fragmented, now: int) -> FirstFragment | None:
        if name not in self.fragments and (found := self._first_fragment(name)) is not None:
            self.fragments[name] = found
        return super().first_fragment(name, now)

    def _fetch(self, key: Key) -> Connection | None:
        where = self._where(key.where)
        if where is None:
            return None
        entry = self._reader.flow(
            abi.FlowKey(
                saddr=address_octets(key.source),
                daddr=address_octets(key.destination),
                sport=key.sport,
                dport=key.dport,
                where=where,
                proto=key.protocol,
            )
        )
        conn = self._reader.connection(entry.conn) if entry else None
        if entry is None or conn is None or conn.id != entry.conn_id:
            return None
        return self._connection(conn)

    def _connection(self, conn: abi.Conn) -> Connection:
        original, reply = self._key(conn.key[0]), None
        if conn.key[1].where != abi.WHERE_NONE:
            reply = self._key(conn.key[1])
        return Connection(
            state=abi.State(conn.state),
            original=original,
            receiver=reply.where if reply else original.where,
            reply=reply,
            tracks_from=bool(conn.flags & abi.ConnFlag.STATEFUL_FROM),
            tracks_to=bool(conn.flags & abi.ConnFlag.STATEFUL_TO),
            adopted=bool(conn.flags & abi.ConnFlag.ADOPTED),
            fin_original=bool(conn.flags & abi.ConnFlag.FIN_ORIGINAL),
            fin_reply=bool(conn.flags & abi.ConnFlag.FIN_REPLY),
            is_cut=conn.timeout == CUT_TIMEOUT and conn.key[0].proto == TCP,
            seen=max(counter.seen for counter in conn.counter) // NS_PER_MS,
            packets=[counter.packets for counter in conn.counter],
            octets=[counter.octets for counter in conn.counter],
            tcp=(tcp_side(conn.tcp[0]), tcp_side(conn.tcp[1])),
        )

    def _key(self, key: abi.FlowKey) -> Key:
        source, destination = address(key.saddr), address(key.daddr)
        return Key(source, destination, key.proto, key.sport, key.dport, self._place(key.where))

    def _place(self, where: int) -> Place:
        if where >> abi.WHERE_SHIFT == abi.Where.PORT:
            return Place("port", self._ports.get(where, f"index {where}"))
        wire, physical, service, number = segment_place(where, self._physicals)
        return Place("segment", Segment.on(wire, number, physical, service))

    def _where(self, place: Place) -> int | None:
        return self._segment(place.id) if isinstance(place.id, Segment) else self._indices.get(place.id)

    def _segment(self, segment: Segment) -> int | None:
        if segment.is_physical and segment.physical_network not in self._numbers:
            return None
        return segment_number(segment, self._numbers.get(segment.physical_network or "", 0))

    def _first_fragment(self, name: Fragmented) -> FirstFragment | None:
        place, source, destination, protocol, identity = name
        where = self._where(place)
        if where is None:
            return None
        key = abi.FragmentKey(
            saddr=address_octets(ipaddress.ip_address(source)),
            daddr=address_octets(ipaddress.ip_address(destination)),
            where=where,
            id=identity,
            proto=protocol,
        )
        value = self._reader.maps["hr_fragments"].lookup(key.pack())
        if value is None:
            return None
        found = abi.Fragment.unpack(value)
        return FirstFragment(
            sport=found.sport, dport=found.dport, length=found.first_length, seen=found.seen // NS_PER_MS
        )


class Learnt(dict[tuple[Segment, str], tuple[str, str]]):
    """(segment, MAC) -> where it was learnt, fetched when asked for. ``number``: how the tables name a segment."""

    def __init__(
        self,
        table: Map,
        ports: Mapping[int, str],
        vteps: Mapping[int, str],
        number: Callable[[Segment], int | None],
    ) -> None:
        super().__init__()
        self._table = table
        self._ports = ports
        self._vteps = vteps
        self._number = number

    def get(self, key: tuple[Segment, str], default: object = None) -> object:  # type: ignore[override]
        if key not in self and (found := self._fetch(*key)) is not None:
            self[key] = found
        return super().get(key, default)

    def _fetch(self, segment: Segment, mac: str) -> tuple[str, str] | None:
        number = self._number(segment)
        if number is None:
            return None
        value = self._table.lookup(abi.FdbKey(segment=number, mac=bytes.fromhex(mac.replace(":", ""))).pack())
        if value is None:
            return None
        found = abi.Learnt.unpack(value)
        if found.vtep and segment.is_physical:
            return "wire", ""
        known, kind, place = (self._vteps, "vtep", found.vtep) if found.vtep else (self._ports, "port", found.endpoint)
        return (kind, known[place]) if place in known else None


def tcp_side(side: abi.TcpSide) -> TcpSide:
    """What one side of a TCP connection has sent."""
    return TcpSide(
        edge=side.edge if side.known & abi.TcpKnown.EDGE else None,
        ack=side.ack if side.known & abi.TcpKnown.ACKED else None,
    )


def vteps(reader: Reader) -> dict[int, str]:
    """Index -> address of the other hosts' tunnel endpoints."""
    pairs = ((abi.VtepKey.unpack(key), abi.Vtep.unpack(value)) for key, value in reader.maps["hr_vteps"].items())
    return {vtep.vtep: str(address(key.addr)) for key, vtep in pairs if key.addr[0] != abi.VTEP_MAC}


def address(octets: bytes) -> IpAddress:
    """An address as the tables hold it."""
    found = ipaddress.IPv6Address(octets)
    return found.ipv4_mapped or found
