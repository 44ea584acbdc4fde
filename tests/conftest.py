"""Skips that name the missing feature, and in CI only those that tests/allowed-skips.txt lists.

``@pytest.mark.needs("root", "tun")`` skips where a feature is missing. Folders need some by themselves: see FOLDERS.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=5000, deadline=None)
settings.load_profile("ci")

HERE = Path(__file__).parent
ALLOWED = HERE / "allowed-skips.txt"

FOLDERS = {
    "packet": ("root", "bpf"),
    "netns": ("root", "bpf", "netns"),
    "neutron": ("neutron",),
}
"""What every test of a folder needs."""


def has_bpf() -> bool:
    """Whether the kernel describes itself in BTF and this process may load programs (CAP_BPF or CAP_SYS_ADMIN)."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    return Path("/sys/kernel/btf/vmlinux").exists() and bool(effective & (1 << 39 | 1 << 21))


FEATURES: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    "bpf": has_bpf,
    "netns": lambda: os.geteuid() == 0 and Path("/proc/self/ns/net").exists() and shutil.which("ip") is not None,
    "tun": lambda: Path("/dev/net/tun").exists(),
    "neutron": lambda: importlib.util.find_spec("neutron") is not None,
    "qemu": lambda: shutil.which("qemu-system-x86_64") is not None,
    "clang": lambda: shutil.which("clang") is not None,
    "nft": lambda: shutil.which("nft") is not None,
    "ovs": lambda: shutil.which("ovs-vsctl") is not None,
    "mariadb": lambda: shutil.which("mariadbd") is not None,
}
"""Named features and how to find out; ``program:NAME`` needs no entry."""


@functools.cache
def available(feature: str) -> bool:
    """Whether this machine has a feature; an unknown name is an error, not a skip."""
    if feature.startswith("program:"):
        return shutil.which(feature.removeprefix("program:")) is not None
    return FEATURES[feature]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run."""
    for item in items:
        folder = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
        wanted = [*FOLDERS.get(folder, ()), *(name for mark in item.iter_markers("needs") for name in mark.args)]
        if missing := [name for name in wanted if not available(name)]:
            item.add_marker(pytest.mark.skip(reason=f"missing feature: {', '.join(dict.fromkeys(missing))}"))


class Skips:
    """Counts skips by reason and, in CI, fails a session that skipped what is not allowed."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}
        self.unexpected: list[str] = []

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        """Keep a skipped report's reason; an expected failure is no skip."""
        if report.skipped and not hasattr(report, "wasxfail"):
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = text.removeprefix("Skipped: ")
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    pytest_runtest_logreport = note
    pytest_collectreport = note

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare with the list."""
        if os.environ.get("CI", "") not in {"", "0", "false"}:
            patterns = allowed_skips(ALLOWED.read_text())
            self.unexpected = [text for text in self.reasons if not any(fnmatch.fnmatch(text, p) for p in patterns)]
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was skipped."""
        for reason, count in sorted(self.reasons.items()):
            verdict = " - NOT ALLOWED in CI (tests/allowed-skips.txt)" if reason in self.unexpected else ""
            terminalreporter.write_line(f"skipped {count}: {reason}{verdict}", red=bool(verdict), yellow=not verdict)


def allowed_skips(text: str) -> list[str]:
    """The patterns of the list: one a line, ``#`` begins the reason why it is allowed."""
    return [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]


def pytest_configure(config: pytest.Config) -> None:
    """Register the counter of skips."""
    config.pluginmanager.register(Skips(), "headrace-skips")
