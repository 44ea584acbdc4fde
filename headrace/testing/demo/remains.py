"""The broom: finds by name and mark whatever a demo still has, and removes it.

The lab removes what it made by itself. But a signal may come between the making of a thing and the note that it was
made, so at the end everything that carries the demo's random name is looked for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from headrace.testing.topology import NAMESPACES, CommandFailed, run

MARK = "HEADRACE_DEMO"
"""In the environment of every process of a demo; its value is the demo's prefix."""

PATIENCE = 3.0
"""Seconds for a killed process to be gone."""


def sweep(prefix: str) -> list[str]:
    """Remove what is left of the demo with this prefix; says what that was."""
    swept = [*_processes(prefix), *_namespaces(prefix), *_links(prefix), *_mounts(prefix)]
    for directory in directories(prefix):
        shutil.rmtree(directory, ignore_errors=True)
        swept.append(f"directory {directory}")
    return swept


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


def _processes(prefix: str) -> Iterator[str]:
    pids = marked(prefix)
    for pid in pids:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            os.kill(pid, signal.SIGKILL)
            yield f"process {pid} ({name})"
    deadline = time.monotonic() + PATIENCE
    while pids and marked(prefix) and time.monotonic() < deadline:
        time.sleep(0.02)


def _namespaces(prefix: str) -> Iterator[str]:
    for path in NAMESPACES.glob(f"{prefix}-*"):
        with contextlib.suppress(CommandFailed):
            run(["ip", "netns", "delete", path.name])
            yield f"namespace {path.name}"


def _links(prefix: str) -> Iterator[str]:
    for path in Path("/sys/class/net").glob(f"{prefix}*"):
        with contextlib.suppress(CommandFailed):
            run(["ip", "link", "delete", path.name])
            yield f"device {path.name}"


def _mounts(prefix: str) -> Iterator[str]:
    for point in mounts(prefix):
        with contextlib.suppress(CommandFailed):
            run(["umount", "--lazy", point])
            yield f"mount {point}"
