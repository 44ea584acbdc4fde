"""Every table has a way over a change of ABI, or a reason to begin empty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace import abi
from headrace.datapath import carry
from headrace.stages.compile import ORDER


def test_no_table_is_forgotten() -> None:
    ways = [{carry.NAMES}, set(carry.COPIED), set(carry.BUILT), set(carry.COUNTED), set(carry.LEFT), set(ORDER)]
    for name in abi.MAPS:
        found = [way for way in ways if name in way]
        assert len(found) == 1, (
            f"{name}: compiled, copied, built, counted or left? say it in headrace/datapath/carry.py"
        )
    assert set().union(*ways) <= abi.MAPS.keys()


class Column:
    """A layout of one octet: a connection's id is its port too."""

    def column(self, rows: Any, _: str) -> Any:
        return rows[:, 0].astype(np.uint64)


@pytest.mark.parametrize(("made", "spare", "left"), [(5, 3, 2), (3, 3, 0), (0, 0, 0), (1, 0, 1)])
def test_what_fits_no_spare_index_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, made: int, spare: int, left: int
) -> None:
    one = object.__new__(carry.Carry)
    one._layouts = {"hr_conns": ((None, None), (Column(), Column()))}  # type: ignore[dict-item]
    one._spare = range(10, 10 + spare)
    put: list[tuple[int, int]] = []
    added: list[abi.Carry] = []
    monkeypatch.setattr(carry, "convert", lambda _, __, rows: rows)
    monkeypatch.setattr(one, "_put", lambda _, place, row: put.append((int(place[0]), int(row[0, 0]))))
    monkeypatch.setattr(one, "_put_flows", lambda *_: None)
    old = np.arange(1, made + 1, dtype=np.uint8).reshape(-1, 1)
    assert one._insert(old, added.append) == made - left
    assert put == [(10 + number, 1 + number) for number in range(made - left)]
    assert [more.port for more in added] == [1 + number for number in range(made - left)]
    assert one.spare == range(10 + made - left, 10 + spare)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"carried not={left}"] * bool(left)
