"""Connections over a change of ABI: from the tables that programs of another build run on into this build's.

The other build's layouts are read from the BTF of its maps, so either may be the older one (headrace.datapath.layout).
Three passes: ``copy`` takes everything over while programs still run on the old tables; ``catch_up``, right before the
first device is switched, takes what changed meanwhile; ``finish``, when no device is left on the old ones, adds what
they have counted and made since. Flow entries come over undecided: the next packet of each is judged anew, and finds
its connection. The caller holds the datapath's lock.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headrace import abi
from headrace.datapath.binding import Refused, ffi, info, lib, pointer, wait_for_walks
from headrace.datapath.bpfmap import BPF_NOEXIST, Map, MapType
from headrace.datapath.btf import Btf, BtfError
from headrace.datapath.layout import Layout, Records, convert, layout_of

log = logging.getLogger(__name__)

NAMES = "hr_names"
"""Which index means what: first, so that no index ever means another port."""
COPIED = (
    *("hr_learnt", "hr_epochs", "hr_budgets"),
    *("hr_fragments", "hr_fragment_slots", "hr_fragment_heads"),
)
"""Tables that come over entry by entry; epochs too, since they never go back."""
BUILT = (
    *("hr_conns", "hr_flows", "hr_conn_free", "hr_conn_counts", "hr_conn_ids", "hr_cursors", "hr_port_counts"),
    "hr_learnt_counts",
)
"""Tables that are made from the old ones' by meaning. With them hr_reasons."""
COUNTED = ("hr_reasons",)
LEFT = {
    "hr_applying": "the writer that was interrupted wrote the other tables",
    "hr_half_open": "of the connections that came over, none is the first to give way",
    "hr_punts": "who asked and was not answered asks again",
    "hr_watches": "who watches drops is of the other version, and sees those of the other programs",
    "hr_watched_until": "as hr_watches",
    "hr_watch_states": "as hr_watches",
    "hr_samples": "as hr_watches",
    "hr_conclusions": "what the last packet's walk concluded, for tests",
}
"""Tables that begin empty, and why."""

SPARE = 1024
"""Indices kept free for connections that the old programs make while devices are switched, at most 1/64 of all."""
AHEAD = 1 << 20
"""How far connection ids begin beyond the old tables', so that two connections never have the same."""
COARSE = 20_000_000
"""How far the clock that connections are stamped by may lag, ns."""


