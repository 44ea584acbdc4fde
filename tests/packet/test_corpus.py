"""Every scenario that ever told the programs and the oracle apart (tests/corpus), played again."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.testing.host import PacketHost
from headrace.testing.strategy import decode
from headrace.testing.twin import play

CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_scenario(host: PacketHost, path: Path) -> None:
    assert play(host, decode(path.read_bytes())).seen
