"""The seam's room, without a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.agent.readiness import backlog
from headrace.agent.seam import BACKLOG, make_room


@pytest.mark.parametrize(("kept", "then"), [(1000, BACKLOG), (BACKLOG, BACKLOG), (300_000, 300_000)])
def test_a_cpu_keeps_enough_and_never_less_than_it_did(tmp_path: Path, kept: int, then: int) -> None:
    file = tmp_path / "netdev_max_backlog"
    file.write_text(f"{kept}\n")
    (before,) = backlog(file)
    assert before.found == (f"{kept}; the agent makes it {BACKLOG}" if kept < BACKLOG else str(kept))
    make_room(file)
    assert file.read_text() == f"{then}\n"
    (after,) = backlog(file)
    assert (after.state, after.found) == ("ok", str(then))


def test_a_host_that_does_not_let_us_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_room(tmp_path / "absent")
    assert not caplog.text
    assert not list(backlog(tmp_path / "absent"))
    (tmp_path / "wrong").write_text("none\n")
    make_room(tmp_path / "wrong")
    assert "net.core.netdev_max_backlog stays as it is" in caplog.text
