"""Reads desired state from YAML: as YAML 1.2 means it, and with every mistake named.

PyYAML follows YAML 1.1, where ``52:54:00:12:34:56`` is a number in base 60, ``no`` is false and 010 is 8.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

from headrace.errors import InvalidInput, UnknownField
from headrace.model import TYPES, Object, decode, plural
from headrace.strict import suggestion

Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(Base):  # type: ignore[misc]
    """YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), decimal numbers only; no key twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's
        """A mapping; raises for a key given twice, of which PyYAML takes the last."""
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"key `{twice}` is given twice", node.start_mark)
        return mapping


for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)


def read(content: bytes, name: str) -> list[Object]:
    """The objects in a file's documents. Raises InvalidInput naming file, object and field."""
    try:
        documents = list(yaml.load_all(content, Loader=Loader))
    except yaml.YAMLError as error:
        raise InvalidInput(f"{name}: {' '.join(str(error).split())}") from None
    kinds = {plural(type_name): type_name for type_name in TYPES}
    found: dict[tuple[str, str], Object] = {}
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise InvalidInput(f"{name}: a document is a mapping of lists ({', '.join(kinds)}), not a {kind(document)}")
        for collection, bodies in document.items():
            if collection not in kinds:
                hint = suggestion(str(collection), list(kinds)) or f"; known: {', '.join(kinds)}"
                raise UnknownField(f"{name}: unknown list `{collection}`{hint}")
            if not isinstance(bodies, list):
                raise InvalidInput(f"{name}: {collection}: give a list, not a {kind(bodies)}")
            for body in bodies:
                item = decode(kinds[collection], body)
                if found.setdefault((item.type, item.id), item) is not item:
                    raise InvalidInput(f"{name}: {item.label()} is given twice")
    return list(found.values())


def kind(value: object) -> str:
    """What YAML calls a value."""
    return {dict: "mapping", list: "list", str: "string", type(None): "null"}.get(type(value), type(value).__name__)
