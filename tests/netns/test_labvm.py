"""The lab VM brings exit code and output back, and shows the host's files without letting them be changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import headrace
from headrace.errors import NotSupported
from headrace.testing.kernel import Kernel
from headrace.testing.labvm import TIMED_OUT, LabVM, Result

pytestmark = [pytest.mark.timeout(240), pytest.mark.needs("qemu", "program:busybox")]

MARKER = "left-by-the-lab"
SCRIPT = f"""
echo "kernel $(uname -r) in $PWD"
cat /lab/given
echo changed > {Path(__file__).parent}/{MARKER} && echo "wrote over the host's files"
echo "bonding: $(cut -d" " -f1 /proc/modules | grep -x bonding)"
cat {Path(headrace.__file__).parent}/errors.py | wc -l
echo kept > /lab/kept
echo "to standard error" >&2
exit 7
"""


@pytest.fixture(scope="module")
def ran(lab_kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One boot for all tests here."""
    share = tmp_path_factory.mktemp("lab")
    files = {"given": "a file of the test\n"}
    vm = LabVM(series=lab_kernel.series)
    return vm.run(SCRIPT, files=files, modules=["bonding", "dummy"], share=share, timeout=100), share


def test_exit_code_and_both_outputs_come_back(ran: tuple[Result, Path]) -> None:
    result, _ = ran
    assert result.returncode == 7
    assert "to standard error" in result.output
    assert result.output.startswith("kernel 6.1.")
    assert "in /lab\n" in result.output


def test_it_is_another_kernel(ran: tuple[Result, Path]) -> None:
    assert os.uname().release not in ran[0].output


def test_files_go_in_and_out_by_the_share(ran: tuple[Result, Path]) -> None:
    result, share = ran
    assert "a file of the test\n" in result.output
    assert (share / "kept").read_text() == "kept\n"
    assert sorted(path.name for path in share.iterdir()) == ["given", "kept"]


def test_modules_are_loaded(ran: tuple[Result, Path]) -> None:
    assert "bonding: bonding\n" in ran[0].output


def test_the_checkout_is_there_and_a_write_to_it_stays_in_the_machine(ran: tuple[Result, Path]) -> None:
    lines = len((Path(headrace.__file__).parent / "errors.py").read_text().splitlines())
    assert f"\n{lines}\n" in ran[0].output
    assert "wrote over the host's files" in ran[0].output
    assert not (Path(__file__).parent / MARKER).exists()


def test_a_script_over_its_time_is_stopped(lab_kernel: Kernel) -> None:
    result = LabVM(series=lab_kernel.series).run("echo begun; sleep 1000", timeout=8)
    assert result.returncode == TIMED_OUT
    assert result.output.startswith("begun\n")


def test_a_missing_module_is_named_before_booting(lab_kernel: Kernel) -> None:
    with pytest.raises(NotSupported, match=r"kernel 6\.1\.\S+ has no module nosuchmodule"):
        LabVM(series=lab_kernel.series).run("true", modules=["nosuchmodule"])
