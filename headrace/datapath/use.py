"""Which of the tables pinned on a host count: after a change of ABI there may be two sets of them."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import msgspec

from headrace.datapath.bpfmap import Map

USE = "tables"


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """Which tables count, as a symbolic link among the hooks says, so that it outlives the agent.

    ``tables``: their ABI's hash. While devices are switched from tables of another ABI: ``before``, that one's hash;
    ``switched``, since when (CLOCK_MONOTONIC, ns); ``spare``, indices of hr_conns that nobody else may use.
    """

    tables: str
    before: str = ""
    switched: int = 0
    spare: tuple[int, int] = (0, 0)

    @classmethod
    def read(cls, links: Path) -> Self | None:
        """What is said there, if anything."""
        try:
            tables, before, switched, first, last = (links / USE).readlink().name.split(",")
        except (FileNotFoundError, ValueError):
            return None
        return cls(tables=tables, before=before, switched=int(switched), spare=(int(first), int(last)))

    def write(self, links: Path) -> None:
        """Say it, in place of what was said."""
        fresh = links / f"{USE}_fresh"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(",".join(map(str, (self.tables, self.before, self.switched, *self.spare))))
        fresh.rename(links / USE)


def connections_at(pins: Path) -> int | None:
    """How many connections the tables pinned there have room for."""
    path = pins / "hr_flows"
    if not path.exists():
        return None
    with Map.from_pin(path) as table:
        return table.max_entries // 2  # hr_conns has some more, which rest


def other_tables(root: Path, pins: Path, links: Path) -> Path | None:
    """Where tables of another ABI than ``pins`` are that programs run on, or ran on when the agent last ended."""
    use = Use.read(links)
    others = [path for path in root.iterdir() if path != pins and (path / "hr_conns").exists()]
    if use is None:  # written by a version that does not say
        latest = max(others, key=lambda path: path.stat().st_mtime, default=None)
        return None if (pins / "hr_conns").exists() else latest
    wanted = use.before if use.tables == pins.name else use.tables
    return next((path for path in others if path.name == wanted), None)


def pinned_id(path: Path) -> int:
    """The id of the map pinned there; 0 without one."""
    if not path.exists():
        return 0
    with Map.from_pin(path) as table:
        return table.id
