"""Reads an ABI from the BTF of compiled objects, and from the header what BTF does not carry.

Refuses what would make two readers disagree about octets: bit-fields, implicit padding, pointers, floats.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
import re
from typing import TYPE_CHECKING, TypeVar

from abimodel import Abi, AbiError, Enum, Field, Map, Struct
from headrace.datapath.btf import Btf, Kind, Member, Type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

OPAQUE = {"bpf_timer": 16, "bpf_spin_lock": 4}
"""Kernel types that a map value may hold and that user space neither reads nor writes, with their sizes."""

BIG = re.compile(r"__be(16|32|64)|__sum16")
PADDING = re.compile(r"_*pad\d*")
OPERATORS: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}

Item = TypeVar("Item", Struct, Enum, Map)


def add_object(abi: Abi, btf: Btf) -> None:
    """Take in one object's types; two objects that differ about a name are an error."""
    for item in btf.of_kind(Kind.STRUCT):
        if item.name.startswith("hr_"):
            merge(abi.structs, read_struct(btf, item), btf.source)
    for item in btf.of_kind(Kind.ENUM, Kind.ENUM64):
        if item.name.startswith("hr_"):
            merge(abi.enums, read_enum(item), btf.source)
        elif not item.name:
            abi.constants |= {name: value for name, value in item.values if name.startswith("HR_")}
    for item in btf.of_kind(Kind.DATASEC):
        for variable in (btf.types[index] for index in item.variables if item.name == ".maps"):
            merge(abi.maps, read_map(btf, variable.name, variable.ref, doc_of(btf, variable.id)), btf.source)


def add_header(abi: Abi, path: Path) -> None:
    """Take in comments and ``#define HR_*`` numbers; check that the BTF lacks nothing declared here."""
    text = path.read_text()
    plain = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    for kind, known in (("struct", abi.structs.keys()), ("enum", abi.enums.keys())):
        missing = [name for name in re.findall(rf"\b{kind}\s+hr_(\w+)\s*\{{", plain) if name not in known]
        if missing:
            raise AbiError(f"{path}: {kind} hr_{missing[0]} is not in the BTF; use it in the object that is compiled")
    for name, entry in abi.enums.items():
        values = tuple((member, value, comment_doc(text, member)) for member, value, _ in entry.values)
        abi.enums[name] = Enum(name, values)
    for name, item in abi.structs.items():
        abi.structs[name] = struct_with_comments(item, text)
    for match in re.finditer(r"^[ \t]*#[ \t]*define[ \t]+(HR_\w+)[ \t]+((?:\\\n|[^\n])+)$", plain, re.MULTILINE):
        value = evaluate(match[2].replace("\\\n", " "), abi.constants)
        if value is not None:
            abi.constants[match[1]] = value


def merge(table: dict[str, Item], item: Item, source: str) -> None:
    """Add an item; refuse one that contradicts an earlier object."""
    if table.setdefault(item.name, item) != item:
        raise AbiError(f"{source}: {type(item).__name__.lower()} {item.name} differs from an earlier object's")


def read_struct(btf: Btf, item: Type) -> Struct:
    """Lay out one struct; every octet must belong to a member."""
    fields: list[Field] = []
    at = 0
    for field in members_of(btf, item, item.name, 0):
        if field.offset != at:
            raise AbiError(f"struct {item.name}: implicit padding at offset {at} before {field.name}; add a pad member")
        at += field.length
        fields.append(field)
    if at != item.size:
        raise AbiError(f"struct {item.name}: implicit padding at offset {at}, the end; add a pad member")
    if not at:
        raise AbiError(f"struct {item.name}: is empty")
    return Struct(item.name.removeprefix("hr_"), item.size, tuple(fields), doc_of(btf, item.id))


def read_enum(item: Type) -> Enum:
    """The enumerators. BTF of older compilers does not tell negative values from those of 2**31 and more."""
    for name, value in item.values:
        if not 0 <= value < 1 << 31:
            raise AbiError(f"enum {item.name}: {name} is not within 0 and 2**31 - 1; give it another value")
    return Enum(item.name.removeprefix("hr_"), tuple((name, value, "") for name, value in item.values))


def members_of(btf: Btf, item: Type, where: str, base: int) -> Iterator[Field]:
    """The fields of a struct, with those of its anonymous members lifted into it."""
    for index, member in enumerate(item.members):
        inner = btf.resolve(member.type_id)
        if member.bits or member.bit_offset % 8:
            raise AbiError(f"struct {where}: {member.name} at bit {member.bit_offset} is a bit-field; use whole octets")
        offset = base + member.bit_offset // 8
        if member.name:
            yield read_field(btf, where, member, offset, doc_of(btf, item.id, index))
        elif inner.kind is Kind.STRUCT:
            yield from members_of(btf, inner, where, offset)
        else:
            yield whole_member(btf, inner, where, offset)


def whole_member(btf: Btf, union: Type, where: str, offset: int) -> Field:
    """What an anonymous union is in Python: the one member that covers all of it."""
    named = [(index, member) for index, member in enumerate(union.members) if member.name]
    fields = [read_field(btf, where, member, offset, doc_of(btf, union.id, index)) for index, member in named]
    whole = [field for field in fields if field.length == union.size]
    if len(whole) != 1 or len(named) != len(union.members):
        raise AbiError(
            f"struct {where}: the anonymous union at offset {offset} has {len(whole)} members of its full size, "
            f"so nothing says what Python sees; give it exactly one, or name it (a named union is raw octets)"
        )
    return whole[0]


