"""What a sampled drop says, in words."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from typing import Any

from headrace import abi
from headrace.agent.names import Names
from headrace.cli.local import port_label
from headrace.datapath import packet as headers
from headrace.datapath.decision import Dropped
from headrace.datapath.notation import describe

OUTSIDE = {
    abi.Reason.MALFORMED_TUNNEL,
    abi.Reason.OUTER_FRAGMENT,
    abi.Reason.GENEVE_OPTION,
    abi.Reason.NSH_EXHAUSTED,
}
"""Where the outer packet itself is what is wrong."""
NAMES = {headers.ETHERTYPE_IPV4: "IPv4", headers.ETHERTYPE_IPV6: "IPv6", headers.ETHERTYPE_ARP: "ARP"}


class Teller:
    """Turns samples into rows. ``names``: what the host's indices mean."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def row(self, sample: abi.Sample) -> dict[str, Any]:
        """Time (UTC), reason, the port it counts on, how it entered, and its headers."""
        reason = abi.Reason(sample.reason)
        frame = sample.frame[: sample.captured]
        inner = frame[sample.outer :]
        ago = time.monotonic_ns() - sample.time
        return {
            "time": datetime.fromtimestamp((time.time_ns() - ago) / 1e9, UTC).isoformat(timespec="milliseconds"),
            "reason": reason.name,
            "port": port_label(self._names, sample.port),
            "entered": self._entered(sample, reason),
            "to": port_label(self._names, sample.to) if sample.to else None,
            "device": device(sample.ifindex),
            "source_mac": inner[6:12].hex(":") or None,
            "destination_mac": inner[0:6].hex(":") or None,
            "packet": words(inner, sample.length - sample.outer),
            "length": sample.length,
            "outer": sample.outer,
            "frame": frame.hex(),
        }

    def _entered(self, sample: abi.Sample, reason: abi.Reason) -> str:
        if reason == abi.Reason.FROM_HOST:
            return "this host"
        if reason in OUTSIDE:
            return "the underlay"
        if sample.where == abi.WHERE_NONE:
            return port_label(self._names, sample.port) if sample.port else device(sample.ifindex)
        if sample.where >> abi.WHERE_SHIFT == abi.Where.PORT:
            return port_label(self._names, sample.where)
        return self._names.segment(sample.where)


def words(frame: bytes, length: int) -> str:
    """The packet in a line, as far as its first octets tell; ``length``: of all of it."""
    if len(frame) < headers.ETHERNET:
        return f"{len(frame)} octets, no Ethernet frame"
    try:
        return describe(headers.parse(frame.ljust(length, b"\0")))
    except Dropped as malformed:
        ethertype = int.from_bytes(frame[12:14], "big")
        kind = NAMES.get(ethertype, f"ethertype {ethertype:#06x}")
        return f"{kind}, {frame[6:12].hex(':')} > {frame[0:6].hex(':')}: {malformed.text}"


def device(ifindex: int) -> str:
    """A device's name, where it is still there."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"device {ifindex}"
