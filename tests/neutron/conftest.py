"""One Neutron, one controller for the whole session; each test makes projects of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.wait import wait_until
from tests.neutron.lab import SOON, Controller, Neutron, stack
from tests.neutron.mirror import differences

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what openstacksdk and Neutron's own tests have to say about themselves."""
    for item in items:
        if item.path.is_relative_to(HERE):
            for warning in ("PendingDeprecationWarning", "pytest.PytestUnhandledThreadExceptionWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{warning}"))


@pytest.fixture(scope="session")
def _stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Controller, Neutron]]:
    with stack(tmp_path_factory.mktemp("n", numbered=True)) as made:
        yield made


@pytest.fixture
def neutron(_stack: tuple[Controller, Neutron]) -> Neutron:
    return _stack[1]


@pytest.fixture
def controller(_stack: tuple[Controller, Neutron]) -> Controller:
    return _stack[0]


@pytest.fixture
def admin(neutron: Neutron) -> Any:
    return neutron.admin()


@pytest.fixture
def cloud(neutron: Neutron) -> Any:
    """A project nobody else uses."""
    return neutron.cloud(uuid.uuid4().hex)


@pytest.fixture
def host() -> str:
    """The name of a host nobody else uses."""
    return f"host-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def equal(controller: Controller, admin: Any) -> Any:
    """Wait until the controller holds exactly what Neutron has."""

    def wait(timeout: float = SOON) -> None:
        try:
            wait_until(lambda: not differences(admin, controller), timeout)
        except TimeoutError:
            pytest.fail("the mirror differs:\n" + "\n".join(differences(admin, controller)[:20]))

    return wait
