"""Records of one C layout become those of another: by the names of fields, in bulk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.datapath.btf import Btf
from headrace.datapath.layout import Layout, Leaf, Records, convert, layout_of
from headrace.testing.clang import FLAGS

OLD = """
struct inner { __u64 packets; __u64 octets; };
struct hr_it { __u64 id; __be16 port; __u16 gone; __u32 small; struct inner counter[2]; __u8 mac[6]; __u8 pad[2]; };
"""
NEW = """
struct inner { __u64 octets; __u64 fresh; __u64 packets; };
struct hr_it { __u32 small; __u8 mac[8]; __be32 port; __u64 more; __u64 id; struct inner counter[3]; };
"""


def compiled(folder: Path, name: str, text: str) -> Layout:
    """The layout that clang gives ``struct hr_it``."""
    source = folder / f"{name}.c"
    source.write_text(f"#include <linux/types.h>\n{text}\nstruct hr_it *keep;\n")
    subprocess.run(["clang", *FLAGS, "-c", str(source), "-o", str(folder / f"{name}.o")], check=True)
    btf = Btf.read(folder / f"{name}.o")
    return layout_of(btf, next(item.id for item in btf.types if item.name == "hr_it"))


@pytest.mark.needs("clang")
def test_fields_go_where_the_new_build_has_them(tmp_path: Path) -> None:
    old, new = compiled(tmp_path, "old", OLD), compiled(tmp_path, "new", NEW)
    assert old.leaves["port"] == Leaf(8, 2, big=True)
    records: Records = np.zeros((3, old.size), np.uint8)
    old.put(records, "id", np.array([1, 2**63, 3]))
    old.put(records, "port", np.array([80, 443, 65535]))
    old.put(records, "counter[1].packets", np.array([7, 8, 2**60]))
    old.put(records, "counter[0].octets", 9)
    records[:, old.leaves["mac"].offset : old.leaves["mac"].offset + 6] = 0xAB
    made = convert(old, new, records)
    assert made.shape == (3, new.size)
    assert new.column(made, "id").tolist() == [1, 2**63, 3]
    assert new.column(made, "port").tolist() == [80, 443, 65535]
    assert new.column(made, "counter[1].packets").tolist() == [7, 8, 2**60]
    assert new.column(made, "counter[0].octets").tolist() == [9, 9, 9]
    assert new.column(made, "more").tolist() == new.column(made, "counter[2].octets").tolist() == [0, 0, 0]
    mac = new.leaves["mac"].offset
    assert made[0, mac : mac + 8].tolist() == [0xAB] * 6 + [0, 0]
    back = convert(new, old, made)
    assert (back == records).all()


@pytest.mark.parametrize("big", [False, True])
def test_what_does_not_fit_becomes_the_largest_that_does(big: bool) -> None:  # noqa: FBT001
    old, new = Layout(4, {"n": Leaf(0, 4, big)}), Layout(2, {"n": Leaf(0, 2, big)})
    records: Records = np.zeros((3, 4), np.uint8)
    old.put(records, "n", np.array([5, 65535, 65536]))
    assert new.column(convert(old, new, records), "n").tolist() == [5, 65535, 65535]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Some of ten fields, in any order, with gaps."""
    names = draw(st.lists(st.sampled_from("abcdefghij"), unique=True))
    leaves, at = {}, 0
    for name in names:
        at += draw(st.integers(0, 3))
        leaves[name] = Leaf(at, 1 << ord(name) % 4, big=name < "d")
        at += leaves[name].size
    return Layout(at + draw(st.integers(0, 3)), leaves)


@given(layouts(), layouts(), st.binary(min_size=256, max_size=256))
def test_every_common_field_keeps_its_value(old: Layout, new: Layout, octets: bytes) -> None:
    records = np.frombuffer(octets[: 4 * old.size], np.uint8).reshape(4, old.size)
    made = convert(old, new, records)
    for name in new.leaves:
        expected = old.column(records, name).tolist() if name in old.leaves else [0] * 4
        assert new.column(made, name).tolist() == expected
