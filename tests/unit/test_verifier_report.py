"""The verifier's page is read back as it was written, and only figures that moved are reported."""

from __future__ import annotations

import msgspec
import pytest

from headrace.errors import DatapathError
from verifier import Figures, stack_depth
from verifier_report import moved, parse, render

LOG = "verification time 61 usec\nstack depth 232+0+64\nprocessed 904 insns (limit 1000000) max_states_per_insn 1\n"


def figures(program: str = "tc/hr_a", knob: str = "", kernel: str = "6.1", verified: int = 1000) -> Figures:
    return Figures(program=program, knob=knob, kernel=kernel, verified=verified, xlated=200, stack=96, jited=1500)


def changed(row: Figures, **new: int) -> Figures:
    return msgspec.structs.replace(row, **new)


def test_a_page_is_read_back() -> None:
    rows = [figures(), figures(knob="hr_observe", verified=1300), figures(kernel="6.12"), figures("xdp/hr_b")]
    assert set(parse(render(rows, "clang 14"))) == set(rows)


def test_a_knob_that_changes_nothing_has_no_row_and_is_not_missed() -> None:
    rows = [figures(), figures(knob="hr_idle"), figures(knob="hr_observe", verified=1300)]
    kept = parse(render(rows, "clang 14"))
    assert {row.knob for row in kept} == {"", "hr_observe"}
    assert moved(kept, rows) == []


def test_kernels_are_ordered_as_versions() -> None:
    page = render([figures(kernel="6.12"), figures(kernel="6.1"), figures(kernel="6.2")], "clang 14")
    assert [row.kernel for row in parse(page)] == ["6.1", "6.2", "6.12"]


@pytest.mark.parametrize("verified", [901, 1000, 1099])
def test_a_tenth_is_allowed(verified: int) -> None:
    assert moved([figures()], [figures(verified=verified)]) == []


@pytest.mark.parametrize(("figure", "value"), [("verified", 1101), ("xlated", 221), ("stack", 112), ("verified", 899)])
def test_more_than_a_tenth_is_named(figure: str, value: int) -> None:
    row = figures()
    (line,) = moved([row], [changed(row, **{figure: value})])
    assert line == f"tc/hr_a on 6.1: {figure} was {getattr(row, figure)}, is {value}"


def test_machine_code_and_a_few_instructions_are_not_judged() -> None:
    row = changed(figures(), xlated=20)
    assert moved([row], [changed(row, jited=9000, xlated=26)]) == []


def test_a_knob_that_begins_to_matter_is_measured_against_the_program_as_it_ships() -> None:
    (line,) = moved([figures()], [figures(), figures(knob="hr_observe", verified=2000)])
    assert line == "tc/hr_a with hr_observe toggled on 6.1: verified was 1000, is 2000"


def test_programs_that_came_or_went_are_named() -> None:
    assert moved([figures("tc/hr_old")], [figures("tc/hr_new")]) == [
        "tc/hr_new on 6.1: not on the page",
        "tc/hr_old on 6.1: on the page, but no such program",
    ]


def test_a_kernel_that_the_page_does_not_have_is_no_failure() -> None:
    assert moved([figures()], [figures(kernel="6.18", verified=9)]) == []


def test_the_stack_of_all_functions_counts() -> None:
    assert stack_depth(LOG) == 296
    with pytest.raises(DatapathError, match="no stack depth"):
        stack_depth("processed 1 insns")
