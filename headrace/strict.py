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
        raise explain(error, type_, what, value) from None


def explain(error: msgspec.MsgspecError, type_: object, what: str, value: object = None) -> InvalidInput:
    """The error to raise for what msgspec found in ``value``, as far as that is known."""
    text = str(error)
    if (plain := in_words(text, type_, value)) is not None:
        return InvalidInput(f"{what}: {plain}")
    unknown = re.search(r"unknown field `([^`]*)`(?: - at `([^`]*)`)?", text)
    if not unknown:
        return InvalidInput(f"{what}: {text}")
    return UnknownField(f"{what}: {text}{suggestion(unknown[1], fields_at(type_, unknown[2] or '$'))}")


def in_words(text: str, type_: object, value: object) -> str | None:
    """Field, value and what is allowed, of a mistake that msgspec tells by a pattern or a type; else None."""
    found = re.search(r" - at `(\$[^`]*)`$", text)
    if found is None:
        return None
    path = found[1]
    field = re.findall(r"[A-Za-z_]\w*", path)[-1:]
    name = field[0] if field else ""
    if text.startswith("Invalid enum value"):
        allowed = [str(one) for kind in types_at(type_, path) for one in literals(kind)]
        given = text.partition(" - at ")[0].removeprefix("Invalid enum value ")
        return f"{name}: {given} is none of {', '.join(allowed)}"
    form = next((form for form in FORMS if name in form.fields), None)
    if form is None or not (text.startswith("Expected `str` matching") or "got `str`" in text):
        return None
    wrong = next((one for one in values_at(value, path) if isinstance(one, str) and not form.fits(one)), None)
    return None if wrong is None else f"{name}: {wrong!r} is not {form.words}"


class Form(msgspec.Struct, frozen=True):
    """What a field takes, in words. ``pattern``: of a text that is right; none is where a number is wanted."""

    fields: frozenset[str]
    words: str
    pattern: str = "(?!)"

    def fits(self, text: str) -> bool:
        """Whether a text is right."""
        return re.fullmatch(self.pattern, text) is not None


FORMS = (
    Form(
        frozenset({"mac"}),
        "a MAC address in lower case, written as 52:54:00:12:34:56",
        "[0-9a-f]{2}(:[0-9a-f]{2}){5}",
    ),
    Form(
        frozenset({"protocol"}), "a protocol's number: tcp is 6, udp 17, sctp 132, icmp 1, ipv6-icmp 58; none means any"
    ),
    Form(
        frozenset({"id", "network", "host", "security_groups", "remote_group", "remote_address_group"}),
        "an id: 1 to 64 letters, digits and _.:- that begin with a letter or digit",
        "[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}",
    ),
)


def values_at(value: object, path: str) -> list[object]:
    """What stands at a path as msgspec writes it; of a list, every element where it does not say which."""
    found = [value]
    for name, index in re.findall(r"\.([A-Za-z_]\w*)|\[([^\]]*)\]", path):
        if name:
            found = [one[name] for one in found if isinstance(one, dict) and name in one]
        elif index.isdigit():
            found = [one[int(index)] for one in found if isinstance(one, list) and int(index) < len(one)]
        else:
            found = [item for one in found if isinstance(one, list) for item in one]
    return found


def types_at(type_: object, path: str) -> list[inspect.Type]:
    """The types of what may stand at a path."""
    found = [inspect.type_info(type_)]
    for name, _index in re.findall(r"\.([A-Za-z_]\w*)|(\[[^\]]*\])", path):
        found = [inner for outer in found for inner in step(outer, name)]
    return found


def literals(kind: inspect.Type) -> list[object]:
    """The values that a type names one by one."""
    return [one for option in alternatives(kind) if isinstance(option, inspect.LiteralType) for one in option.values]


def suggestion(name: str, known: list[str]) -> str:
    """``; did you mean `X`?`` when one of the known names is near."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean `{close[0]}`?" if close else ""


def fields_at(type_: object, path: str) -> list[str]:
    """The field names of the struct at a path as msgspec writes it: ``$.rules[...].remote``."""
    structs = [
        kind for outer in types_at(type_, path) for kind in alternatives(outer) if isinstance(kind, inspect.StructType)
    ]
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
