"""Load every compiled program on the running kernel, knob by knob, and say in JSON what the verifier made of it.

    tools/verifier.py FOLDER       (root; tools/verifier_report.py calls it, in lab VMs too)

A knob is a ``const volatile`` global; it is toggled alone: 0 where it is not 0 by default, else 1. The verifier drops
what a knob makes unreachable, so every value of one is another program to it.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from headrace.datapath.binding import ffi, lib
from headrace.datapath.btf import Btf, Kind
from headrace.datapath.libbpf import Object
from headrace.errors import DatapathError

ffi.cdef("""
int bpf_program__set_log_level(struct bpf_program *prog, __u32 log_level);
int bpf_program__set_log_buf(struct bpf_program *prog, char *log_buf, size_t log_size);
__u32 bpf_map__max_entries(const struct bpf_map *map);
""")

LOG_STATISTICS = 4
"""``BPF_LOG_STATS`` of include/linux/bpf_verifier.h: only the closing lines."""
LOG_SIZE = 1 << 16
MAP_ENTRIES = 4096
"""Larger maps are made with so many: memory is not what is measured. A ring buffer takes no less than a page."""
INSTRUCTION_SIZE = 8
STACK = re.compile(r"^stack depth ([0-9+]+)", re.MULTILINE)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One program as one kernel (``6.1``) took it, with ``knob`` toggled or, when that is empty, as it ships."""

    program: str
    knob: str
    kernel: str
    verified: int
    xlated: int
    stack: int
    jited: int


class Measured(Object):
    """An object whose programs are loaded with the verifier's statistics kept in ``logs``."""

    logs: Mapping[str, str]

    def load(self) -> Self:
        """Load as usual, with small maps; ``logs`` holds the closing lines for each program."""
        table = program = ffi.NULL
        while (table := lib.bpf_object__next_map(self._handle, table)) != ffi.NULL:
            if lib.bpf_map__max_entries(table) > MAP_ENTRIES:
                lib.bpf_map__set_max_entries(table, MAP_ENTRIES)
        buffers: dict[str, Any] = {}
        while (program := lib.bpf_object__next_program(self._handle, program)) != ffi.NULL:
            name = ffi.string(lib.bpf_program__name(program)).decode()
            buffers[name] = ffi.new("char[]", LOG_SIZE)
            lib.bpf_program__set_log_level(program, LOG_STATISTICS)
            lib.bpf_program__set_log_buf(program, buffers[name], LOG_SIZE)
        super().load()
        self.logs = {name: ffi.string(buffer).decode(errors="replace") for name, buffer in buffers.items()}
        return self

    def default(self, knob: str) -> bytes:
        """The value a read-only global ships with."""
        address, size = self._rodata_places()[knob]
        return bytes(ffi.buffer(address, size))


def knobs(path: Path) -> list[str]:
    """The ``const volatile`` globals of an object, by its BTF; plain ``const`` ones are data, not knobs."""
    btf = Btf.read(path)
    found = []
    for section in btf.of_kind(Kind.DATASEC):
        if section.name.startswith(".rodata"):
            variables = (btf.types[number] for number in section.variables)
            found += [variable.name for variable in variables if _is_volatile(btf, variable.ref)]
    return sorted(found)


def _is_volatile(btf: Btf, type_id: int) -> bool:
    """Whether volatile is among the qualifiers of a type; of an array, of its elements."""
    item = btf.types[type_id]
    while item.kind in {Kind.CONST, Kind.ARRAY}:
        item = btf.types[item.ref]
    return item.kind is Kind.VOLATILE


def stack_depth(log: str) -> int:
    """Octets of stack of a program and its functions together, from the verifier's ``stack depth 232+0+64``."""
    match = STACK.search(log)
    if match is None:
        raise DatapathError(f"the verifier's log has no stack depth: {log[-200:]!r}")
    return sum(int(frame) for frame in match[1].split("+"))


def measure(path: Path, knob: str, pins: Path) -> list[Figures]:
    """Load one object, with one knob toggled or none, and read its programs' figures.

    Raises DatapathError with the verifier's last words when the kernel refuses it.
    """
    rodata: dict[str, int | bytes] = {}
    if knob:
        with Measured.open(path, pin_dir=pins) as plain:
            shipped = plain.default(knob)
        rodata[knob] = bytes(len(shipped)) if any(shipped) else b"\1".ljust(len(shipped), b"\0")
    kernel = ".".join(platform.release().split(".")[:2])
    try:
        with Measured.open(path, rodata, pin_dir=pins) as loaded:
            loaded.load()
            facts = {name: program.info() for name, program in loaded.programs.items()}
            return [
                Figures(
                    program=f"{path.name.partition('.')[0]}/{name}",
                    knob=knob,
                    kernel=kernel,
                    verified=fact.verified_instructions,
                    xlated=fact.xlated_size // INSTRUCTION_SIZE,
                    stack=stack_depth(loaded.logs[name]),
                    jited=fact.jited_size,
                )
                for name, fact in facts.items()
            ]
    except DatapathError:
        # Our buffers took the verifier's words: let a plain load say them.
        with Object.open(path, rodata, pin_dir=pins) as refused:
            refused.load()
        raise


@contextmanager
def pin_folder() -> Iterator[Path]:
    """A BPF filesystem of our own: maps pinned by name must neither meet a running agent's nor stay."""
    with tempfile.TemporaryDirectory(prefix="hr-verifier-") as folder:
        subprocess.run(["mount", "-t", "bpf", "bpf", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def measure_all(folder: Path) -> list[Figures]:
    """Every program of every object in a folder, as it ships and with each knob toggled.

    Raises DatapathError naming every object and knob that the kernel refused.
    """
    paths = sorted(folder.glob("*.bpf.o"))
    if not paths:
        raise DatapathError(f"no compiled programs in {folder}: run make bpf")
    figures, refused = [], []
    for path in paths:
        for knob in ("", *knobs(path)):
            try:
                with pin_folder() as pins:
                    figures += measure(path, knob, pins)
            except DatapathError as error:
                refused.append(f"{path.name}{' with ' + knob + ' toggled' if knob else ''}: {error}")
    if refused:
        raise DatapathError("\n".join(refused))
    return figures


def main(folder: Path) -> None:
    """Print the figures as JSON."""
    try:
        sys.stdout.buffer.write(msgspec.json.encode(measure_all(folder)))
    except DatapathError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
