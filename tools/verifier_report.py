"""What the verifier makes of every program: writes docs/verifier.md, or checks whether a figure moved."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import msgspec

from headrace.errors import DatapathError, HeadraceError, NotSupported
from headrace.testing.kernel import SUITES
from headrace.testing.labvm import LabVM
from verifier import Figures, measure_all

ROOT = Path(__file__).parents[1]
OBJECTS = ROOT / "headrace" / "datapath" / "objects"
PAGE = ROOT / "docs" / "verifier.md"
HERE = "here"
ALLOWED = 0.10
SLACK = 8
"""A figure moved when it is off by more than 10 % and more than this."""
JUDGED = ("verified", "xlated", "stack")
"""The octets of machine code depend on the processor and its mitigations too: shown, not judged."""
LAB_MEMORY = 1024
LAB_TIMEOUT = 900

HEAD = """# What the verifier makes of our programs

Written by `tools/verifier_report.py` and checked by it with `--check`: it fails when a figure is over 10 % away from
this page. Programs were compiled by {compiler}.

- A knob is a `const volatile` global, toggled alone; `-` is the program as it ships. A knob has a row where it changes
  a figure.
- Verified: instructions the verifier walked, of one million at most. Xlated: instructions that it kept.
- Stack: octets of the program and its functions together; the kernel allows 512 to any chain of calls.
- JIT: octets of machine code. They depend on the processor too, and are not checked.

| Program | Knob | Kernel | Verified | Xlated | Stack | JIT |
|---|---|---|---:|---:|---:|---:|
"""
ROW = re.compile(r"^\| `(\S+)` \| (\S+) \| (\S+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


def render(figures: Iterable[Figures], compiler: str) -> str:
    """The page; rows of knobs that change nothing are left out."""
    ordered = sorted(figures, key=lambda row: (row.program, _version(row.kernel), row.knob))
    shipped = {(row.program, row.kernel): row for row in ordered if not row.knob}
    rows = [row for row in ordered if not row.knob or _differs(row, shipped[row.program, row.kernel])]
    lines = (
        f"| `{row.program}` | {f'`{row.knob}`' if row.knob else '-'} | {row.kernel} "
        f"| {row.verified} | {row.xlated} | {row.stack} | {row.jited} |\n"
        for row in rows
    )
    return HEAD.format(compiler=compiler) + "".join(lines)


def parse(page: str) -> list[Figures]:
    """The figures of a page."""
    return [
        Figures(
            program=program,
            knob="" if knob == "-" else knob.strip("`"),
            kernel=kernel,
            verified=int(verified),
            xlated=int(xlated),
            stack=int(stack),
            jited=int(jited),
        )
        for program, knob, kernel, verified, xlated, stack, jited in ROW.findall(page)
    ]


def moved(kept: Sequence[Figures], measured: Sequence[Figures]) -> list[str]:
    """What differs too much, a line each; only kernels that were measured and are on the page are compared."""
    known = {(row.program, row.knob, row.kernel): row for row in kept}
    kernels = {row.kernel for row in kept} & {row.kernel for row in measured}
    lines = []
    for row in measured:
        if row.kernel not in kernels:
            continue
        name = f"{row.program}{' with ' + row.knob + ' toggled' if row.knob else ''} on {row.kernel}"
        old = known.get((row.program, row.knob, row.kernel)) or known.get((row.program, "", row.kernel))
        if old is None:
            lines.append(f"{name}: not on the page")
            continue
        lines += [
            f"{name}: {figure} was {getattr(old, figure)}, is {getattr(row, figure)}"
            for figure in JUDGED
            if _far(getattr(old, figure), getattr(row, figure))
        ]
    present = {(row.program, row.kernel) for row in measured}
    gone = {(row.program, row.kernel) for row in kept if row.kernel in kernels} - present
    return lines + [f"{program} on {kernel}: on the page, but no such program" for program, kernel in sorted(gone)]


def _far(old: int, new: int) -> bool:
    return abs(new - old) > max(ALLOWED * old, SLACK)


def _differs(row: Figures, shipped: Figures) -> bool:
    return msgspec.structs.replace(row, knob="") != shipped


def _version(series: str) -> tuple[int, ...]:
    return tuple(int(part) for part in series.split("."))


def in_lab(series: str, folder: Path) -> list[Figures]:
    """Measure in a lab VM: the same Python, the same files, another kernel."""
    click.echo(f"kernel {series}: lab VM", err=True)
    script = shlex.join([sys.executable, str(Path(__file__).with_name("verifier.py")), str(folder)])
    with tempfile.TemporaryDirectory(prefix="hr-verifier-") as share:
        machine = LabVM(series=series, memory=LAB_MEMORY)
        result = machine.run(f"{script} > /lab/figures", share=Path(share), timeout=LAB_TIMEOUT)
        if result.returncode:
            raise DatapathError(f"kernel {series}: {result.output.strip()}")
        return msgspec.json.decode(Path(share, "figures").read_bytes(), type=list[Figures])


def here(folder: Path) -> list[Figures]:
    """Measure on the running kernel."""
    if os.geteuid():
        raise NotSupported("loading programs on the running kernel takes root; --kernel 6.1 alone does not")
    click.echo(f"kernel {platform.release()}: here", err=True)
    return measure_all(folder)


def compiler() -> str:
    """The compiler's first line: other versions give other figures."""
    return subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Write nothing; fail if a figure is over 10 % away from the page.")
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    default=("6.1", "6.12"),
    show_default=True,
    type=click.Choice([HERE, *SUITES]),
    help="Where to load them: on the running kernel or in lab VMs. May be repeated.",
)
@click.option("--objects", type=click.Path(path_type=Path, exists=True), default=OBJECTS, help="Compiled programs.")
@click.option("--page", type=click.Path(path_type=Path), default=PAGE, help="The page to write or check.")
def main(*, check: bool, kernels: tuple[str, ...], objects: Path, page: Path) -> None:
    """Measure, then write or compare."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = objects.resolve()
    kept = parse(page.read_text()) if page.exists() else []
    try:
        measured = [row for name in kernels for row in (here(folder) if name == HERE else in_lab(name, folder))]
    except HeadraceError as error:
        raise click.ClickException(str(error)) from None
    if not check:
        others = {row.kernel for row in kept} - {row.kernel for row in measured}
        page.write_text(render([*measured, *(row for row in kept if row.kernel in others)], compiler()))
        click.echo(f"{page}: {len(measured)} loads of programs on {len(kernels)} kernels", err=True)
        return
    if lines := moved(kept, measured):
        raise click.ClickException(
            "\n".join([*lines, "if that is meant, write the page anew (the same without --check)"])
        )


if __name__ == "__main__":
    main()
