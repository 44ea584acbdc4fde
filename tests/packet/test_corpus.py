"""Every scenario that ever told the programs and the oracle apart (tests/corpus), played again."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.testing.play import Player
from headrace.testing.strategy_file import decode

CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_scenario(player: Player, path: Path) -> None:
    assert player.play(decode(path.read_bytes()))
