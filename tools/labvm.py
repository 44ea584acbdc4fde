"""Run a script or a command in a virtual machine with a Debian kernel and this host's files.

    tools/labvm run [--kernel 6.1] [--modules a,b,c] [--timeout 120] SCRIPT [ARGUMENT...]
    tools/labvm run [...] -- COMMAND [ARGUMENT...]
    tools/labvm fetch [--kernel 6.1]      ask the mirror for the newest kernel of a series

It starts in the current directory, sees the host's files, and what it writes is gone afterwards except in /lab, which
is the directory --share names. Exit code and output are the script's; 124: the time was up; 2: it could not be started.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.testing import kernel
from headrace.testing.labvm import LabVM


def main(arguments: list[str]) -> int:
    """Parse, run, and give the exit code."""
    options, command = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="labvm: %(message)s")
    try:
        if options.verb == "fetch":
            sys.stdout.write(f"{kernel.fetch(options.kernel, again=True).vmlinux}\n")
            return 0
        return (
            LabVM(series=options.kernel, memory=options.memory, cpus=options.cpus, cwd=Path.cwd())
            .run(
                shlex.join(command),
                modules=[name for name in options.modules.split(",") if name],
                timeout=options.timeout,
                share=options.share,
                live=sys.stdout,
            )
            .returncode
        )
    except HeadraceError as error:
        sys.stderr.write(f"labvm: {error}\n")
        return 2


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the command that the shell in the machine runs."""
    parser = argparse.ArgumentParser(prog="labvm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="boot, run, end")
    fetch = verbs.add_parser("fetch", help="get the newest kernel of a series")
    for verb in (run, fetch):
        verb.add_argument("--kernel", default="6.1", choices=kernel.SUITES, help="series (default: %(default)s)")
    run.add_argument("--modules", default="", help="load these first, separated by commas")
    run.add_argument("--timeout", type=float, default=120, help="seconds of wall clock (default: %(default)g)")
    run.add_argument("--memory", type=int, default=768, help="MiB (default: %(default)s)")
    run.add_argument("--cpus", type=int, default=1, help="processors (default: %(default)s)")
    run.add_argument("--share", type=Path, help="host directory to use as /lab")
    run.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT [ARGUMENT...] | -- COMMAND [ARGUMENT...]")
    options = parser.parse_args(arguments)
    words = getattr(options, "script", None) or []
    if options.verb == "run" and words[:1] == ["--"]:
        return options, words[1:]
    if options.verb == "run" and not words:
        parser.error("run what? Give a script, or -- and a command")
    return options, ["bash", *words]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
