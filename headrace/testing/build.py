"""Another build of Headrace: this tree with its C changed, compiled, in a directory of its own.

    build = Build.make(directory, {"bpf/abi.h": lambda text: text.replace(...)})
    host.start(build=build)

Needs clang, llvm-strip and the tools of the source tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import msgspec

from headrace.datapath.bpf import PARTS
from headrace.testing.clang import FLAGS

SOURCE = Path(__file__).parents[2]
SETTLED = shutil.ignore_patterns("__pycache__", "neutron", "*.o")


class Build(msgspec.Struct, frozen=True):
    """A tree that `python -m headrace` can run from."""

    directory: Path

    @classmethod
    def make(cls, directory: Path, changes: Mapping[str, Callable[[str], str]]) -> Self:
        """Copy this tree, change files by name, and compile. A change that changes nothing is an error."""
        for name in ("headrace", "bpf", "tools"):
            shutil.copytree(SOURCE / name, directory / name, ignore=SETTLED)
        for name, change in changes.items():
            before = (directory / name).read_text()
            after = change(before)
            if after == before:
                raise ValueError(f"{name}: the change changed nothing")
            (directory / name).write_text(after)
        objects = directory / "headrace" / "datapath" / "objects"
        objects.mkdir(exist_ok=True)
        for part in (*PARTS, "abi"):
            target = objects / f"{part}.bpf.o"
            command = ["clang", *FLAGS, "-I", str(directory / "bpf"), "-c", f"bpf/{part}.bpf.c", "-o", str(target)]
            subprocess.run(command, cwd=directory, check=True)
        abigen = [sys.executable, "tools/abigen.py", str(objects / "abi.bpf.o"), "--header", "bpf/abi.h"]
        env = os.environ | {"PYTHONPATH": str(directory)}
        subprocess.run([*abigen, "-o", "headrace/abi.py"], cwd=directory, env=env, check=True)
        return cls(directory)

    @property
    def environment(self) -> dict[str, str]:
        """What makes `python -m headrace` this build."""
        return {"PYTHONPATH": str(self.directory), "PYTHONSAFEPATH": "1"}  # else Python looks where it is started first
