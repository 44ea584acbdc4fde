"""What a test run of the real programs is given and what it shows, in the oracle's words.

Sources: ``struct __sk_buff`` and ``struct xdp_md`` of ``linux/bpf.h``.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from typing import Literal

import msgspec

from headrace import abi
from headrace.abi import Reason, State
from headrace.datapath.decision import (
    RULE_ESTABLISHED,
    RULE_IMPLICIT,
    RULE_NONE,
    RULE_OPEN,
    RULE_REMOTE,
    IpAddress,
    Key,
    Output,
    Place,
    Refusal,
)

Hook = Literal["tc", "xdp"]

TC_ACT_UNSPEC = 0xFFFFFFFF
TC_ACT_SHOT = 2
TC_ACT_REDIRECT = 7
XDP_PASS = 2
XDP_REDIRECT = 4
MARK = abi.MARK
"""On frames that leave by a port's device and not straight into its peer."""

RULE_NAMES = {
    abi.RULE_NONE: RULE_NONE,
    abi.RULE_ESTABLISHED: RULE_ESTABLISHED,
    abi.RULE_IMPLICIT: RULE_IMPLICIT,
    abi.RULE_OPEN: RULE_OPEN,
    abi.RULE_REMOTE: RULE_REMOTE,
}

SKB = struct.Struct("<8xI28xI4xII120xI12x")
"""mark, ifindex, cb[0], cb[1], gso_size; what is not given must be zero."""
XDP = struct.Struct("<6I")
"""data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted; by port id, "" for the uplink. ``traffic``: (port, which, packets or octets)."""

    reasons: Counter[tuple[str, Reason]] = msgspec.field(default_factory=Counter)
    traffic: Counter[tuple[str, str, str]] = msgspec.field(default_factory=Counter)


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What the programs did with one frame.

    ``hook``: the one that concluded. ``concluded`` is false where a program ended without leaving a conclusion, and the
    reason is from the counters. ``rule_from``, ``rule_to``: of the walk, or that its connection keeps for a replay.
    ``connection``: the state it is in afterwards. ``marked``: left by a device and not straight into a veth's peer.
    ``outer``: the frame as it left by tunnel or on a wire, with all around it; ``copies``: those of a flood. ``wires``:
    by which physical network each of these left, None: by the uplink. ``seamed``: it went by the seam.
    """

    reason: Reason
    verdict: int
    hook: Hook = "tc"
    outputs: tuple[Output, ...] = ()
    refused: tuple[Refusal, ...] = ()
    passed: bool = False
    replayed: bool = False
    concluded: bool = True
    rule_from: str = RULE_NONE
    rule_to: str = RULE_NONE
    key: Key | None = None
    connection: State | None = None
    marked: bool = False
    outer: bytes = b""
    copies: tuple[bytes, ...] = ()
    wires: tuple[str | None, ...] = ()
    seamed: bool = False
    counts: Counts = msgspec.field(default_factory=Counts)


def skb_context(ifindex: int, *, gso_size: int = 0, vlan: int | None = None, length: int = 0, mark: int = 0) -> bytes:
    """A ``struct __sk_buff``. ``vlan`` (type << 16 | TCI) and ``length`` are for the prelude of host.py."""
    return SKB.pack(mark, ifindex, vlan or 0, length, gso_size)


def xdp_context(ifindex: int, length: int) -> bytes:
    return XDP.pack(0, length, 0, ifindex, 0, 0)


def address_of(octets: bytes) -> IpAddress:
    """An address of the ABI, which has IPv4 as ::ffff:a.b.c.d."""
    address = ipaddress.IPv6Address(octets)
    return address.ipv4_mapped or address


def key_of(key: abi.FlowKey, place: Place) -> Key | None:
    """A flow key in the oracle's words; None where the frame has none."""
    if not any(key.saddr) and not any(key.daddr):
        return None
    return Key(address_of(key.saddr), address_of(key.daddr), key.proto, key.sport, key.dport, place)
