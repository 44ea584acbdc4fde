"""A reader of BTF, the type information that clang leaves in a BPF object.

Format: Documentation/bpf/btf.rst of the Linux kernel; ELF64 as in the System V ABI. Little endian only,
as every host that Headrace runs on.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class BtfError(Exception):
    """The object is not one that this reader understands; names the file or the type."""


class Kind(enum.IntEnum):
    """``BTF_KIND_*`` of include/uapi/linux/btf.h."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


QUALIFIERS = frozenset({Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One member of a struct or union; ``bit_offset`` from its start, ``bits`` non-zero for a bit-field."""

    name: str
    type_id: int
    bit_offset: int
    bits: int


@dataclasses.dataclass(frozen=True, slots=True)
class Type:
    """One type. ``size`` is in octets where the kind has one; ``ref`` is the type it points at or wraps."""

    id: int
    kind: Kind
    name: str
    size: int = 0
    ref: int = 0
    count: int = 0
    """Elements of an array; component index of a declaration tag."""
    signed: bool = False
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()
    """Enumerators of an enum."""
    variables: tuple[int, ...] = ()
    """Variables of a data section."""


class Btf:
    """All types of one object, by id."""

    def __init__(self, data: bytes, source: str) -> None:
        self.source = source
        magic, _version, _flags, header, type_off, type_len, str_off, str_len = struct.unpack_from("<HBBIIIII", data)
        if magic != 0xEB9F:
            raise BtfError(f"{source}: the .BTF section is not little-endian BTF")
        self._strings = data[header + str_off : header + str_off + str_len]
        self.types = [Type(0, Kind.VOID, "void")]
        self._parse(data[header + type_off : header + type_off + type_len])

    @classmethod
    def read(cls, path: Path) -> Btf:
        """Read the ``.BTF`` section of an object file."""
        return cls(section(path.read_bytes(), ".BTF", str(path)), str(path))

    def of_kind(self, *kinds: Kind) -> Iterator[Type]:
        """Every type of these kinds, in the order of the file."""
        return (item for item in self.types if item.kind in kinds)

    def strip(self, type_id: int) -> Type:
        """The type below const, volatile, restrict and type tags; typedefs stay."""
        item = self.types[type_id]
        while item.kind in QUALIFIERS:
            item = self.types[item.ref]
        return item

    def resolve(self, type_id: int) -> Type:
        """The type below qualifiers and typedefs."""
        item = self.strip(type_id)
        while item.kind is Kind.TYPEDEF:
            item = self.strip(item.ref)
        return item

    def aliases(self, type_id: int) -> list[str]:
        """The typedef names from the outermost to the innermost: ``['__be32', '__u32']``."""
        names = []
        item = self.strip(type_id)
        while item.kind is Kind.TYPEDEF:
            names.append(item.name)
            item = self.strip(item.ref)
        return names

    def tags(self, type_id: int, component: int = -1) -> list[str]:
        """Declaration tags of a type or variable, or of one of its members."""
        found = (item for item in self.of_kind(Kind.DECL_TAG) if item.ref == type_id)
        return [item.name for item in found if item.count == component]

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _parse(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            name_off, info, size = struct.unpack_from("<III", data, at)
            count, kind_number, flag = info & 0xFFFF, info >> 24 & 0x1F, bool(info >> 31)
            at += 12
            try:
                kind = Kind(kind_number)
            except ValueError:
                raise BtfError(f"{self.source}: unknown BTF kind {kind_number}; teach tools/btf.py") from None
            item = Type(len(self.types), kind, self._name(name_off), size=size, ref=size, count=count)
            item, used = self._tail(item, data, at, flag=flag)
            at += used
            self.types.append(item)

    def _tail(self, item: Type, data: bytes, at: int, *, flag: bool) -> tuple[Type, int]:
        """Read what follows the common header; answer the completed type and its length in octets."""
        count = item.count
        match item.kind:
            case Kind.INT:
                (word,) = struct.unpack_from("<I", data, at)
                return dataclasses.replace(item, signed=bool(word >> 24 & 1), ref=0), 4
            case Kind.ARRAY:
                element, _index, number = struct.unpack_from("<III", data, at)
                return dataclasses.replace(item, size=0, ref=element, count=number), 12
            case Kind.STRUCT | Kind.UNION:
                rows = [struct.unpack_from("<III", data, at + 12 * index) for index in range(count)]
                members = tuple(
                    Member(self._name(name), ref, offset & 0xFFFFFF if flag else offset, offset >> 24 if flag else 0)
                    for name, ref, offset in rows
                )
                return dataclasses.replace(item, ref=0, members=members), 12 * count
            case Kind.ENUM | Kind.ENUM64:
                step, layout = (
                    (8, "<Ii" if flag else "<II") if item.kind is Kind.ENUM else (12, "<Iq" if flag else "<IQ")
                )
                rows = [struct.unpack_from(layout, data, at + step * index) for index in range(count)]
                values = tuple((self._name(name), value) for name, value in rows)
                return dataclasses.replace(item, ref=0, signed=flag, values=values), step * count
            case Kind.FUNC_PROTO:
                return item, 8 * count
            case Kind.VAR:
                return item, 4
            case Kind.DATASEC:
                rows = [struct.unpack_from("<III", data, at + 12 * index) for index in range(count)]
                return dataclasses.replace(item, ref=0, variables=tuple(row[0] for row in rows)), 12 * count
            case Kind.DECL_TAG:
                (component,) = struct.unpack_from("<i", data, at)
                return dataclasses.replace(item, count=component), 4
            case _:
                return item, 0


def section(data: bytes, name: str, source: str) -> bytes:
    """The contents of one ELF section."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise BtfError(f"{source}: not a little-endian ELF64 object")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry, number, names_index = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + index * entry) for index in range(number)]
    names = headers[names_index][4]
    for name_off, _type, _flags, _address, offset, size in headers:
        start = names + name_off
        if data[start : data.index(b"\0", start)] == name.encode():
            return data[offset : offset + size]
    raise BtfError(f"{source}: no {name} section; compile with -g and strip with `llvm-strip -g`")
