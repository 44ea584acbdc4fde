"""The broom: finds by name and mark whatever a demo still has, and removes it.

The lab removes what it made by itself. But a signal may come between the making of a thing and the note that it was
made, so at the end everything that carries the demo's random name is looked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

from headrace.testing.topology import NAMESPACES, run

MARK = "HEADRACE_DEMO"
"""In the environment of every process of a demo; its value is the demo's prefix."""

NAME = re.compile(r"hr[0-9a-f]{6}")
"""What a topology is called."""

DEVICES = Path("/sys/class/net")
PATIENCE = 3.0
"""Seconds for a killed process to be gone."""


def sweep(prefix: str) -> list[str]:
    """Remove what is left of the demo with this prefix; says what that was."""
    left = found(prefix)
    _kill(prefix)
    for path in NAMESPACES.glob(f"{prefix}-*"):
        run(["ip", "netns", "delete", path.name], check=False)
    for path in DEVICES.glob(f"{prefix}*"):
        run(["ip", "link", "delete", path.name], check=False)
    for point in mounts(prefix):
        run(["umount", "--lazy", point], check=False)
    for directory in directories(prefix):
        shutil.rmtree(directory, ignore_errors=True)
    return left


def found(prefix: str) -> list[str]:
    """What there is of the demo, in words."""
    return [
        *(f"process {pid}" for pid in marked(prefix)),
        *(f"namespace {path.name}" for path in NAMESPACES.glob(f"{prefix}-*")),
        *(f"device {path.name}" for path in DEVICES.glob(f"{prefix}*")),
        *(f"mount {point}" for point in mounts(prefix)),
        *(f"directory {path}" for path in directories(prefix)),
    ]


def marked(prefix: str) -> list[int]:
    """Processes of the demo but for this one."""
    mark = f"{MARK}={prefix}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def directories(prefix: str) -> list[Path]:
    """Folders of the demo."""
    return sorted(Path(tempfile.gettempdir()).glob(f"{prefix}-*"))


def mounts(prefix: str) -> list[str]:
    """Mount points of the demo, innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if f"/{prefix}-" in point]


def _kill(prefix: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while (pids := marked(prefix)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
