"""Every program loads on the oldest kernel we promise, whatever its knobs, and is no larger than its page says."""

from __future__ import annotations

import pytest

from headrace.testing.kernel import Kernel
from verifier_report import OBJECTS, PAGE, in_lab, moved, parse

pytestmark = [pytest.mark.timeout(600), pytest.mark.needs("qemu", "program:busybox")]


def test_every_program_loads_on_the_oldest_kernel_and_no_figure_moved(lab_kernel: Kernel) -> None:
    measured = in_lab(lab_kernel.series, OBJECTS)
    assert {row.program.partition("/")[0] for row in measured} == {path.name[:-6] for path in OBJECTS.glob("*.bpf.o")}
    assert moved(parse(PAGE.read_text()), measured) == []
