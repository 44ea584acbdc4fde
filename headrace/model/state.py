"""The whole desired state, or the part of it that one host may see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from headrace.errors import InvalidInput
from headrace.model.object import TYPES, AddressGroup, Host, Network, Object, Port, Rule, SecurityGroup, Subnet
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


def decode(type_name: str, body: object, before: tuple[object, Object] | None = None) -> Object:
    """Build an object from decoded JSON or YAML.

    ``before``: what it was, as a body and as an object; rules that are as they were are the same objects again.
    Raises UnknownField naming the nearest known field, or InvalidInput naming the object and the field.
    """
    try:
        cls = TYPES[type_name]
    except KeyError:
        raise InvalidInput(f"unknown object type {type_name!r}; known: {', '.join(TYPES)}") from None
    name = body.get("id", "?") if isinstance(body, dict) else "?"
    if before and isinstance(body, dict) and isinstance(before[0], dict) and isinstance(before[1], SecurityGroup):
        known = [(raw, rule) for raw, rule in zip(before[0].get("rules", ()), before[1].rules, strict=True)]
        return decode_group(body, {rule.id: (raw, rule) for raw, rule in known}, f"{type_name} {name}")
    return convert(body, cls, f"{type_name} {name}")


def decode_group(body: dict[str, Any], known: Mapping[str, tuple[object, Rule]], label: str) -> SecurityGroup:
    """A group of which some rules are known, by id, as body and object. A thousand rules take milliseconds to check."""
    listed = body.get("rules", [])
    if not isinstance(listed, list) or not all(isinstance(raw, dict) for raw in listed):
        return convert(body, SecurityGroup, label)
    same = [known.get(str(raw.get("id")), (None, None)) for raw in listed]
    fresh = [raw for raw, (old, _) in zip(listed, same, strict=True) if old != raw]
    group = convert({**body, "rules": fresh}, SecurityGroup, label)
    new = iter(group.rules)
    rules = tuple(rule if rule and old == raw else next(new) for raw, (old, rule) in zip(listed, same, strict=True))
    return msgspec.structs.replace(group, rules=rules)
