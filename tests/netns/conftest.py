"""What tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace.errors import Unavailable
from headrace.testing import kernel
from headrace.testing.cloud import Cloud
from headrace.testing.scene import Scene
from headrace.testing.topology import Topology


@pytest.fixture(scope="session")
def lab_kernel() -> kernel.Kernel:
    """Debian's 6.1, fetched when it is not there yet; skips where no mirror answers."""
    try:
        return kernel.fetch()
    except Unavailable as error:
        pytest.skip(f"missing feature: Debian kernel 6.1 ({error})")


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """Two hosts, for tests that leave their agents alive."""
    with Topology() as topology, Cloud(topology) as made:
        yield made


@pytest.fixture
def scene(cloud: Cloud) -> Iterator[Scene]:
    """A network of the cloud for one test."""
    with Scene(cloud) as made:
        yield made
