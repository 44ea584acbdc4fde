"""A look into one host's datapath, quick enough to be taken between two frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from headrace.abi import Reason
from headrace.agent.names import read_names
from headrace.datapath.reader import Reader


class Sight:
    """Opens the pinned tables anew for each question. ``run``: where the agent wrote what their numbers mean."""

    def __init__(self, root: Path, run: Path) -> None:
        self._root = root
        self._run = run

    def reasons(self, port: str) -> Mapping[Reason, int]:
        """Why packets of a port (id) were dropped or punted, and how many."""
        index = next((int(index) for index, name in read_names(self._run).ports.items() if name.id == port), None)
        with Reader(self._root) as reader:
            return dict(reader.reasons().get(index, {})) if index is not None else {}
