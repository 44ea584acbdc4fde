"""What the oracle is asked and what it answers: an arrival, and the decision with every step that led to it."""

from __future__ import annotations

import ipaddress
from typing import Literal, NamedTuple

import msgspec

from headrace.abi import Reason, State
from headrace.model import Segment

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

Course = Literal["original", "reply"]
"""Which way of its connection a packet travels."""

Side = Literal["from", "to"]
"""The sender's or the receiver's end of a packet's way."""

RULE_NONE = "NONE"
RULE_ESTABLISHED = "ESTABLISHED"
RULE_IMPLICIT = "IMPLICIT"
RULE_OPEN = "OPEN"
RULE_REMOTE = "REMOTE"


class Dropped(Exception):
    """How a stage ends a packet's way: the outcome, not an error."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(f"{reason.name}: {text}")
        self.reason = reason
        self.text = text


class Place(NamedTuple):
    """Where packets enter a host: ``("port", attachment)`` or ``("segment", segment)``."""

    kind: Literal["port", "segment"]
    id: str | Segment


class Key(NamedTuple):
    """A flow key (pipeline.md, "track"). ``dport`` of ICMP is ``type << 8 | code``."""

    source: IpAddress
    destination: IpAddress
    protocol: int
    sport: int
    dport: int
    where: Place


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that enters a host.

    By the device of ``port`` (a trunk's: tags and all); by tunnel (the ``vtep`` it came from, ``segment``, inner frame,
    ``tos`` of the outer header); by the device of a ``physical`` network, a whole frame, tags and outer headers
    included; or, with none of these, the same on another uplink.
    ``gso_size``: payload of one segment if it is a super-packet. ``vlan``: TCI of a tag the NIC took off, 802.1Q or
    ``vlan_type``.
    """

    frame: bytes
    port: str | None = None
    vtep: str | None = None
    segment: Segment | None = None
    tos: int = 0
    physical: str | None = None
    gso_size: int = 0
    vlan: int | None = None
    vlan_type: int = 0x8100


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One copy that leaves: to a local ``port``, with its tag if it is a trunk's sub-port; or on a ``segment``.

    That is to a ``vtep`` under an outer header with ``tos``; or, of a physical network, to the wire, where ``frame`` is
    without the segment's tags. ``rule``: what let it pass on the receiver's side.
    """

    frame: bytes
    port: str | None = None
    vtep: str | None = None
    segment: Segment | None = None
    tos: int = 0
    rule: str = RULE_NONE


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver that a flooded frame did not reach, and why; the sender, for a VTEP that it is too big for."""

    port: str
    reason: Reason


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage found. ``rule``: the id of the rule that decided, or a RULE_* name."""

    stage: str
    text: str
    rule: str | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to a packet, why, and what it left behind.

    Several rules may allow a packet: ``rule_from`` and ``rule_to`` are the first in the order of the port's groups;
    ``allowed_from`` and ``allowed_to`` are all of them. ``passed``: not ours, the host's kernel has it untouched.
    With a multicast frame of a physical network both may be: the kernel has it, and so have ports.
    ``connection``: the state it is in afterwards. ``denied_by``: the port on whose side acl dropped it.
    ``port``: the local port that it is of, a trunk's sub-port perhaps. ``walked``: its walk began; else it is the
    kernel's, or was dropped for what is around it.
    ``packets`` and ``octets``: how the frame counts (pipeline.md, "account").
    """

    reason: Reason
    outputs: tuple[Output, ...] = ()
    refused: tuple[Refusal, ...] = ()
    passed: bool = False
    rule_from: str = RULE_NONE
    rule_to: str = RULE_NONE
    allowed_from: tuple[str, ...] = ()
    allowed_to: tuple[str, ...] = ()
    denied_by: str | None = None
    port: str | None = None
    walked: bool = True
    key: Key | None = None
    course: Course | None = None
    connection: State | None = None
    packets: int = 1
    octets: int = 0
    steps: tuple[Step, ...] = ()

    @property
    def dropped(self) -> bool:
        """Whether nobody gets it: no receiver, no agent, and not even its sender an answer."""
        return not self.outputs and not self.passed and self.reason != Reason.PUNTED
