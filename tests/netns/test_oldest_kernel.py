"""The adapters on the oldest kernel that Headrace runs on, Debian 12's: it has no tcx."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headrace.testing.kernel import Kernel
from headrace.testing.labvm import LabVM

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow, pytest.mark.needs("qemu", "program:busybox", "clang")]

TESTS = Path(__file__).parents[1]
CHECKED = ("packet/test_libbpf.py", "netns/test_attach.py", "netns/test_netlink.py")
MODULES = ["veth", "cls_bpf", "sch_ingress", "bridge"]


DATAPATH = ("packet/test_replay.py", "packet/test_track.py", "packet/test_corpus.py", "packet/test_too_big.py")
"""Where kernels differ: helpers' results, test runs, skbs; of track and too_big what concerns that (``KINDS``)."""
KINDS = "test_replay or test_corpus or keys or moved or quota or room or fragment or super_packet or to_a_vtep or mss"


def test_bindings_attachments_and_netlink(lab_kernel: Kernel) -> None:
    paths = " ".join(str(TESTS / name) for name in CHECKED)
    # What runs under traffic or counts time proves nothing on an emulated processor.
    script = f"cd {TESTS.parent} && {sys.executable} -m pytest -q -k 'not between_two_programs and not missed' {paths}"
    result = LabVM(series=lab_kernel.series).run(script, modules=MODULES, timeout=300)
    assert result.returncode == 0, result.output
    assert " passed" in result.output
    assert "skipped" not in result.output


@pytest.mark.lab
@pytest.mark.timeout(1200)
def test_the_datapath_packet_by_packet(lab_kernel: Kernel) -> None:
    paths = " ".join(str(TESTS / name) for name in DATAPATH)
    script = f"cd {TESTS.parent} && {sys.executable} -m pytest -q -k '{KINDS}' {paths}"
    result = LabVM(series=lab_kernel.series, memory=1024).run(script, modules=MODULES, timeout=1100)
    assert result.returncode == 0, result.output
    assert " passed" in result.output
    assert "skipped" not in result.output
