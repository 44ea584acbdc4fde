"""Reads a datapath by its pins: what it forwards, for whom, and why not. Loads nothing and needs no agent."""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from headrace import abi
from headrace.datapath.attach import attached
from headrace.datapath.bpfmap import Map
from headrace.datapath.libbpf import Refused
from headrace.errors import Denied, Unavailable

HALF_OPEN = {abi.State.NEW, abi.State.SYN_SENT, abi.State.SYN_RECEIVED}
DOT, STAND_IN = ".", ":"
"""A pin's name holds no dot, and a device's name no colon (net/core/dev.c, dev_valid_name)."""
KINDS = ("ingress", "egress", "xdp", "uplink", "uplink-xdp", "seam")
"""Of links: those of a port, then those of an uplink, and that of the seam's far end."""


class Reader:
    """One host's datapath, pinned below ``root``: maps under the ABI's hash, links under ``links``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pins = root / abi.ABI_HASH
        self.links = root / "links"
        self.maps: dict[str, Map] = {}

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Self:
        """Open the tables. Raises Denied without the right to, Unavailable when there are none of this version."""
        try:
            for name in abi.MAPS:
                if (path := self.pins / name).exists():
                    self.maps[name] = Map.from_pin(path)
        except PermissionError:
            raise Denied(f"{self.root}: reading the datapath's tables needs root") from None
        except Refused as error:
            self.close()
            if error.errno in {errno.EPERM, errno.EACCES}:
                raise Denied(f"{self.root}: reading the datapath's tables needs root") from None
            raise
        if not self.maps:
            raise Unavailable(self._absent())
        return self

    def close(self) -> None:
        """Let go of the descriptors."""
        for table in self.maps.values():
            table.close()
        self.maps.clear()

    def _absent(self) -> str:
        others = (
            [path.name for path in self.root.iterdir() if (path / "hr_flows").exists()] if self.root.is_dir() else []
        )
        if others:
            return (
                f"{self.root} holds a datapath of another version ({', '.join(others)}); use the headrace that made it"
            )
        return f"{self.root}: no datapath is loaded here; start the agent, or give its directory with --bpf"

    # Flows

    def flows(self) -> Iterator[tuple[abi.FlowKey, abi.Flow]]:
        """Every flow entry."""
        for key, value in self.maps["hr_flows"].items():
            yield abi.FlowKey.unpack(key), abi.Flow.unpack(value)

    def flow(self, key: abi.FlowKey) -> abi.Flow | None:
        """The flow entry of a key, whole."""
        for _ in range(100):  # an entry may be rewritten while it is read
            value = self.maps["hr_flows"].lookup(key.pack())
            entry = abi.Flow.unpack(value) if value else None
            if entry is None or entry.first == entry.last:
                return entry
        return None

    def connections(self) -> Iterator[tuple[int, abi.Conn]]:
        """Every live connection with its index."""
        fresh = self._word("hr_cursors", abi.Cursor.FRESH)
        for key, value in self.maps["hr_conns"].items():
            index = int.from_bytes(key, "little")
            if index >= fresh:  # never used, nor are those that follow
                return
            identity = int.from_bytes(value[:8], "little")
            if identity and not identity & abi.CONN_DEAD:
                yield index, abi.Conn.unpack(value)

    def connection(self, index: int) -> abi.Conn | None:
        """One connection by index."""
        value = self.maps["hr_conns"].lookup(abi.U32(value=index).pack())
        return abi.Conn.unpack(value) if value else None

    def connection_counts(self) -> Mapping[int, abi.ConnCount]:
        """Port index -> what it has of the table, of those that ever had any."""
        counts = ((key, value) for key, value in self.maps["hr_conn_counts"].items() if any(value))
        return {int.from_bytes(key, "little"): abi.ConnCount.unpack(value) for key, value in counts}

    def half_open(self) -> Counter[int]:
        """Port index -> how many of its connections nobody has answered yet."""
        at = dict(zip(abi.Conn.DTYPE["names"], abi.Conn.DTYPE["offsets"], strict=True))
        state, port = at["state"], at["port"]
        fresh = self._word("hr_cursors", abi.Cursor.FRESH)
        used = itertools.islice(self.maps["hr_conns"].items(), fresh)
        return Counter(
            int.from_bytes(value[port : port + 2], "little")
            for _, value in used
            if value[state] in HALF_OPEN and any(value[:8])
        )

    def quota(self) -> int:
        """How many connections a port may have; 0: as many as fit."""
        return abi.Config.unpack(self.maps["hr_configs"].lookup(bytes(4)) or b"").quota

    def epoch(self, index: int) -> int:
        """The epoch of a port, remote port or VTEP."""
        return self._word("hr_epochs", index)

    def adjacency(self, index: int) -> abi.Adjacency:
        """Outer header and next hop of a path."""
        return abi.Adjacency.unpack(self.maps["hr_adjacencies"].lookup(abi.U32(value=index).pack()) or b"")

    def port(self, index: int) -> abi.Port:
        """What the datapath holds of a local port; all zero when there is none."""
        return abi.Port.unpack(self.maps["hr_ports"].lookup(abi.U32(value=index).pack()) or b"")

    def learnt_macs(self) -> Iterator[tuple[abi.FdbKey, abi.Learnt]]:
        """MACs that no port owns, with where they were last seen."""
        for key, value in self.maps["hr_learnt"].items():
            if any(value):
                yield abi.FdbKey.unpack(key), abi.Learnt.unpack(value)

    # Counters

    def reasons(self) -> Mapping[int, Mapping[abi.Reason, int]]:
        """Port index (0: the uplink) -> reason -> packets."""
        counts: dict[int, dict[abi.Reason, int]] = {}
        table = self.maps["hr_reasons"]
        for key, value in table.items():
            if any(value):
                port, reason = divmod(int.from_bytes(key, "little"), abi.REASONS)
                total = sum(int.from_bytes(part, "little") for part in table.cpus(value))
                counts.setdefault(port, {})[abi.Reason(reason)] = total
        return counts

    def port_reasons(self, index: int) -> Mapping[abi.Reason, int]:
        """Reason -> packets of one port (0: the uplink)."""
        counts = {}
        for reason in abi.Reason:
            slot = abi.U32(value=index * abi.REASONS + reason)
            parts = self.maps["hr_reasons"].lookup_cpus(slot.pack()) or []
            if total := sum(int.from_bytes(part, "little") for part in parts):
                counts[reason] = total
        return counts

    def port_counters(self, index: int) -> abi.PortCounters:
        """A port's counters, summed over CPUs."""
        parts = self.maps["hr_port_counts"].lookup_cpus(abi.U32(value=index).pack()) or []
        rows = [abi.PortCounters.unpack(part) for part in parts]

        def total(which: str) -> abi.Counter:
            pairs = [getattr(row, which) for row in rows]
            return abi.Counter(packets=sum(pair.packets for pair in pairs), octets=sum(pair.octets for pair in pairs))

        return abi.PortCounters(from_port=total("from_port"), to_port=total("to_port"), walked=total("walked"))

    # Hooks

    def devices(self) -> set[str]:
        """Names of the devices that have links, present or gone."""
        names = (path.name.rpartition("@")[0] for path in self.links.iterdir() if "@" in path.name)
        return {name.replace(STAND_IN, DOT) for name in names}

    def places(self, device: str) -> list[Path]:
        """Where its links are pinned, if it has them."""
        return [self._link(device, kind) for kind in KINDS]

    def hook(self, device: str) -> str:
        """``xdp`` where a program of ours runs on the device's XDP hook, with tc behind it; else ``tc``."""
        return "xdp" if any(attached(self._link(device, kind)) for kind in ("xdp", "uplink-xdp")) else "tc"

    def uplinks(self) -> set[str]:
        """Those of the devices that are uplinks."""
        return {device for device in self.devices() if self._link(device, "uplink").exists()}

    def _link(self, name: str, kind: str) -> Path:
        return self.links / f"{name.replace(DOT, STAND_IN)}@{kind}"

    def _word(self, name: str, index: int) -> int:
        return int.from_bytes(self.maps[name].lookup(abi.U32(value=index).pack()) or b"", "little")
