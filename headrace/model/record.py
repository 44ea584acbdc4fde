"""What travels between writers, the controller and agents: objects with their provenance, and status."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headrace.model.object import Identity


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of one object, as its writer put it.

    ``revision`` is the writer's own (Neutron: ``revision_number``); an older one than stored is ignored.
    ``writer_epoch`` names one life of the writer's database: a new one means a full resync of that writer's objects.
    ``body`` None is a tombstone. ``stored`` is the controller's own revision, given on the way out.
    """

    type: str
    id: Identity
    writer: Identity
    writer_epoch: str = ""
    revision: int = 0
    body: dict[str, Any] | None = None
    stored: int = 0


class PortStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a host says of one port. ``up`` only after the datapath holds ``revision`` (the controller's)."""

    id: Identity
    state: Literal["up", "down", "error"]
    reason: str = ""
    revision: int = 0
    device: str = ""


class WireStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What leads to a physical network on a host. ``mtu``: octets."""

    device: str
    mtu: int = 0


class HostStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a host says of itself: its tunnel endpoints, abilities, and how far it has applied desired state.

    ``mtu``: of its uplinks, the least. ``wires``: of each of its physical networks.
    ``epoch``: the controller epoch that ``applied`` (a controller revision) belongs to.
    ``time``: Unix seconds when the host said so, by the controller's clock.
    ``drained``: an operator has it take no new ports. ``repairs``: differences that its agent found in its datapath and
    mended since it started.
    """

    id: Identity
    vteps: tuple[str, ...] = ()
    network_types: tuple[str, ...] = ("vxlan",)
    physical_networks: tuple[str, ...] = ()
    mtu: int = 0
    version: str = ""
    epoch: str = ""
    applied: int = 0
    ports: tuple[PortStatus, ...] = ()
    time: float = 0.0
    drained: bool = False
    repairs: int = 0
    wires: dict[str, WireStatus] = {}
