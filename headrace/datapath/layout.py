"""Where the fields of a C struct are, by BTF; and records of one layout written in another. Pure.

A field is named by its path, ``counter[1].packets``. Fields of the same path are the same field: what both layouts
have is carried over, what only the new one has is zero, what only the old one has is left behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from headrace.datapath.btf import Btf, BtfError, Kind, Type

Records = np.ndarray[Any, np.dtype[np.uint8]]
"""One record a row, an octet a column."""

PADDING = re.compile(r"pad\d*")


class Leaf(NamedTuple):
    """A field that is no struct. Arrays of octets, and unions, are one; other arrays have a leaf for each element."""

    offset: int
    size: int
    big: bool = False
    octets: bool = False


class Layout(NamedTuple):
    """Size of a record in octets, and its fields by path."""

    size: int
    leaves: Mapping[str, Leaf]

    def column(self, records: Records, path: str) -> np.ndarray[Any, Any]:
        """One integer field of every record. Raises KeyError for a field that the layout lacks."""
        leaf = self.leaves[path]
        octets = np.ascontiguousarray(records[:, leaf.offset : leaf.offset + leaf.size])
        return octets.view(f"{'>' if leaf.big else '<'}u{leaf.size}").reshape(-1)

    def put(self, records: Records, path: str, values: np.ndarray[Any, Any] | int) -> None:
        """Write one integer field of every record."""
        leaf = self.leaves[path]
        column = np.empty(len(records), f"{'>' if leaf.big else '<'}u{leaf.size}")
        column[:] = values
        records[:, leaf.offset : leaf.offset + leaf.size] = column.view(np.uint8).reshape(len(records), leaf.size)

    def part(self, path: str) -> slice:
        """The octets of a struct within the record, by its path."""
        inside = [leaf for name, leaf in self.leaves.items() if name == path or name.startswith(f"{path}.")]
        if not inside:
            raise KeyError(path)
        return slice(min(leaf.offset for leaf in inside), max(leaf.offset + leaf.size for leaf in inside))


def layout_of(btf: Btf, type_id: int) -> Layout:
    """The layout of a type; of a plain integer too, whose path is empty."""
    item = btf.resolve(type_id)
    size = item.size if item.kind is not Kind.ARRAY else item.count * btf.resolve(item.ref).size
    return Layout(size, dict(_leaves(btf, type_id, "", 0)))


def _leaves(btf: Btf, type_id: int, path: str, offset: int) -> Iterator[tuple[str, Leaf]]:
    item = btf.resolve(type_id)
    match item.kind:
        case Kind.STRUCT:
            for member in item.members:
                if not PADDING.fullmatch(member.name):
                    name = f"{path}.{member.name}" if path else member.name
                    yield from _leaves(btf, member.type_id, name, offset + member.bit_offset // 8)
        case Kind.ARRAY:
            element = btf.resolve(item.ref)
            if element.kind is Kind.INT and element.size == 1:
                yield path, Leaf(offset, item.count, octets=True)
                return
            for number in range(item.count):
                yield from _leaves(btf, item.ref, f"{path}[{number}]", offset + number * _size(btf, element))
        case Kind.INT | Kind.ENUM | Kind.ENUM64 | Kind.UNION:
            big = any(name.startswith("__be") for name in btf.aliases(type_id))
            yield path, Leaf(offset, item.size, big, octets=item.kind is Kind.UNION)
        case _:
            raise BtfError(f"{btf.source}: {path} is no plain data")


def _size(btf: Btf, item: Type) -> int:
    return item.count * _size(btf, btf.resolve(item.ref)) if item.kind is Kind.ARRAY else item.size


def convert(old: Layout, new: Layout, records: Records) -> Records:
    """Records as the new layout has them. An integer too large for its new field becomes the largest that fits."""
    out = np.zeros((len(records), new.size), np.uint8)
    for source, target, length in _runs(old, new):
        out[:, target : target + length] = records[:, source : source + length]
    for path, after in new.leaves.items():
        before = old.leaves.get(path)
        if before is not None and before.size != after.size:
            _resize(records, before, out, after)
    return out


def _runs(old: Layout, new: Layout) -> list[tuple[int, int, int]]:
    """(offset before, offset after, octets) of what keeps its size, neighbours together."""
    same = [
        (before.offset, after.offset, after.size)
        for path, after in new.leaves.items()
        if (before := old.leaves.get(path)) is not None and before.size == after.size
    ]
    runs: list[tuple[int, int, int]] = []
    for source, target, length in sorted(same, key=lambda run: run[1]):
        if runs and (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]) == (source, target):
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + length)
        else:
            runs.append((source, target, length))
    return runs


def _resize(records: Records, before: Leaf, out: Records, after: Leaf) -> None:
    source = records[:, before.offset : before.offset + before.size]
    target = out[:, after.offset : after.offset + after.size]
    kept = min(before.size, after.size)
    if before.big:  # the low octets come last
        target[:, after.size - kept :] = source[:, before.size - kept :]
        cut = source[:, : before.size - kept]
    else:
        target[:, :kept] = source[:, :kept]
        cut = source[:, kept:]
    if cut.shape[1] and not after.octets:
        target[cut.any(axis=1)] = 0xFF
