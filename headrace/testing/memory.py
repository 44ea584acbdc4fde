"""What a datapath remembers of packets - flows, connections, fragments - read and aged for tests."""

from __future__ import annotations

import errno
from collections import Counter
from typing import Any

from msgspec.structs import replace

from headrace import abi
from headrace.abi import ConnFlag, State
from headrace.datapath.binding import check, ffi, lib
from headrace.datapath.bpf import Datapath
from headrace.datapath.bpfmap import Map
from headrace.datapath.decision import Key, Place
from headrace.model import Segment
from headrace.stages.compile import ORDER
from headrace.stages.view import address_octets, segment_number, segment_place
from headrace.testing.observation import key_of

WITH_PACKETS = ("hr_flows", "hr_learnt", "hr_learnt_counts", "hr_fragments", "hr_fragment_slots")
NS_PER_MS = 1_000_000
TICK = 20 * NS_PER_MS
"""More than the coarse clock's resolution."""


class Memory:
    """The tables that packets write. ``names``: index -> attachment of ports, also of those that are gone.

    ``physicals``: the same of physical networks.
    """

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath
        self.names: dict[int, str] = {}
        self.physicals: dict[int, str] = {}
        self._aged: dict[int, tuple[list[int], int]] = {}

    def clear(self) -> None:
        """Forget everything; what is applied goes too."""
        tables = self._datapath.maps
        self._datapath.apply({name: {} for name in ORDER})
        for name in WITH_PACKETS:
            tables[name].delete_many(list(tables[name].keys()))
        for cursor in abi.Cursor:
            tables["hr_cursors"].update(abi.U32(value=cursor).pack(), bytes(8))
        for name in ("hr_conns", "hr_conn_counts", "hr_budgets"):
            rows = [(key, bytes(len(value))) for key, value in tables[name].items() if any(value)]
            tables[name].update_many(rows)
        rings = [(abi.U32(value=index).pack(), abi.HalfOpen().pack()) for index in self.names]
        tables["hr_half_open"].update_many(rings)
        while tables["hr_conn_free"].pop() is not None:
            pass
        self._aged.clear()

    def forgive(self) -> None:
        """Fill every purse: the oracle knows no budget."""
        table = self._datapath.maps["hr_budgets"]
        table.update_many(
            [(abi.U32(value=port + more).pack(), bytes(8)) for port in self.names for more in (0, abi.PORTS)]
        )

    def live(self) -> dict[int, abi.Conn]:
        """Every connection, expired ones that nobody has swept yet included, by index."""
        values = span(self._datapath.maps["hr_conns"], 0, self.cursor(abi.Cursor.FRESH))
        found = {index: abi.Conn.unpack(value) for index, value in enumerate(values) if any(value[:8])}
        return {index: conn for index, conn in found.items() if not conn.id & abi.CONN_DEAD}

    def cursor(self, which: abi.Cursor) -> int:
        """A number that the datapath keeps about the whole table of connections."""
        value = self._datapath.maps["hr_cursors"].lookup(abi.U32(value=which).pack())
        return int.from_bytes(value or b"", "little")

    def free(self) -> list[int]:
        """The indices that were used and are free, in their order. No traffic may run meanwhile."""
        table, found = self._datapath.maps["hr_conn_free"], []
        while (value := table.pop()) is not None:
            found.append(int.from_bytes(value, "little"))
        for index in found:
            table.push(abi.U32(value=index).pack())
        return found

    def connections(self) -> dict[int, abi.Conn]:
        """Those that have not expired."""
        return {index: conn for index, conn in self.live().items() if conn.timeout}

    def facts(self) -> dict[Key, dict[str, Any]]:
        """Those connections in the oracle's words, by original key."""
        kept = {}
        for conn in self.connections().values():
            flags = {flag: bool(conn.flags & flag) for flag in ConnFlag}
            has_reply = conn.key[1].where != abi.WHERE_NONE
            kept[self.key(conn.key[0])] = {
                "state": State(conn.state),
                "timeout": conn.timeout,
                "reply": self.key(conn.key[1]) if has_reply else None,
                "tracks": (flags[ConnFlag.STATEFUL_FROM], flags[ConnFlag.STATEFUL_TO] and has_reply),
                "fins": (flags[ConnFlag.FIN_ORIGINAL], flags[ConnFlag.FIN_REPLY]),
                "adopted": flags[ConnFlag.ADOPTED],
                "packets": [counter.packets for counter in conn.counter],
                "octets": [counter.octets for counter in conn.counter],
                "tcp": [tcp_numbers(side) for side in conn.tcp],
            }
        return kept

    def find(self, key: abi.FlowKey) -> tuple[abi.Conn, bool] | None:
        """The live connection that a key belongs to, and whether in the reply direction."""
        value = self._datapath.maps["hr_flows"].lookup(key.pack())
        if value is None:
            return None
        flow = abi.Flow.unpack(value)
        conn = self._datapath.connection(flow.conn)
        if conn is None or conn.id != flow.conn_id:
            return None
        return conn, bool(flow.flags & abi.FlowFlag.REPLY)

    def flow(self, key: Key) -> abi.Flow | None:
        """The flow entry of a key."""
        place = key.where.id
        packed = abi.FlowKey(
            saddr=address_octets(key.source),
            daddr=address_octets(key.destination),
            sport=key.sport,
            dport=key.dport,
            where=self.number(place) if isinstance(place, Segment) else self.index(place),
            proto=key.protocol,
        ).pack()
        value = self._datapath.maps["hr_flows"].lookup(packed)
        return None if value is None else abi.Flow.unpack(value)

    def key(self, key: abi.FlowKey) -> Key:
        """A flow key in the oracle's words."""
        found = key_of(key, self.place(key.where))
        assert found is not None, f"{key} is a key of nothing"
        return found

    def place(self, where: int) -> Place:
        """Where a flow key enters, in the model's words."""
        if where >> abi.WHERE_SHIFT == abi.Where.PORT:
            return Place("port", self.names.get(where, f"index {where}"))
        wire, physical, service, number = segment_place(where, self.physicals)
        try:
            return Place("segment", Segment.on(wire, number, physical, service))
        except ValueError:  # what no network can have still comes by a wire
            return Place("port", f"no segment: {where:#x}")

    def index(self, attachment: str) -> int:
        """The index of a local port."""
        return next(index for index, name in self.names.items() if name == attachment)

    def number(self, segment: Segment) -> int:
        """How the datapath names a segment."""
        names = {name: number for number, name in self.physicals.items()}
        return segment_number(segment, names.get(segment.physical_network or "", 0))

    def age(self, ms: int) -> None:
        """Let time pass for connections and fragments.

        The kernel's clock stands still for them: what would have expired is made to, at whatever uptime.
        """
        table = self._datapath.maps["hr_conns"]
        for index, conn in self.connections().items():
            at, silent = self._aged.get(conn.id, ([], 0))
            silent = ms if at != [counter.seen for counter in conn.counter] else silent + ms
            # Moved back a little each time, so that what is touched again is told from what is not.
            counters = tuple(replace(one, seen=max(one.seen - TICK, 0)) for one in conn.counter)
            older = replace(conn, counter=counters)
            if silent > conn.timeout:
                older = replace(conn, timeout=0, counter=tuple(replace(one, seen=1) for one in conn.counter))
            self._aged[conn.id] = ([counter.seen for counter in older.counter], silent)
            table.update(abi.U32(value=index).pack(), older.pack())
        fragments = self._datapath.maps["hr_fragments"]
        for name, value in list(fragments.items()):
            first = abi.Fragment.unpack(value)
            fragments.update(name, replace(first, seen=(first.seen - ms * NS_PER_MS) % (1 << 64)).pack())

    def inconsistencies(self) -> list[str]:
        """What is wrong between the tables of flows, connections and quotas themselves.

        They are read one after the other: what a sweep in between made look wrong is right when they are read again.
        """
        return self._inconsistencies() and self._inconsistencies()

    def _inconsistencies(self) -> list[str]:
        found = []
        live = self.live()
        flows = list(self._datapath.flows())
        for key, flow in flows:
            conn = live.get(flow.conn)
            if conn is None or conn.id != flow.conn_id:
                found.append(f"flow entry {key} belongs to no connection")
            elif key != conn.key[bool(flow.flags & abi.FlowFlag.REPLY)]:
                found.append(f"flow entry {key} is no key of its connection {conn.key}")
            if flow.first != flow.last:
                found.append(f"flow entry {key} is torn")
        if len(flows) != sum(1 + (conn.key[1].where != abi.WHERE_NONE) for conn in live.values()):
            found.append("a connection lacks a flow entry")
        expected = Counter(conn.port for conn in live.values())
        counts = b"".join(values for _, _, values in self._datapath.maps["hr_conn_counts"].chunks())
        words = memoryview(counts).cast("Q")[:: abi.ConnCount.SIZE // 8]
        kept = {port: count for port, count in enumerate(words.tolist()) if count}
        if kept != expected:
            found.append(f"ports count {kept} connections and have {dict(expected)}")
        if (used := self.cursor(abi.Cursor.USED)) != len(live):
            found.append(f"{used} connections are counted and {len(live)} are there")
        return found + self._learnt_inconsistencies()

    def _learnt_inconsistencies(self) -> list[str]:
        learnt = Counter(
            abi.FdbKey.unpack(key).segment if place.vtep else place.endpoint
            for key, place in ((key, abi.Learnt.unpack(v)) for key, v in self._datapath.maps["hr_learnt"].items())
        )
        rows = self._datapath.maps["hr_learnt_counts"].items()
        kept = {abi.U32.unpack(key).value: count for key, value in rows if (count := abi.U32.unpack(value).value)}
        return [] if kept == learnt else [f"places count {kept} MACs learnt and have {dict(learnt)}"]


def tcp_numbers(side: abi.TcpSide) -> tuple[int | None, int | None]:
    """A side's edge and ack, None where they are not known."""
    known = (abi.TcpKnown.EDGE, side.edge), (abi.TcpKnown.ACKED, side.ack)
    edge, ack = (number if side.known & flag else None for flag, number in known)
    return edge, ack


def span(table: Map, first: int, count: int) -> list[bytes]:
    """The values of an array from ``first`` on, at most so many, by one call; per-CPU ones as Map has them."""
    if not count:
        return []
    before = ffi.from_buffer(abi.U32(value=first - 1).pack()) if first else ffi.NULL
    room = len(table.lookup(abi.U32(value=first).pack()) or b"")
    keys, values, read = ffi.new("__u32[]", count), ffi.new("char[]", count * room), ffi.new("__u32 *", count)
    result = lib.bpf_map_lookup_batch(table.fd, before, ffi.new("char[4]"), keys, values, read, ffi.NULL)
    if result != -errno.ENOENT:
        check(result, f"read map {table.name}")
    octets = bytes(ffi.buffer(values, int(read[0]) * room))
    return [octets[at : at + room] for at in range(0, len(octets), room)]
