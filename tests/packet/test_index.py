"""Indices: kept over restarts, rested before they are used again, and never taken from what is named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace import abi
from headrace.datapath.bpf import Datapath, Sizes
from headrace.datapath.bpfmap import Map
from headrace.datapath.index import KernelIndex, digest
from headrace.errors import DatapathError
from headrace.testing.host import PacketHost

IN_USE: dict[str, set[int]] = {"port": {2}, "endpoint": set(), "vtep": set(), "physical": set()}


@pytest.fixture
def names(host: PacketHost) -> Iterator[Map]:
    """An empty hr_names in the kernel."""
    with Datapath(host.stand.bpffs() / "headrace", Sizes(connections=64)) as datapath:
        yield datapath.maps["hr_names"]


def test_a_restart_gives_the_same(names: Map) -> None:
    first = KernelIndex(names, lambda: IN_USE)
    given = [first.port("a on blue"), first.port("a on red"), first.vtep("192.0.2.1"), first.endpoint("port b")]
    assert len(set(given[:2])) == 2
    again = KernelIndex(names, lambda: IN_USE)
    assert again.endpoint("port b") == given[3]
    assert again.vtep("192.0.2.1") == given[2]
    assert [again.port("a on red"), again.port("a on blue")] == [given[1], given[0]]


def test_a_port_keeps_the_index_that_it_had_by_its_id(names: Map) -> None:
    """An upgrade from a version that named ports so; who comes to another network later has another."""
    names.update(digest("port", "a"), abi.Name(index=7).pack())
    index = KernelIndex(names, lambda: IN_USE)
    assert index.port("a on blue") == 7
    assert index.port("a on red") != 7
    assert not index.drift()
    assert names.lookup(digest("port", "a")) is None
    assert KernelIndex(names, lambda: IN_USE).port("a on blue") == 7


def test_an_index_is_given_again_when_none_is_left_and_nothing_names_it(names: Map) -> None:
    index = KernelIndex(names, lambda: IN_USE)
    given = [index.port(f"p{number} on n") for number in range(abi.PORTS - 1)]
    assert sorted(given) == list(range(1, abi.PORTS))
    assert 2 in given[:3]
    new = ["new1 on n", "new2 on n"]
    index.begin({"port": [*(f"p{number} on n" for number in range(3, abi.PORTS)), *new, "one too many on n"]})
    assert {index.port(name) for name in new} == set(given[:3]) - {2}
    with pytest.raises(DatapathError, match="all 4095 port indices of this host are in use; move ports"):
        index.port("one too many on n")
