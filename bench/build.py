"""Compile the load programs when their sources are newer than what is there."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

from bench.process import run

SOURCE = Path(__file__).parent / "load"
TARGET = Path(__file__).parent.parent / "build" / "bench"

PROGRAMS = {
    "blast": ["blast"],
    "connect": [],
    "echo": [],
    "hop": ["hop"],
    "relay": [],
    "server": [],
    "spin": [],
    "stream": [],
}
"""Each with the BPF objects that it carries within itself."""


@functools.cache
def program(name: str) -> str:
    """The path of a load program, compiled."""
    TARGET.mkdir(parents=True, exist_ok=True)
    binary = TARGET / name
    sources = [SOURCE / f"{name}.c", *SOURCE.glob("*.h"), *(SOURCE / f"{part}.bpf.c" for part in PROGRAMS[name])]
    if binary.exists() and binary.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return str(binary)
    for part in PROGRAMS[name]:
        _skeleton(part)
    libraries = ["-lbpf", "-lelf", "-lz"] if PROGRAMS[name] else []
    run("gcc", "-O2", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers",
        f"-I{TARGET}", "-pthread", "-o", str(binary), str(SOURCE / f"{name}.c"), *libraries)  # fmt: skip
    return str(binary)


def _skeleton(name: str) -> None:
    compiled = TARGET / f"{name}.bpf.o"
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    run("clang", "-O2", "-g", "-target", "bpf", f"-I{include}", "-Wall", "-Werror",
        "-c", str(SOURCE / f"{name}.bpf.c"), "-o", str(compiled))  # fmt: skip
    header = run("bpftool", "gen", "skeleton", str(compiled), "name", f"{name}_bpf")
    (TARGET / f"{name}.skel.h").write_text(header)
