"""docs/adding-a-wire.md: that what it shows is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import wire_sizes
from headrace.datapath.wires import TUNNELS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/adding-a-wire.md").read_text()

TESTS = """
SEGMENTS = (Segment(id=1), Segment(type="gre", id=1), Segment(type="nsh", id=1,
    transport="ethernet"))
HEADERS = {
    "vxlan": {
        "good": 1,
    },
    "gre": {"good": 1},
}
NSH = {
    "good": 1,
}
HEADERS["nsh-ethernet"] = NSH
"""


@pytest.mark.parametrize(
    ("name", "wires", "found"),
    [
        ("vxlan", ("vxlan",), {2, 5, 6, 7}),
        ("gre", ("gre",), {2, 8}),
        ("nsh", ("nsh-gpe", "nsh-ethernet"), {2, 3, 10, 11, 12, 13}),
        ("geneve", ("geneve",), set()),
    ],
)
def test_lines_about_a_wire(name: str, wires: tuple[str, ...], found: set[int]) -> None:
    assert wire_sizes.about(TESTS, name, wires) == found


def test_every_wire_with_outer_headers_is_sized() -> None:
    sizes = wire_sizes.sizes()
    assert sorted(wire for size in sizes for wire in size.wires) == sorted(TUNNELS)
    for size in sizes:
        assert min(size.c, size.python, size.tests) > 0, size.name


def test_adding_a_wire_is_easy() -> None:
    """The smallest of them, whole: its C file, its Python module and all that its tests say of it."""
    smallest = min(wire_sizes.sizes(), key=lambda size: size.total)
    assert smallest.total < 100
    assert max(size.c for size in wire_sizes.sizes()) < 100


def test_what_the_page_names_is_there() -> None:
    text = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    paths = {
        found for found in re.findall(r"`((?:bpf|headrace|bench|tests|tools)/[\w/.]+)`", text) if "NAME" not in found
    }
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_page_is_as_the_files_are() -> None:
    """``make docs`` writes it; between its marks stands what the files have."""
    assert (ROOT / "bpf/stages/encap_vxlan.h").read_text() in PAGE
    assert (ROOT / "headrace/datapath/wires/vxlan.py").read_text() in PAGE
    assert wire_sizes.table() in PAGE


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("bpf/abi.h", "enum hr_where"),
        ("bpf/stages/encap.h", "HR_WIRES_UDP"),
        ("bpf/stages/encap.h", "HR_WIRES_GRE"),
        ("bpf/stages/encap.h", "HR_WIRES_ETHERNET"),
        ("bpf/xdp.bpf.c", "hr_xdp_push"),
        ("bpf/xdp.bpf.c", "HR_XDP_WRITE"),
        ("headrace/model/segment.py", "OVERHEAD"),
        ("headrace/model/segment.py", "TRANSPORTS"),
        ("headrace/testing/outer.py", "header_of"),
        ("headrace/testing/outer.py", "read_udp"),
        ("bench/rules.py", "SEGMENTS"),
    ],
)
def test_the_lists_are_called_so(path: str, name: str) -> None:
    assert name in PAGE
    assert name in (ROOT / path).read_text()
