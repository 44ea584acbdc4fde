"""The rules about skips in tests/conftest.py, tried on a small session of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SESSION = """
import pytest

@pytest.mark.needs("program:no-such-program")
def test_needs():
    raise AssertionError("ran without its feature")

@pytest.mark.needs("program:sh")
def test_has():
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_expected():
    raise AssertionError
"""


def run(folder: Path, allowed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "allowed-skips.txt").write_text(allowed)
    (folder / "test_small.py").write_text(SESSION)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = needs\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    base = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST")}
    base["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a quick start
    return subprocess.run(command, env=base | environment, capture_output=True, text=True, check=False, timeout=60)


def test_a_skip_names_its_feature(tmp_path: Path) -> None:
    done = run(tmp_path, "")
    assert done.returncode == 0, done.stdout
    assert "skipped 1: missing feature: program:no-such-program" in done.stdout
    assert "1 passed, 1 skipped, 1 xfailed" in done.stdout


@pytest.mark.parametrize(
    ("allowed", "code"),
    [
        ("", 1),
        ("missing feature: program:other\n", 1),
        ("# missing feature: *\n", 1),
        ("missing feature: program:no-such-*  # it does not exist\n", 0),
    ],
)
def test_ci_allows_only_listed_skips(tmp_path: Path, allowed: str, code: int) -> None:
    done = run(tmp_path, allowed, CI="1")
    assert done.returncode == code, done.stdout
    assert ("NOT ALLOWED" in done.stdout) == bool(code)
