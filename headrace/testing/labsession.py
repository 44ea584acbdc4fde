"""A lab VM that stays, on a tap in a network namespace: one script after another, while the test does its part outside.

with LabSession(LabVM(devices=card("tap0", mac)), directory, namespace=host, modules=["geneve"]) as lab:
    lab.run("ip link set eth0 up")
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from headrace.errors import Unavailable
from headrace.testing import kernel
from headrace.testing.labvm import LabVM, Result
from headrace.testing.topology import CommandFailed, Namespace
from headrace.testing.wait import wait_until

PATIENCE = 60.0
BOOTING = 90.0


def card(tap: str, mac: str) -> tuple[str, ...]:
    """QEMU's arguments for a virtio-net card on a tap that exists; checksums are whole, and no super-packet passes."""
    backend = f"tap,id=net,ifname={tap},script=no,downscript=no,vhost=off,vnet_hdr=off"
    return "-netdev", backend, "-device", f"virtio-net-pci,netdev=net,mac={mac},romfile="


class LabSession:
    """``vm`` with ``modules``, ended after ``limit`` seconds in any case. ``directory`` is its /lab."""

    def __init__(
        self, vm: LabVM, directory: Path, *, namespace: Namespace, modules: Sequence[str] = (), limit: float = 900
    ) -> None:
        self._vm = vm
        self._directory = directory
        self._namespace = namespace
        self._modules = modules
        self._limit = limit
        self._thread = threading.Thread(target=self._boot, name="lab VM")
        self._result: Result | None = None
        self._error: Exception | None = None
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        with self._namespace.enter():  # the thread is born there, and QEMU with it
            self._thread.start()
        try:
            wait_until(lambda: (self._directory / "up").exists() or not self._thread.is_alive(), BOOTING, "the lab VM")
            self._check()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        (self._directory / "end").touch()
        self._thread.join(self._limit)

    def run(self, script: str, *, check: bool = True) -> Result:
        """Run a bash script to its end; raises CommandFailed when ``check`` and it fails."""
        name = str(next(self._numbers))
        new, code = self._directory / "new", self._directory / f"{name}.rc"
        new.write_text(script)
        new.rename(self._directory / f"{name}.sh")
        wait_until(lambda: code.exists() or not self._thread.is_alive(), PATIENCE, f"the lab VM's script {name}")
        self._check()
        output = (self._directory / f"{name}.out").read_text(errors="replace")
        result = Result(returncode=int(code.read_text()), output=output)
        if check and result.returncode:
            raise CommandFailed(f"lab VM: {script}\nended with {result.returncode}: {output}")
        return result

    def _boot(self) -> None:
        script = (kernel.ASSETS / "labvm-session.sh").read_text()
        try:
            self._result = self._vm.run(script, modules=self._modules, timeout=self._limit, share=self._directory)
        except Exception as error:  # noqa: BLE001 - raised where the test waits
            self._error = error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if not self._thread.is_alive():
            raise Unavailable(f"the lab VM ended: {self._result.output[-2000:] if self._result else ''}")
