"""The demo itself: it shows what it promises, and leaves nothing behind, whenever it ends. The race is the bench's."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing.demo import remains
from headrace.testing.wait import wait_until

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.needs("root", "bpf", "netns", "tun", "qemu", "mariadb", "nft", "program:curl", "program:busybox"),
]

NAME = re.compile(r"\bhr[0-9a-f]{6}\b")
PHASES = {
    "as the controller starts": (NAME.pattern, signal.SIGINT, "keyboard"),
    "as Neutron starts": ("underlay and agents: ", signal.SIGTERM, "operator"),
    "as workloads are plugged in": ("vif_type tap", signal.SIGINT, "keyboard"),
}


class Demo:
    """One run. ``prefix``: what everything of it is named by."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "headrace.testing.demo", *arguments]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def prefix(self) -> str:
        found = NAME.search(self.output)
        assert found, self.output
        return found[0]

    def wait_for(self, pattern: str, timeout: float) -> None:
        wait_until(lambda: re.search(pattern, self.output) or self.process.poll() is not None, timeout, pattern)
        assert self.process.poll() is None, self.output

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if NAME.search(self.output):
            remains.sweep(self.prefix)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Any]:
    made: list[Demo] = []

    def start(*arguments: str) -> Demo:
        made.append(Demo(tmp_path / "demo.log", *arguments))
        return made[-1]

    yield start
    for each in made:
        each.end()


def test_what_it_promises_is_so(demo: Any) -> None:
    run = demo("--once", "--no-race")
    status = run.process.wait(240)
    assert status == 0, run.output
    assert "everything was as promised" in run.output
    assert "also removed" not in run.output, "the lab removes all by itself"
    assert remains.found(run.prefix) == []


@pytest.mark.parametrize("phase", PHASES)
def test_broken_off_it_leaves_nothing(demo: Any, phase: str) -> None:
    pattern, number, who = PHASES[phase]
    run = demo("--once", "--no-race")
    run.wait_for(pattern, 120)
    assert remains.found(run.prefix)
    if who == "keyboard":  # a terminal's Ctrl-C reaches the whole group
        subprocess.run(["kill", f"-{number.name.removeprefix('SIG')}", "--", f"-{run.process.pid}"], check=True)
    else:
        run.process.send_signal(number)
    assert run.process.wait(30) == 128 + number, run.output
    assert remains.found(run.prefix) == []
