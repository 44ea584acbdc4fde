"""A network's identity on the wire, and the wires there are."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Wire = Literal["vxlan", "geneve", "gre", "mpls-udp", "mpls-gre", "nsh-gpe", "nsh-ethernet", "physical"]
"""How frames of a segment travel between hosts (docs/pipeline.md, "encap")."""

NetworkType = Literal["flat", "vlan", "vxlan", "geneve", "gre", "mpls", "nsh"]
"""Neutron's ``provider:network_type``."""

Vid = Annotated[int, msgspec.Meta(ge=1, le=4094)]

IDS: dict[str, tuple[str, int, int]] = {
    "vlan": ("VID", 1, 4094),
    "vxlan": ("VNI", 1, 0xFFFFFF),
    "geneve": ("VNI", 1, 0xFFFFFF),
    "gre": ("key", 1, (1 << 28) - 1),
    "mpls": ("label", 16, 0xFFFFF),
    "nsh": ("service path identifier", 1, 0xFFFFFF),
}
"""By network type: what its id is called, and the range of it (RFC 7348, 8926, 2890, 3032 section 2.1, 8300)."""

TRANSPORTS: dict[str, tuple[str, ...]] = {"mpls": ("udp", "gre"), "nsh": ("gpe", "ethernet")}
"""By network type: what carries it; the first unless the segment says otherwise."""

OUTER_IP = {4: 20, 6: 40}
OVERHEAD: dict[Wire, int] = {
    "vxlan": 30,
    "geneve": 30,
    "gre": 22,
    "mpls-udp": 26,
    "mpls-gre": 22,
    "nsh-gpe": 38,
    "nsh-ethernet": 22,
    "physical": 0,
}
"""Octets that a wire takes of the underlay's MTU, outer IP apart: its headers and the inner Ethernet header."""


class Segment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A network's identity on the wire.

    ``id``: VNI, key, label, service path identifier or VID, as ``IDS`` has it; flat networks have none.
    ``transport``: of mpls and nsh. ``physical_network``: of flat and vlan, what hosts map to a device of theirs.
    ``service_vlan``: the outer VID of QinQ (802.1ad), with vlan. Raises ValueError for what no wire can have.
    """

    type: NetworkType = "vxlan"
    id: int | None = None
    transport: Literal["udp", "gre", "gpe", "ethernet"] | None = None
    physical_network: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    service_vlan: Vid | None = None

    def __post_init__(self) -> None:
        self._check_id()
        carriers = TRANSPORTS.get(self.type, ())
        if self.transport is not None and self.transport not in carriers:
            cure = f"one of {', '.join(carriers)}" if carriers else "none"
            raise ValueError(f"transport {self.transport} is not {self.type}'s; give {cure}")
        if self.is_physical != (self.physical_network is not None):
            cure = "needs a physical_network" if self.is_physical else "has no physical_network"
            raise ValueError(f"type {self.type} {cure}")
        if self.service_vlan is not None and self.type != "vlan":
            raise ValueError(f"type {self.type} has no service_vlan; leave it out")

    def _check_id(self) -> None:
        if self.type == "flat":
            if self.id is not None:
                raise ValueError("type flat has no id; leave it out")
            return
        name, least, most = IDS[self.type]
        if self.id is None or not least <= self.id <= most:
            given = "is missing" if self.id is None else f"{self.id} is out of range"
            raise ValueError(f"id (of {self.type}: the {name}) {given}; give one from {least} to {most}")

    @property
    def number(self) -> int:
        """The id; 0 of a flat network, which has none."""
        return self.id or 0

    @property
    def is_physical(self) -> bool:
        """Whether it is a physical network's, with no outer headers but tags."""
        return self.type in {"flat", "vlan"}

    @classmethod
    def on(cls, wire: Wire, number: int, physical_network: str = "", service_vlan: int = 0) -> Segment:
        """The one that ``place`` is of, as ``plain`` has it. Raises ValueError for what no wire can have."""
        if wire == "physical":
            kind = "vlan" if number or service_vlan else "flat"
            service = service_vlan or None
            return cls(type=kind, id=number or None, physical_network=physical_network, service_vlan=service)  # type: ignore[arg-type]
        kind, _, transport = wire.partition("-")
        return cls(type=kind, id=number, transport=transport or None).plain  # type: ignore[arg-type]

    @property
    def plain(self) -> Segment:
        """The same, without a transport that goes without saying: what two equal ones are equal by."""
        if self.transport is not None and self.transport == TRANSPORTS[self.type][0]:
            return msgspec.structs.replace(self, transport=None)
        return self

    @property
    def wire(self) -> Wire:
        """What it travels on."""
        if self.is_physical:
            return "physical"
        if self.type in TRANSPORTS:
            return f"{self.type}-{self.transport or TRANSPORTS[self.type][0]}"  # type: ignore[return-value]
        return self.type  # type: ignore[return-value]

    @property
    def place(self) -> tuple[Wire, str, int, int]:
        """What no other network may have: wire, physical network, outer VID, id."""
        return self.wire, self.physical_network or "", self.service_vlan or 0, self.id or 0

    @property
    def text(self) -> str:
        """``vxlan 100``, ``mpls-gre 17``, ``vlan 12 on physnet1``, ``qinq 7.12 on physnet1``, ``flat on physnet1``."""
        if self.type == "flat":
            return f"flat on {self.physical_network}"
        if self.service_vlan is not None:
            return f"qinq {self.service_vlan}.{self.id} on {self.physical_network}"
        return f"vlan {self.id} on {self.physical_network}" if self.is_physical else f"{self.wire} {self.id}"

    def overhead(self, version: int) -> int:
        """Octets taken of the underlay's MTU, with an outer IP of ``version`` (4 or 6)."""
        if self.is_physical:
            return 4 if self.service_vlan is not None else 0
        return OVERHEAD[self.wire] + (0 if self.wire == "nsh-ethernet" else OUTER_IP[version])
