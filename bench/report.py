"""One table per dimension for people, one JSON file per dimension for programs."""

from __future__ import annotations

import os
import platform
import shutil
import time
from typing import TYPE_CHECKING

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from bench.dimension import Dimension
    from bench.harness import Outcome, Plan
    from bench.statistic import Ratio, Row

WIDTH_MIN = 120


def write(directory: Path, outcome: Outcome, plan: Plan, began: float) -> None:
    """``<dimension>.json`` for what was measured, and ``run.json``: where, when and how."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in outcome.rows.items():
        _write(directory / f"{name}.json", rows)
    facts = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "minutes": round((time.time() - began) / 60, 1),
        "kernel": platform.release(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "dimensions": sorted(outcome.rows),
        "remarks": list(outcome.remarks),
    }
    _write(directory / "run.json", facts)


def _write(path: Path, content: object) -> None:
    text = msgspec.json.format(msgspec.json.encode(content), indent=1)
    path.write_bytes(text + b"\n")


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - procfs
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def print_tables(outcome: Outcome, dimensions: tuple[Dimension, ...], plan: Plan) -> None:
    width = max(WIDTH_MIN, shutil.get_terminal_size().columns)
    console = Console(width=width, highlight=False)
    for dimension in dimensions:
        if outcome.rows.get(dimension.name):
            rows = outcome.rows[dimension.name]
            unit = " or ".join(dict.fromkeys(row.unit for row in rows))
            console.print(f"{dimension.name}: {dimension.title} ({unit}; {dimension.better} is better)", soft_wrap=True)
            console.print(_table(dimension, rows))
    console.print(
        f"Medians of {plan.rounds} interleaved rounds of {plan.seconds:g} s, and the extremes. A ratio is the median of"
        " the ratios within a round;\n~ inside the spread: the rounds do not agree on which of the two is ahead.",
        soft_wrap=True,
    )
    for remark in outcome.remarks:
        console.print(f"* {remark}", soft_wrap=True, markup=False)


def _table(dimension: Dimension, rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = list(dict.fromkeys(key for row in rows for key in row.parameters))
    rivals = [name for name in dimension.against() if any(name in row.ratios for row in rows)]
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("contender", no_wrap=True)
    for column in ("median", "min", "max"):
        table.add_column(column, justify="right")
    for rival in rivals:
        table.add_column(f"of {rival}" if rival == dimension.limit else f"x {rival}", justify="right")
    before: dict[str, int | str] | None = None
    for row in rows:
        if before is not None and row.parameters != before:
            table.add_section()
        before = row.parameters
        table.add_row(
            *(str(row.parameters.get(column, "")) for column in columns),
            row.contender,
            *(_number(value) for value in (row.median, row.min, row.max)),
            *(_ratio(row.ratios.get(rival)) for rival in rivals),
        )
    return table


def _number(value: float | None) -> str:
    """Three significant digits, without exponents."""
    if value is None:
        return "-"
    digits = max(0, 2 - len(f"{abs(value):.0f}") + 1) if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def _ratio(found: Ratio | None) -> str:
    return "" if found is None else f"{_number(found.ratio)}{' ~' if found.inside_spread else '  '}"
