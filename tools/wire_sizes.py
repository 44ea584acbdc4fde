"""How many lines each wire takes: its C file, its Python module, and what is about it in the two tests of all wires."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = ("tests/packet/test_wires.py", "tests/packet/test_wire_hostile.py")
NO_WIRE = {"vlan": "tags are another kind of thing"}
"""Files of the family that are none."""


class Size(NamedTuple):
    """Lines of a file's wires. ``wires``: as headrace/model/segment.py calls them."""

    name: str
    wires: tuple[str, ...]
    c: int
    python: int
    tests: int

    @property
    def total(self) -> int:
        return self.c + self.python + self.tests


def sizes() -> list[Size]:
    """Of each ``bpf/stages/encap_NAME.h``, by name."""
    from headrace.model.segment import OVERHEAD

    found = []
    for path in sorted(ROOT.glob("bpf/stages/encap_*.h")):
        name = path.stem.removeprefix("encap_")
        if name not in NO_WIRE:
            wires = tuple(wire for wire in OVERHEAD if wire.partition("-")[0] == name)
            python = lines(ROOT / f"headrace/datapath/wires/{name}.py")
            tests = sum(len(about((ROOT / test).read_text(), name, wires)) for test in TESTS)
            found.append(Size(name, wires, lines(path), python, tests))
    return found


def lines(path: Path) -> int:
    """Of a whole file, blank ones and comments too."""
    return len(path.read_text().splitlines())


def about(source: str, name: str, wires: tuple[str, ...]) -> set[int]:
    """Numbers of the lines about a wire: what dictionaries have of it, its segments, and what is called like it."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for first, last in spans(node, name, wires):
            found.update(range(first, last + 1))
    return found


def spans(node: ast.AST, name: str, wires: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """First and last line of what a node says of a wire."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value in {name, *wires}:
                yield key.lineno, value.end_lineno or value.lineno
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id == name.upper():
            yield node.lineno, node.end_lineno or node.lineno
        if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant) and target.slice.value in wires:
            yield node.lineno, node.end_lineno or node.lineno
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Segment":
        kinds = [
            word.value.value for word in node.keywords if word.arg == "type" and isinstance(word.value, ast.Constant)
        ]
        if (kinds or ["vxlan"]) == [name]:
            yield node.lineno, node.end_lineno or node.lineno


def table() -> str:
    """Rows in Markdown, the smallest first."""
    head = "| File | Wires | C | Python | in the two tests | together |\n|---|---|---:|---:|---:|---:|\n"
    rows = sorted(sizes(), key=lambda size: (size.total, size.name))
    return head + "".join(
        f"| {size.name} | {', '.join(size.wires)} | {size.c} | {size.python} | {size.tests} | {size.total} |\n"
        for size in rows
    )
