"""What each port has of what all share: connections, and walks."""

from __future__ import annotations

import time
from typing import Any

from headrace.abi import ConnCount, Reason
from headrace.agent.names import Names
from headrace.cli.local import port_device, port_label
from headrace.datapath.reader import Reader


def crowd(reader: Reader, names: Names, interval: float) -> list[dict[str, Any]]:
    """A row a port of this host, who has most first. ``interval``: seconds over which walks are counted."""
    ports = [int(index) for index in names.ports]
    began = time.monotonic()
    before = {index: walks(reader, index) for index in ports}
    counts, half_open, quota = reader.connection_counts(), reader.half_open(), reader.quota()
    rows = {index: row(reader, names, index, counts.get(index, ConnCount())) for index in ports}
    time.sleep(max(0.0, interval - (time.monotonic() - began)))
    took = time.monotonic() - began
    for index, known in rows.items():
        known["quota"] = quota or None
        known["half_open"] = half_open[index]
        known["walks"] = round((walks(reader, index) - before[index]) / took)
    return sorted(rows.values(), key=lambda known: (-known["connections"], -known["walks"], known["port"]))


def row(reader: Reader, names: Names, index: int, count: ConnCount) -> dict[str, Any]:
    """What has been counted of a port."""
    reasons = reader.port_reasons(index)
    port = names.ports[str(index)]
    return {
        "port": port_label(names, index),
        "id": port.id,
        "device": port_device(port),
        "connections": count.live,
        "evicted": count.evicted,
        "refused": reasons.get(Reason.QUOTA, 0) + reasons.get(Reason.TABLE_FULL, 0),
        "over_budget": reasons.get(Reason.BUDGET, 0),
    }


def walks(reader: Reader, index: int) -> int:
    """How many packets from or to a port have walked."""
    return reader.port_counters(index).walked.packets
