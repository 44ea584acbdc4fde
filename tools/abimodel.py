"""What an ABI is made of: structs, enums, maps and constants."""

from __future__ import annotations

import dataclasses
import hashlib
import json


class AbiError(Exception):
    """The ABI breaks a rule of the house; names the struct, enum or map and the place."""


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One member at an octet offset. ``struct`` names a nested struct; ``count`` is None unless it is an array."""

    name: str
    offset: int
    size: int
    """Octets of one element."""
    count: int | None = None
    signed: bool = False
    big: bool = False
    octets: bool = False
    """An array of octets, or a union: raw in Python."""
    padding: bool = False
    struct: str | None = None
    doc: str = ""

    @property
    def length(self) -> int:
        """Octets of the whole member."""
        return self.size * (1 if self.count is None else self.count)


@dataclasses.dataclass(frozen=True, slots=True)
class Struct:
    """One ``struct hr_*``; ``name`` without the prefix."""

    name: str
    size: int
    fields: tuple[Field, ...]
    doc: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Enum:
    """One ``enum hr_*``; enumerators with their C names, values and comments."""

    name: str
    values: tuple[tuple[str, int, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Map:
    """One map of the ``.maps`` section. ``key`` and ``value`` name a struct, or u32 or u64, where they are one."""

    name: str
    type: int
    max_entries: int
    flags: int
    pinning: int
    key_size: int
    value_size: int
    key: str | None
    value: str | None
    inner: Map | None = None
    doc: str = ""


@dataclasses.dataclass(slots=True)
class Abi:
    """Everything that user space may know of the datapath."""

    structs: dict[str, Struct] = dataclasses.field(default_factory=dict)
    enums: dict[str, Enum] = dataclasses.field(default_factory=dict)
    maps: dict[str, Map] = dataclasses.field(default_factory=dict)
    constants: dict[str, int] = dataclasses.field(default_factory=dict)

    def hash(self) -> str:
        """The first 12 hexadecimal digits of a hash over layouts, values and maps; documentation does not count."""
        layouts = {
            "structs": {name: dataclasses.asdict(item) for name, item in sorted(self.structs.items())},
            "enums": {name: [value[:2] for value in item.values] for name, item in sorted(self.enums.items())},
            "maps": {name: dataclasses.asdict(item) for name, item in sorted(self.maps.items())},
        }
        text = json.dumps(without_docs(layouts), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def without_docs(value: object) -> object:
    """A copy of nested data with every ``doc`` taken out."""
    if isinstance(value, dict):
        return {key: without_docs(item) for key, item in value.items() if key != "doc"}
    if isinstance(value, list | tuple):
        return [without_docs(item) for item in value]
    return value