class Carry:
    """One change of ABI. ``old``: where the other build's tables are pinned; ``new``: this build's, as large."""

    def __init__(self, old: Path, new: Mapping[str, Map]) -> None:
        self.source = old
        self._old = {path.name: Map.from_pin(path) for path in sorted(old.iterdir())}
        self._new = new
        self._layouts: dict[str, tuple[tuple[Layout, Layout], tuple[Layout, Layout]]] = {}
        for name, table in self._old.items():
            if name in new and (found := _layouts(table, new[name])):
                self._layouts[name] = found
        self._before: Records = np.zeros((0, 0), np.uint8)
        self._seen = np.zeros(0, np.uint64)
        self._spare = range(0)
        self._counts: dict[str, dict[bytes, list[bytes]]] = {}
        self.switched = 0

    def close(self) -> None:
        """Let go of the old tables."""
        for table in self._old.values():
            table.close()
        self._old.clear()

    @property
    def spare(self) -> range:
        """Indices of hr_conns that only this carry may give to connections."""
        return self._spare

    # The first pass

    def copy(self) -> int:
        """Take names and connections over; programs run on the old tables meanwhile. Returns how many connections."""
        self._copy(NAMES)
        self._before = self._read_connections()
        self._write_connections(np.arange(len(self._before)), self._before)
        return int(np.count_nonzero(self._live(self._before)))

    def _copy(self, name: str, skip: set[bytes] | None = None) -> None:
        if name not in self._layouts:
            return
        keys, values = self._layouts[name]
        table = self._new[name]
        for chunk in self._old[name].chunks():
            made = convert(*keys, records(chunk.keys, keys[0].size))
            given = convert(*values, records(chunk.values, values[0].size))
            if skip:
                kept = np.array([row not in skip for row in rows(made)], bool)
                made, given = made[kept], given[kept]
            table.update_packed(made.tobytes(), given.tobytes())

    # Connections

    def _read_connections(self) -> Records:
        """hr_conns up to the last that was ever used, as the old build has it."""
        used = self._word("hr_cursors", abi.Cursor.FRESH)
        table = self._old["hr_conns"]
        out = np.zeros((min(used, table.max_entries), table.value_size), np.uint8)
        at = 0
        for chunk in table.chunks():
            if at >= len(out):
                break
            part = records(chunk.values, table.value_size)[: len(out) - at]
            out[at : at + len(part)] = part
            at += len(part)
        return out

    def _live(self, old: Records) -> np.ndarray[Any, Any]:
        layout = self._layouts["hr_conns"][1][0]
        ids = layout.column(old, "id")
        live: np.ndarray[Any, Any] = (ids != 0) & (ids & np.uint64(abi.CONN_DEAD) == 0)
        return live

    def _write_connections(self, indices: np.ndarray[Any, Any], old: Records) -> None:
        """Write connections at their indices, with their keys; what is not live becomes a free record."""
        before, after = self._layouts["hr_conns"][1]
        new = convert(before, after, old)
        live = self._live(old)
        new[~live] = 0
        self._put("hr_conns", indices.astype("<u4"), new)
        self._put_flows(indices[live], new[live])

    def _put(self, name: str, indices: np.ndarray[Any, Any], values: Records) -> None:
        self._new[name].update_packed(indices.astype("<u4").tobytes(), values.tobytes())

    def _keys(self, new: Records) -> Iterator[tuple[int, Records, np.ndarray[Any, Any]]]:
        """For each direction the keys, and which connections have one."""
        layout = self._layouts["hr_conns"][1][1]
        size = self._new["hr_flows"].key_size
        for reply in (0, 1):
            start = layout.part(f"key[{reply}]").start
            where = layout.column(new, f"key[{reply}].where")
            yield reply, new[:, start : start + size], where != abi.WHERE_NONE

    def _put_flows(self, indices: np.ndarray[Any, Any], new: Records, flags: int = 0) -> None:
        """Undecided entries: the next packet finds its connection, and is decided by what holds now."""
        layout = self._layouts["hr_flows"][1][1]
        ids = self._layouts["hr_conns"][1][1].column(new, "id")
        for reply, keys, there in self._keys(new):
            entries = np.zeros((int(there.sum()), layout.size), np.uint8)
            layout.put(entries, "flags", abi.FlowFlag.REPLY if reply else 0)
            layout.put(entries, "conn_id", ids[there])
            layout.put(entries, "conn", indices[there])
            if flags:
                self._new["hr_flows"].update_many(zip(rows(keys[there]), rows(entries), strict=True), flags)
            else:
                self._new["hr_flows"].update_packed(keys[there].tobytes(), entries.tobytes())

    # The second pass

    def catch_up(self, owned: set[bytes]) -> None:
        """Take what changed since; the next thing to happen is that devices are switched. ``owned``: MACs of ports."""
        self.switched = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        now = self._read_connections()
        same = min(len(self._before), len(now))
        changed = np.ones(len(now), bool)
        changed[:same] = differ(now[:same], self._before[:same])
        indices = np.flatnonzero(changed)
        gone = indices[indices < same]
        self._forget_flows(self._before[gone], now[gone])
        self._write_connections(indices, now[indices])
        self._before = now
        live = self._live(now)
        before = self._layouts["hr_conns"][1][0]
        self._seen = before.column(now, "id")[live]
        for name in COPIED:
            self._copy(name, owned if name == "hr_learnt" else None)
        self._settle(live, before.column(now, "port")[live])
        self._settle_learnt()
        self._carry_counts()

    def _forget_flows(self, before: Records, now: Records) -> None:
        """Keys of connections that ended or moved between the passes."""
        layouts = self._layouts["hr_conns"][1]
        old, new = convert(*layouts, before), convert(*layouts, now)
        live, still = self._live(before), self._live(now)
        same_id = layouts[0].column(before, "id") == layouts[0].column(now, "id")
        for (_, keys, there), (_, after, _) in zip(self._keys(old), self._keys(new), strict=True):
            moved = live & there & ~(still & same_id & (keys == after).all(axis=1))
            self._new["hr_flows"].delete_many(rows(keys[moved]))

    def _settle(self, live: np.ndarray[Any, Any], ports: np.ndarray[Any, Any]) -> None:
        """Counts, free indices and the next ids, as they follow from the connections."""
        used, size = len(live), self._new["hr_conns"].max_entries
        spare = min(SPARE, size // 64, size - used)
        self._spare = range(used, used + spare)
        for index in np.flatnonzero(~live):
            self._new["hr_conn_free"].push(int(index).to_bytes(4, "little"))
        cursor = abi.U32(value=abi.Cursor.FRESH).pack()
        self._new["hr_cursors"].update(cursor, abi.U64(value=used + spare).pack())
        number = abi.U32(value=abi.Cursor.USED).pack()
        self._new["hr_cursors"].update(number, abi.U64(value=int(np.count_nonzero(live))).pack())
        self._settle_counts(np.bincount(ports, minlength=abi.PORTS)[: abi.PORTS])
        last = max((int.from_bytes(value, "little") for value in self._cpus("hr_conn_ids", bytes(4))), default=0)
        self._new["hr_conn_ids"].update(bytes(4), abi.U64(value=last + AHEAD).pack())

    def _settle_counts(self, live: np.ndarray[Any, Any]) -> None:
        """What each port has of the table; what gave way is counted on where the other build counted it."""
        fields: Any = abi.ConnCount.DTYPE
        counts: np.ndarray[Any, Any] = np.zeros(len(live), fields)
        counts["live"] = live
        before = self._layouts["hr_conn_counts"][1][0] if "hr_conn_counts" in self._layouts else None
        if before and "evicted" in before.leaves:
            old = b"".join(chunk.values for chunk in self._old["hr_conn_counts"].chunks())
            counts["evicted"] = before.column(records(old, before.size), "evicted")[: len(counts)]
        self._put("hr_conn_counts", np.arange(len(counts)), records(counts.tobytes(), abi.ConnCount.SIZE))

    def _settle_learnt(self) -> None:
        """How much was learnt at each place, as it follows from what came over."""
        counts: Counter[int] = Counter()
        for key, value in self._new["hr_learnt"].items():
            place = abi.Learnt.unpack(value)
            counts[abi.FdbKey.unpack(key).segment if place.vtep else place.endpoint] += 1
        packed = [(abi.U32(value=where).pack(), abi.U32(value=count).pack()) for where, count in counts.items()]
        self._new["hr_learnt_counts"].update_many(packed)

    def _carry_counts(self) -> None:
        for name in ("hr_port_counts", *COUNTED):
            if name not in self._layouts:
                continue
            layouts, kept = self._layouts[name][1], {}
            table, stride = self._new[name], -(-self._new[name].value_size // 8) * 8
            for key, value in not_zero(self._old[name]):
                kept[key] = self._old[name].cpus(value)
                parts = (rows(convert(*layouts, records(part, layouts[0].size)))[0] for part in kept[key])
                table.update(key, b"".join(part.ljust(stride, b"\0") for part in parts))
            self._counts[name] = kept

    def resume(self, switched: int, spare: range) -> None:
        """Be where another process was when it ended between `catch_up` and `finish`: what was counted is lost."""
        self.switched, self._spare = switched, spare
        self._before = self._read_connections()
        before, after = self._layouts["hr_conns"][1]
        self._seen = before.column(self._before, "id")[self._live(self._before)]
        known = [after.column(records(chunk.values, after.size), "id") for chunk in self._new["hr_conns"].chunks()]
        self._seen = np.intersect1d(self._seen, np.concatenate(known))

    # The third pass

    def finish(self, add: Callable[[abi.Carry], None]) -> int:
        """Add what the old tables have counted and made since; nothing runs on them any more. Returns changes found.

        ``add`` runs the program hr_carry: only the kernel can add to what programs count on.
        """
        wait_for_walks()
        now = self._read_connections()
        live = self._live(now)
        before, _ = self._layouts["hr_conns"][1]
        same = min(len(self._before), len(now))
        found = 0
        for index in np.flatnonzero(differ(now[:same], self._before[:same]) & live[:same]):
            if before.column(now[index : index + 1], "id") == before.column(self._before[index : index + 1], "id"):
                add(self._more(int(index), self._before[index], now[index]))
                found += 1
        young = now[live & (before.column(now, "created") >= np.uint64(self.switched - COARSE))]
        found += self._insert(young[~np.isin(before.column(young, "id"), self._seen)], add)
        for carry in self._counted():
            add(carry)
        return found

    def _more(self, index: int, old: Records, new: Records) -> abi.Carry:
        """What one connection has seen since it was copied."""
        layouts = self._layouts["hr_conns"][1]
        was, now = (abi.Conn.unpack(convert(*layouts, row[None, :]).tobytes()) for row in (old, new))
        counters = tuple(
            abi.ConnCounter(
                packets=after.packets - before.packets, octets=after.octets - before.octets, seen=after.seen
            )
            for before, after in zip(was.counter, now.counter, strict=True)
        )
        return abi.Carry(
            id=now.id,
            conn=index,
            timeout=now.timeout,
            before=was.state,
            state=now.state,
            flags=now.flags,
            counter=counters,
            tcp=now.tcp,
        )

    def _insert(self, old: Records, add: Callable[[abi.Carry], None]) -> int:
        """Connections that the old programs made while devices were switched, unless their keys are somebody's now."""
        layouts = self._layouts["hr_conns"][1]
        new = convert(*layouts, old)
        used = 0
        for number, row in enumerate(new):
            if not self._spare:
                log.warning(
                    "carried not=%d: made while devices were switched, and no spare index left; judged as new by their"
                    " next packet",
                    len(new) - number,
                )
                break
            one = row[None, :]
            place = np.array(self._spare[:1])
            self._put("hr_conns", place, one)
            try:
                self._put_flows(place, one, BPF_NOEXIST)
            except Refused:  # there is a connection of these keys here: it is the one that goes on
                identity = layouts[1].column(one, "id")[0]
                for _, keys, there in self._keys(one):
                    if there[0] and self._owner(keys[0].tobytes()) == identity:
                        self._new["hr_flows"].delete(keys[0].tobytes())
                self._put("hr_conns", place, np.zeros_like(one))
            else:
                add(abi.Carry(port=int(layouts[1].column(one, "port")[0]), connections=1))
                self._spare = self._spare[1:]
                used += 1
        return used

    def _owner(self, key: bytes) -> int:
        value = self._new["hr_flows"].lookup(key)
        return int(self._layouts["hr_flows"][1][1].column(records(value, len(value)), "conn_id")[0]) if value else 0

    def give_back(self) -> None:
        """Let everybody use the spare indices."""
        for index in self._spare:
            self._new["hr_conn_free"].push(index.to_bytes(4, "little"))
        self._spare = range(0)

    def _counted(self) -> Iterator[abi.Carry]:
        for name, kept in self._counts.items():
            layouts = self._layouts[name][1]
            words = layouts[1].size // 8
            for key, value in not_zero(self._old[name]):
                parts = self._old[name].cpus(value)
                if parts == kept.get(key, []):
                    continue
                blank = [bytes(layouts[0].size)] * len(parts)
                now, was = (
                    convert(*layouts, records(b"".join(given), layouts[0].size)).view("<u8").reshape(-1, words)
                    for given in (parts, kept.get(key, blank))
                )
                difference = (now.sum(axis=0) - was.sum(axis=0)).astype("<u8").tobytes()
                number = int.from_bytes(key, "little")
                if name == "hr_port_counts":
                    yield abi.Carry(port=number, counters=abi.PortCounters.unpack(difference))
                else:
                    port, reason = divmod(number, abi.REASONS)
                    yield abi.Carry(port=port, reason=reason, packets=int.from_bytes(difference, "little"))

    # What is small

    def _word(self, name: str, index: int) -> int:
        return int.from_bytes(self._old[name].lookup(abi.U32(value=index).pack()) or b"", "little")

    def _cpus(self, name: str, key: bytes) -> list[bytes]:
        return self._old[name].lookup_cpus(key) or []


def fits(old: Path) -> str:
    """Why the tables pinned at ``old`` cannot be carried over; empty when they can."""
    needed = {"hr_conns", "hr_flows", "hr_cursors", "hr_conn_ids", NAMES}
    if missing := needed - {path.name for path in old.iterdir()}:
        return f"it lacks {', '.join(sorted(missing))}"
    with Map.from_pin(old / "hr_conns") as table:
        found = _described(table)
        if found is None:
            return "its tables have no BTF"
        wanted = {"id", "state", "flags", "timeout", "port", "created", "key[0].where", "key[1].where"}
        if missing := wanted - found[1].leaves.keys():
            return f"its connections lack {', '.join(sorted(missing))}"
    return ""


def _layouts(old: Map, new: Map) -> tuple[tuple[Layout, Layout], tuple[Layout, Layout]] | None:
    """(old, new) of the key and of the value; None where one has no BTF, or they are no maps of the same kind."""
    before, after = _described(old), _described(new)
    if before is None or after is None or old.type != new.type:
        return None
    return (before[0], after[0]), (before[1], after[1])


def _described(table: Map) -> tuple[Layout, Layout] | None:
    facts = info(table.fd, "map")
    if not facts.btf_id or not facts.btf_value_type_id or table.type == MapType.QUEUE:
        return None
    handle = pointer(lib.btf__load_from_kernel_by_id(facts.btf_id), f"BTF of map {table.name}")
    try:
        size = ffi.new("__u32 *")
        btf = Btf(bytes(ffi.buffer(lib.btf__raw_data(handle, size), size[0])), f"map {table.name}")
        return layout_of(btf, facts.btf_key_type_id), layout_of(btf, facts.btf_value_type_id)
    except BtfError as error:
        log.warning("%s", error)
        return None
    finally:
        lib.btf__free(handle)


def differ(some: Records, others: Records) -> np.ndarray[Any, Any]:
    """Which rows are not the same."""
    words = "<u8" if some.shape[1] % 8 == 0 else "u1"
    unlike: np.ndarray[Any, Any] = (some.view(words) != others.view(words)).any(axis=1)
    return unlike


def not_zero(table: Map) -> Iterator[tuple[bytes, bytes]]:
    """Entries whose value is not all zero; of arrays, most are."""
    for entries, keys, values in table.chunks():
        size = len(values) // entries
        for row in np.flatnonzero(records(values, size).any(axis=1)):
            at = int(row)
            yield keys[at * table.key_size : (at + 1) * table.key_size], values[at * size : (at + 1) * size]


def records(octets: bytes, size: int) -> Records:
    """Packed records, a row each."""
    return np.frombuffer(octets, np.uint8).reshape(-1, size)


def rows(matrix: Records) -> list[bytes]:
    """Each row as octets."""
    size = matrix.shape[1]
    octets = matrix.tobytes()
    return [octets[at : at + size] for at in range(0, len(octets), size)]
