"""The firewall that every contender gets: the rule that allows is the last one, the worst case for a list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OVERLAY_V4 = "10.77.0.0/24"
OVERLAY_V6 = "fd77::/64"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Allow what matches. ``remote`` is the other end: destination on the way out of a port, source on the way in."""

    family: Literal[4, 6]
    remote: str
    protocol: Literal["tcp", "udp"] | None = None
    port: int | None = None


def make_rules(count: int) -> list[Rule]:
    """``count`` IPv4 rules of which the last allows the overlay, and one rule that allows the overlay's IPv6.

    The others allow one TCP or UDP port each of an address in 198.18.0.0/15 (RFC 2544: benchmarks), as a group of
    unlike services has it; none matches the load.
    """
    decoys = [
        Rule(
            family=4,
            remote=f"198.{18 + (i >> 16)}.{i >> 8 & 255}.{i & 255}/32",
            protocol="udp" if i % 2 else "tcp",
            port=1024 + i % 60000,
        )
        for i in range(count - 1)
    ]
    return [*decoys, Rule(family=4, remote=OVERLAY_V4), Rule(family=6, remote=OVERLAY_V6)]
