"""The whole desired state, or the part of it that one host may see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from headrace.errors import InvalidInput
from headrace.model.object import TYPES, AddressGroup, Host, Network, Object, Port, SecurityGroup, Subnet
from headrace.strict import convert


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Desired objects by type and id. Immutable: a change makes a new one."""

    networks: Mapping[str, Network] = msgspec.field(default_factory=dict)
    subnets: Mapping[str, Subnet] = msgspec.field(default_factory=dict)
    security_groups: Mapping[str, SecurityGroup] = msgspec.field(default_factory=dict)
    address_groups: Mapping[str, AddressGroup] = msgspec.field(default_factory=dict)
    hosts: Mapping[str, Host] = msgspec.field(default_factory=dict)
    ports: Mapping[str, Port] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, objects: Iterable[Object]) -> State:
        """Sort any objects into a state; the last of two with one id wins."""
        sorted_: dict[str, dict[str, Object]] = {plural(name): {} for name in TYPES}
        for item in objects:
            sorted_[plural(item.type)][item.id] = item
        return cls(**cast("Any", sorted_))

    def all(self) -> Iterable[Object]:
        """Every object, referenced types first."""
        for name in TYPES:
            yield from getattr(self, plural(name)).values()

    def ports_on(self, host: str) -> dict[str, Port]:
        """The ports bound to a host."""
        return {port.id: port for port in self.ports.values() if port.host == host}

    def members(self, group: str) -> list[Port]:
        """The ports that carry a security group."""
        return [port for port in self.ports.values() if group in port.security_groups]


def plural(type_name: str) -> str:
    """``security_group`` -> ``security_groups``: the collection an object type lives in."""
    return type_name + "s"


def decode(type_name: str, body: object) -> Object:
    """Build an object from decoded JSON or YAML.

    Raises UnknownField naming the nearest known field, or InvalidInput naming the object and the field.
    """
    try:
        cls = TYPES[type_name]
    except KeyError:
        raise InvalidInput(f"unknown object type {type_name!r}; known: {', '.join(TYPES)}") from None
    name = body.get("id", "?") if isinstance(body, dict) else "?"
    return convert(body, cls, f"{type_name} {name}")