def read_field(btf: Btf, where: str, member: Member, offset: int, doc: str) -> Field:
    """One named member."""
    count = None
    type_id = member.type_id
    inner = btf.resolve(type_id)
    if inner.kind is Kind.ARRAY:
        count, type_id = inner.count, inner.ref
        inner = btf.resolve(type_id)
    names = btf.aliases(type_id)
    big = any(BIG.fullmatch(name) for name in names)
    raw = inner.kind is Kind.UNION and count is None
    octets = raw or (inner.kind is Kind.INT and inner.size == 1 and count is not None)
    padding = PADDING.fullmatch(member.name) is not None or inner.name in OPAQUE
    struct = None
    size = inner.size
    if inner.name in OPAQUE:
        size = OPAQUE[inner.name]
    elif inner.kind is Kind.STRUCT and inner.name.startswith("hr_"):
        struct = inner.name.removeprefix("hr_")
    elif not raw and inner.kind not in {Kind.INT, Kind.ENUM, Kind.ENUM64}:
        kind = inner.kind.name.lower()
        raise AbiError(
            f"struct {where}: {member.name} at offset {offset} is {kind} {inner.name!r}; use integers or struct hr_*"
        )
    if raw:
        count, size = inner.size, 1
    if size not in {1, 2, 4, 8} and not (struct or padding):
        raise AbiError(f"struct {where}: {member.name} at offset {offset} has {size} octets; use at most 8")
    return Field(member.name, offset, size, count, inner.signed and not octets, big, octets, padding, struct, doc)


def read_map(btf: Btf, name: str, type_id: int, doc: str) -> Map:
    """One map definition of the form that libbpf reads: integers as array lengths, types as pointers."""
    numbers: dict[str, int] = {}
    types: dict[str, Type] = {}
    inner = None
    for member in btf.resolve(type_id).members:
        target = btf.resolve(member.type_id)
        if member.name == "values":
            element = btf.resolve(btf.resolve(target.ref).ref if target.kind is Kind.ARRAY else target.ref)
            inner = read_map(btf, f"{name}.values", element.id, "") if element.kind is Kind.STRUCT else None
        elif target.kind is Kind.PTR and member.name in {"key", "value"}:
            types[member.name] = btf.resolve(target.ref)
        elif target.kind is Kind.PTR and btf.resolve(target.ref).kind is Kind.ARRAY:
            numbers[member.name] = btf.resolve(target.ref).count
        else:
            raise AbiError(f"map {name}: cannot read {member.name}; define it with __uint, __type or __array")
    if "type" not in numbers:
        raise AbiError(f"map {name}: has no type")

    def packed(part: str) -> str | None:
        item = types.get(part)
        if item is None:
            return None
        if item.kind is Kind.INT and item.size in {4, 8} and not item.signed:
            return f"u{item.size * 8}"
        return item.name.removeprefix("hr_") if item.kind is Kind.STRUCT and item.name.startswith("hr_") else None

    def size(part: str) -> int:
        return size_of(btf, types[part]) if part in types else numbers.get(f"{part}_size", 0)

    return Map(
        name=name,
        type=numbers["type"],
        max_entries=numbers.get("max_entries", 0),
        flags=numbers.get("map_flags", 0),
        pinning=numbers.get("pinning", 0),
        key_size=size("key"),
        value_size=size("value"),
        key=packed("key"),
        value=packed("value"),
        inner=inner,
        doc=doc,
    )


def size_of(btf: Btf, item: Type) -> int:
    """Octets of a key or value type; an array has none of its own in BTF."""
    return item.count * size_of(btf, btf.resolve(item.ref)) if item.kind is Kind.ARRAY else item.size


def doc_of(btf: Btf, type_id: int, component: int = -1) -> str:
    """The text of ``btf_decl_tag("doc:...")``, or nothing."""
    texts = [tag.removeprefix("doc:").strip() for tag in btf.tags(type_id, component) if tag.startswith("doc:")]
    return " ".join(texts)


def comment_doc(text: str, name: str) -> str:
    """The comment beside a declaration: ``HR_REASON_X = 3, /* text */`` or ``__u32 where; /* text */``."""
    match = re.search(rf"^[^/\n]*\b{name}\b[^,;/\n}}]*[,;]?[ \t]*/\*+<?(.*?)\*/", text, re.DOTALL | re.MULTILINE)
    return one_line(match[1]) if match else ""


def one_line(comment: str) -> str:
    """The text of a C comment without its margin."""
    return re.sub(r"\s*\n\s*\*?\s*", " ", comment).strip()


def struct_with_comments(item: Struct, text: str) -> Struct:
    """The struct with the header's comments where no declaration tag documents it."""
    comment = r"(?:^/\*((?:[^*]|\*(?!/))*)\*/\s*)?"
    braces = r"\{(?:([^\n]*)\}[^\n]*$|[^\n]*\n(.*?)^\})"
    match = re.search(rf"{comment}\bstruct\s+hr_{item.name}\s*{braces}", text, re.DOTALL | re.MULTILINE)
    if match is None:
        return item
    before, body = match[1] or "", match[2] or match[3] or ""
    fields = tuple(dataclasses.replace(field, doc=field.doc or comment_doc(body, field.name)) for field in item.fields)
    return dataclasses.replace(item, fields=fields, doc=item.doc or one_line(before))


def evaluate(expression: str, known: Mapping[str, int]) -> int | None:
    """The value of a constant integer expression in C, or None if it is not one."""
    plain = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", expression)

    def visit(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name):
                return known[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -visit(operand)
            case ast.BinOp(left=left, op=op, right=right):
                return OPERATORS[type(op)](visit(left), visit(right))
        raise KeyError

    try:
        return visit(ast.parse(plain.strip(), mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None
