"""What tests of this folder share: one host with the real programs, made new for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.model import Host, Object, State
from headrace.testing.host import PacketHost
from headrace.testing.play import Player
from headrace.testing.twin import Twin
from headrace.testing.world import HOSTS

MakeTwin = Callable[..., Twin]


@pytest.fixture(scope="session")
def host() -> Iterator[PacketHost]:
    """The programs, loaded once."""
    with PacketHost() as opened:
        yield opened


@pytest.fixture(scope="session")
def player(host: PacketHost) -> Iterator[Player]:
    """Both hosts."""
    with PacketHost() as peer:
        yield Player(host, peer)


@pytest.fixture
def twin(host: PacketHost) -> MakeTwin:
    """``twin(network, group, port, ...)``: host h1 of a state, asked together with the oracle."""

    def make(*objects: Object, hosts: tuple[Host, ...] = HOSTS, **options: Any) -> Twin:
        return Twin(host, State.of((*hosts, *objects)), "h1", **options)

    return make
