"""Whether ports are right as members of a trunk: what a person may not write. Pure.

Other writers send in any order, and know their own: a sub-port may come before its parent.
"""

from __future__ import annotations

from typing import Protocol

from headrace.errors import Conflict, InvalidInput
from headrace.model import Port


class Ports(Protocol):
    """Ports as they will be."""

    def port(self, id_: str) -> Port | None:
        """One of them."""

    def subports(self, parent: str) -> list[Port]:
        """Those whose parent this is, by id."""


def check(id_: str, ports: Ports) -> None:
    """A sub-port has a parent that is none itself, on its own host if it has one, and a tag of its own there.

    Raises InvalidInput or Conflict, naming port and field.
    """
    port = ports.port(id_)
    if port and port.parent:
        check_subport(port, ports)
    for subport in ports.subports(id_):
        if port is None:
            raise Conflict(f"port {id_}: port {subport.id} is its sub-port; delete that first")
        check_subport(subport, ports)


def check_subport(port: Port, ports: Ports) -> None:
    """The same of one sub-port."""
    parent = ports.port(port.parent or "")
    if parent is None:
        raise InvalidInput(f"port {port.id}: parent: unknown port {port.parent!r}; apply it before, or with this one")
    if parent.parent:
        raise InvalidInput(
            f"port {port.id}: parent: port {parent.id} is a sub-port itself, of {parent.parent}; name another"
        )
    if port.host is not None and port.host != parent.host:
        raise InvalidInput(f"port {port.id}: host: its parent {parent.id} is on {parent.host or 'no host'}; give that")
    for other in ports.subports(parent.id):
        if other.id != port.id and other.vlan == port.vlan:
            raise Conflict(
                f"port {port.id}: vlan: port {other.id} has {port.vlan} on {parent.id} already; give another"
            )
