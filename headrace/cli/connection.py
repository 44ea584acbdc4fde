"""A connection in words: who, how much, allowed by which rule, and whether its packets replay a decision or walk."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from typing import Any

from headrace import abi
from headrace.agent.names import Names
from headrace.cli.local import port_label
from headrace.datapath.notation import ECHO, PORTED, with_port
from headrace.datapath.reader import Reader

ICMP = {4: 1, 6: 58}
SPECIAL = {
    abi.RULE_NONE: "nothing",
    abi.RULE_ESTABLISHED: "the connection being allowed",
    abi.RULE_IMPLICIT: "an implicit rule",
    abi.RULE_OPEN: "port security being off",
    abi.RULE_REMOTE: "the other side's host",
}
FLAGS = {
    abi.ConnFlag.STATEFUL_FROM: "sender tracked",
    abi.ConnFlag.STATEFUL_TO: "receiver tracked",
    abi.ConnFlag.ADOPTED: "adopted in mid-stream",
}


def matching(reader: Reader, port: int | None) -> Iterator[abi.Conn]:
    """The connections of a port, or all."""
    for _, conn in reader.connections():
        if port is None or port in {conn.port, conn.key[0].where, conn.key[1].where}:
            yield conn


def address(octets: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the tables hold it."""
    found = ipaddress.IPv6Address(octets)
    return found.ipv4_mapped or found


def key_text(key: abi.FlowKey) -> str:
    """A flow key in the notation of `headrace trace`."""
    source, destination = address(key.saddr), address(key.daddr)
    for name, number in PORTED.items():
        if key.proto == number:
            return f"{name} {with_port(source, key.sport)} > {with_port(destination, key.dport)}"
    if key.proto != ICMP[source.version]:
        return f"ip {source} > {destination} proto {key.proto}"
    kind, code = key.dport >> 8, key.dport & 0xFF
    if kind in ECHO[source.version] and not code:
        name = "echo" if kind == ECHO[source.version][0] else "reply"
        return f"icmp {source} > {destination} {name} id {key.sport}"
    return f"icmp {source} > {destination} {kind}/{code}"


def numbers(side: abi.TcpSide) -> dict[str, int | None]:
    """Up to where a side of a TCP connection has sent (``edge``), and what it acknowledged (``ack``)."""
    known = {"edge": (abi.TcpKnown.EDGE, side.edge), "ack": (abi.TcpKnown.ACKED, side.ack)}
    return {name: number if side.known & flag else None for name, (flag, number) in known.items()}


