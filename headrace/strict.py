"""Turns JSON, TOML or YAML values into types, and explains what does not fit: object, field, nearest known name."""

from __future__ import annotations

import difflib
import re
from typing import TypeVar

import msgspec
from msgspec import inspect

from headrace.errors import InvalidInput, UnknownField

Wanted = TypeVar("Wanted")


def decode(data: bytes, type_: type[Wanted], what: str) -> Wanted:
    """Decode JSON; raises InvalidInput (UnknownField) naming ``what`` and the field."""
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.MsgspecError as error:
        raise explain(error, type_, what) from None


def convert(value: object, type_: type[Wanted], what: str) -> Wanted:
    """Convert decoded values; raises InvalidInput (UnknownField) naming ``what`` and the field."""
    try:
        return msgspec.convert(value, type_, strict=True)
    except msgspec.ValidationError as error:
        raise explain(error, type_, what) from None


def explain(error: msgspec.MsgspecError, type_: object, what: str) -> InvalidInput:
    """The error to raise for what msgspec found."""
    text = str(error)
    unknown = re.search(r"unknown field `([^`]*)`(?: - at `([^`]*)`)?", text)
    if not unknown:
        return InvalidInput(f"{what}: {text}")
    return UnknownField(f"{what}: {text}{suggestion(unknown[1], fields_at(type_, unknown[2] or '$'))}")


def suggestion(name: str, known: list[str]) -> str:
    """``; did you mean `X`?`` when one of the known names is near."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean `{close[0]}`?" if close else ""


def fields_at(type_: object, path: str) -> list[str]:
    """The field names of the struct at a path as msgspec writes it: ``$.rules[...].remote``."""
    found = [inspect.type_info(type_)]
    for name, _index in re.findall(r"\.([A-Za-z_]\w*)|(\[[^\]]*\])", path):
        found = [inner for outer in found for inner in step(outer, name)]
    structs = [kind for outer in found for kind in alternatives(outer) if isinstance(kind, inspect.StructType)]
    return [field.encode_name for struct in structs for field in struct.fields]


def alternatives(kind: inspect.Type) -> list[inspect.Type]:
    """The members of a union, or the type itself."""
    return list(kind.types) if isinstance(kind, inspect.UnionType) else [kind]


def step(kind: inspect.Type, name: str) -> list[inspect.Type]:
    """What may stand one step further: below a field's name, or (empty) at an index."""
    found: list[inspect.Type] = []
    for option in alternatives(kind):
        match option:
            case inspect.StructType() if name:
                found += [field.type for field in option.fields if field.encode_name == name]
            case inspect.DictType():
                found.append(option.value_type)
            case inspect.ListType() | inspect.VarTupleType() | inspect.SetType() if not name:
                found.append(option.item_type)
    return found
