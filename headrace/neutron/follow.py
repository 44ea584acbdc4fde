"""Sub-ports follow their parents, and trunks tell how far they got: what is wrong, and what it should be. Pure.

Judged by what is, never by what happened: looking at a trunk twice, or long after it changed, is all the same.
"""

from __future__ import annotations

from typing import Any

import msgspec
from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.services.trunk import constants as trunk_constants

PARENT, TAG = "parent_name", "tag"
"""Keys of a sub-port's binding profile, as ML2/OVN has them."""

UNBOUND = (portbindings.VIF_TYPE_UNBOUND, portbindings.VIF_TYPE_BINDING_FAILED)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A port with its active binding. ``ours``: we bound it. ``blocked``: its host has not realised it yet."""

    id: str
    status: str
    admin_up: bool = True
    device_owner: str = ""
    host: str = ""
    vif_type: str = portbindings.VIF_TYPE_UNBOUND
    profile: dict[str, Any] = {}
    ours: bool = False
    blocked: bool = False

    @property
    def is_free(self) -> bool:
        """Whether no other driver has it."""
        return self.ours or self.vif_type in UNBOUND


class Trunk(msgspec.Struct, frozen=True, kw_only=True):
    """A parent and its sub-ports by VLAN tag."""

    id: str
    status: str
    parent: Member
    subports: tuple[tuple[int, Member], ...] = ()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """An update of a port: its binding's host ("": none) and profile, and its device owner."""

    port: str
    host: str
    device_owner: str
    profile: dict[str, Any]


def changes(trunk: Trunk, *, again: bool = False) -> list[Change]:
    """What brings the sub-ports to where the parent is. None of another driver's trunk.

    ``again``: try those too that no driver has bound or refused though they have their host. Not at every mark: the
    attempt marks the trunk itself.
    """
    parent = trunk.parent
    if not parent.is_free:
        return []
    host = parent.host if parent.ours else ""
    found = []
    for tag, port in trunk.subports:
        if not port.is_free:
            continue
        profile = port.profile | {PARENT: parent.id, TAG: tag}
        owner = trunk_constants.TRUNK_SUBPORT_OWNER
        placed = port.host == host and not (again and host and port.vif_type == portbindings.VIF_TYPE_UNBOUND)
        if not placed or port.profile != profile or port.device_owner != owner:
            found.append(Change(port=port.id, host=host, device_owner=owner, profile=profile))
    return found


def release(port: Member) -> Change | None:
    """What frees a port that was a sub-port and is none any more."""
    if port.device_owner != trunk_constants.TRUNK_SUBPORT_OWNER or not port.is_free:
        return None
    profile = {key: value for key, value in port.profile.items() if key not in {PARENT, TAG}}
    return Change(port=port.id, host="", device_owner="", profile=profile)


def status(trunk: Trunk) -> str:
    """What a trunk's status should be (neutron_lib.services.trunk.constants).

    DOWN: the parent is bound nowhere, or its host says that it is down. BUILD: hosts have not realised all of it yet.
    DEGRADED: the parent is there, and a sub-port is refused, in error or down. An administratively down sub-port is as
    it should be.
    """
    parent = trunk.parent
    if not parent.is_free:
        return trunk.status
    if not parent.ours:
        return str(trunk_constants.TRUNK_DOWN_STATUS)
    states = {state(parent), *(state(port) for _, port in trunk.subports)}
    if state(parent) == "wrong":
        return str(trunk_constants.TRUNK_DOWN_STATUS)
    if state(parent) == "right" and "wrong" in states:
        return str(trunk_constants.TRUNK_DEGRADED_STATUS)
    return str(trunk_constants.TRUNK_BUILD_STATUS if "waiting" in states else trunk_constants.TRUNK_ACTIVE_STATUS)


def state(port: Member) -> str:
    """``right``, ``wrong``, or ``waiting`` for its host's word."""
    if port.status == constants.PORT_STATUS_ACTIVE:
        return "right"
    if not port.ours:
        return "waiting" if port.vif_type == portbindings.VIF_TYPE_UNBOUND else "wrong"
    if port.status == constants.PORT_STATUS_ERROR:
        return "wrong"
    if not port.admin_up:
        return "right"
    return "waiting" if port.blocked else "wrong"