class Explainer:
    """Says what entries mean, by the names that the agent left."""

    def __init__(self, reader: Reader, names: Names) -> None:
        self._reader = reader
        self._names = names
        self._now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._hooks = {port.device: reader.hook(port.device) for port in names.ports.values()}
        self._uplink_hook = "xdp" if any(reader.hook(device) == "xdp" for device in reader.uplinks()) else "tc"

    def connection(self, conn: abi.Conn) -> dict[str, Any]:
        """A connection with its directions; no reply where nothing answers it."""
        seen = max(counter.seen for counter in conn.counter)
        idle = self._since(seen)
        answered = conn.key[1].where != abi.WHERE_NONE
        return {
            "id": f"{conn.id:x}",
            "state": abi.State(conn.state).name.lower(),
            "age": self._since(conn.created),
            "idle": idle,
            "expires_in": max(0.0, round(conn.timeout / 1000 - idle, 3)),
            "port": port_label(self._names, conn.port),
            "notes": [text for flag, text in FLAGS.items() if conn.flags & flag],
            "original": self._direction(conn, 0),
            "reply": self._direction(conn, 1) if answered else None,
        }

    def _direction(self, conn: abi.Conn, which: int) -> dict[str, Any]:
        key, counter = conn.key[which], conn.counter[which]
        entry = self._reader.flow(key)
        why = self._why_walked(conn, entry, which)
        told = entry is not None and entry.conn_id == conn.id and bool(entry.flags & abi.FlowFlag.DECIDED)
        sides = {"from": conn.rule[which].from_side, "to": conn.rule[which].to_side}
        return {
            "key": key_text(key),
            "enters": self._enters(key.where),
            "packets": counter.packets,
            "octets": counter.octets,
            "tcp": numbers(conn.tcp[which]) if key.proto == PORTED["tcp"] else None,
            "idle": self._since(counter.seen) if counter.seen else None,
            "decided": why is None,
            "why": why,
            "hook": self._hook(key, entry) if told and entry else "tc",
            "goes_to": self._goes_to(entry) if told and entry else None,
            "allowed_by": {side: self._rule(number) for side, number in sides.items() if counter.packets},
        }

    def _why_walked(self, conn: abi.Conn, entry: abi.Flow | None, which: int) -> str | None:
        """Why the next packet of a direction walks; nothing when it replays."""
        if entry is None or entry.conn_id != conn.id:
            return "no entry for its key"
        if not entry.flags & abi.FlowFlag.DECIDED:
            return "waiting for the first reply" if which else "only fragments so far"
        stale = (
            index
            for index, epoch in ((entry.from_index, entry.from_epoch), (entry.to_index, entry.to_epoch))
            if self._reader.epoch(index) != epoch
        )
        if (index := next(stale, None)) is not None:
            return f"what was decided about {self._endpoint(index)} has changed"
        if self._since(max(counter.seen for counter in conn.counter)) > conn.timeout / 1000:
            return "expired"
        if entry.flags & abi.FlowFlag.TUNNEL:
            adjacency = self._reader.adjacency(entry.out)
            if adjacency.state != abi.AdjacencyState.RESOLVED:
                return f"the next hop to {address(adjacency.daddr)} is not resolved"
        return None

    def _enters(self, where: int) -> str:
        if where >> abi.WHERE_SHIFT == abi.Where.PORT:
            return f"port {port_label(self._names, where)}"
        segment, network = self._names.segment(where), self._names.segments.get(str(where))
        return f"{segment} (network {network})" if network else segment

    def _goes_to(self, entry: abi.Flow) -> str:
        if not entry.flags & abi.FlowFlag.TUNNEL:
            return f"port {port_label(self._names, entry.out)}"
        path, segment = self._reader.adjacency(entry.out), self._names.segment(entry.segment)
        return f"wire {segment}" if path.flags & abi.AdjacencyFlag.WIRE else f"vtep {address(path.daddr)} {segment}"

    def _endpoint(self, index: int) -> str:
        if index < abi.PORTS:
            return f"port {port_label(self._names, index)}"
        return f"port {self._names.endpoints[str(index)]}" if str(index) in self._names.endpoints else "a remote place"

    def _hook(self, key: abi.FlowKey, entry: abi.Flow) -> str:
        """Where a decision is replayed: XDP carries packets that go by tunnel, or to a port behind XDP."""
        if key.where >> abi.WHERE_SHIFT == abi.Where.PORT:
            port = self._names.ports.get(str(key.where))
            hook = self._hooks.get(port.device, "tc") if port else "tc"
        else:
            hook = self._uplink_hook
        carried = entry.flags & abi.FlowFlag.TUNNEL or self._reader.port(entry.out).flags & abi.PortFlag.XDP
        return hook if carried else "tc"

    def _rule(self, number: int) -> dict[str, str | None]:
        """A rule by its number: its id and group, and both in words."""
        if number in SPECIAL:
            return {"rule": None, "group": None, "text": SPECIAL[number]}
        rule = self._names.rules.get(str(number))
        if rule is None:
            return {"rule": None, "group": None, "text": "a rule that is gone by now"}
        text = f"rule {rule.id} of group {rule.group_name or rule.group}"
        return {"rule": rule.id, "group": rule.group, "text": text}

    def _since(self, moment: int) -> float:
        return max(0.0, round((self._now - moment) / 1e9, 3))
