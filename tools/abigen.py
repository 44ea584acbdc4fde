"""Writes headrace/abi.py from the BTF of compiled BPF objects, so that the ABI is said once, in C.

python tools/abigen.py OBJECT... --header bpf/abi.h -o headrace/abi.py [--check]

``struct hr_flow_key`` becomes ``FlowKey``, ``enum hr_reason`` becomes ``Reason`` with ``Reason.X.doc``,
``#define HR_MAX_PORTS 4096`` becomes ``MAX_PORTS``, and every map an entry of ``MAPS``.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from abimodel import Abi, AbiError
from abiread import add_header, add_object
from abitext import generate
from headrace.datapath.btf import Btf, BtfError

if TYPE_CHECKING:
    from collections.abc import Sequence


def formatted(text: str) -> str:
    """The text as ``ruff format`` writes it."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", "headrace/abi.py", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the module, or with ``--check`` say how the one that is there differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("objects", nargs="+", type=Path, metavar="OBJECT")
    parser.add_argument("--header", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the output would change")
    options = parser.parse_args(arguments)
    abi = Abi()
    try:
        for path in options.objects:
            add_object(abi, Btf.read(path))
        add_header(abi, options.header)
        text = formatted(generate(abi, options.header.as_posix()))
    except (AbiError, BtfError) as error:
        sys.stderr.write(f"abigen: {error}\n")
        return 1
    old = options.output.read_text() if options.output.exists() else ""
    if text == old:
        return 0
    if options.check:
        diff = difflib.unified_diff(old.splitlines(True), text.splitlines(True), str(options.output), "generated")
        sys.stderr.writelines(list(diff)[:60])
        sys.stderr.write(f"abigen: {options.output} differs from {options.header}; run `make abi` and commit it\n")
        return 1
    options.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
