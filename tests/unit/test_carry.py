"""Every table has a way over a change of ABI, or a reason to begin empty."""

from __future__ import annotations

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
