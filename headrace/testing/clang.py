"""Compile a small BPF program for a test."""

from __future__ import annotations

import platform
import subprocess
import sysconfig
from pathlib import Path

from headrace.errors import InvalidInput

PREAMBLE = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC("license") = "GPL";
"""


HEADERS = f"/usr/include/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}"
FLAGS = ("-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v3", f"-D__{platform.machine()}__", "-idirafter", HEADERS)


def compile_bpf(source: str, folder: Path, name: str = "probe", *, include: Path | None = None) -> Path:
    """The object of ``source``, which finds the usual headers included and a licence given.

    ``include``: a directory of more headers.
    """
    code, built = folder / f"{name}.bpf.c", folder / f"{name}.bpf.o"
    code.write_text(f'{PREAMBLE}\n#line 1 "{name}"\n{source}')
    own = () if include is None else ("-I", str(include))
    done = subprocess.run(
        ["clang", *FLAGS, *own, "-c", str(code), "-o", str(built)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InvalidInput(f"{name} does not compile: {done.stderr}")
    return built
