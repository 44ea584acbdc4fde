"""What tests of this folder share."""

from __future__ import annotations

import pytest

from headrace.errors import Unavailable
from headrace.testing import kernel


@pytest.fixture(scope="session")
def lab_kernel() -> kernel.Kernel:
    """Debian's 6.1, fetched when it is not there yet; skips where no mirror answers."""
    try:
        return kernel.fetch()
    except Unavailable as error:
        pytest.skip(f"missing feature: Debian kernel 6.1 ({error})")
