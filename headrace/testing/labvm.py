"""A virtual machine with another kernel and this host's files: run a script there, get its output and exit code.

QEMU without KVM (TCG) boots one of Debian's kernels in 4 to 6 s. The host's root is the machine's, read-only under an
overlay in memory: every program, the checkout and its virtual environment are there under the same paths, and nothing
the script does reaches the host except through ``/lab``. A first Python costs about 2 s in there, so put many checks
into one run.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from headrace.errors import Unavailable
from headrace.testing import kernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMED_OUT = 124
"""The exit code of a script that was stopped, as timeout(1) has it."""

ROOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
MACHINE = (
    "-M",
    "q35",
    "-accel",
    "tcg,tb-size=512",
    "-cpu",
    "Nehalem",
    "-nodefaults",
    "-vga",
    "none",
    "-display",
    "none",
)
BOOT = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check"
POLL = 0.05
CLEAN_END = 1
"""What QEMU makes of a 0 written to isa-debug-exit; its own 0 is a power-off or a panic."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a script did: ``output`` is its standard output and error, ``console`` what the kernel said."""

    returncode: int
    output: str
    console: str = ""


class LabVM(msgspec.Struct, frozen=True, kw_only=True):
    """The machine to boot; each :meth:`run` is one boot.

    ``memory`` in MiB, ``devices`` are further QEMU arguments, ``cwd`` is where scripts start (``/lab`` when not given).
    """

    series: str = "6.1"
    memory: int = 768
    cpus: int = 1
    devices: tuple[str, ...] = ()
    cwd: Path = Path("/lab")

    def run(
        self,
        script: str,
        *,
        files: Mapping[str, str | bytes] | None = None,
        modules: Sequence[str] = (),
        timeout: float = 120,
        share: Path | None = None,
        live: IO[str] | None = None,
    ) -> Result:
        """Boot, load ``modules``, run a bash script as root with ``files`` in ``/lab``, and end the machine.

        ``share`` is a host directory to use as ``/lab`` (what is written there stays), ``live`` receives the output as
        it comes. A script that takes more than ``timeout`` seconds is stopped and has exit code 124.

        Raises NotSupported (a program or a module is missing) or Unavailable (the machine did not reach the script).
        """
        kernel.require("qemu-system-x86_64", "setpriv")
        image = kernel.fetch(self.series)
        image.module_files(modules)
        with tempfile.TemporaryDirectory(prefix="labvm-") as temporary:
            scratch = Path(temporary)
            lab = share or scratch / "lab"
            lab.mkdir(exist_ok=True)
            for name, content in {**(files or {}), **self._own(script, modules)}.items():
                (lab / name).write_bytes(content.encode() if isinstance(content, str) else content)
            initrd = kernel.initramfs(image, ROOT_MODULES, kernel.ASSETS / "labvm-init")
            (scratch / "initrd").write_bytes(initrd)
            try:
                ended = _watch(self._command(image, scratch, lab), lab / ".out", timeout, live)
                return self._result(scratch / "console", lab, timeout if not ended else None)
            finally:
                for name in (*self._own("", ()), ".rc"):
                    (lab / name).unlink(missing_ok=True)

    def _own(self, script: str, modules: Sequence[str]) -> dict[str, str]:
        environment = f"LABVM_MODULES={shlex.quote(' '.join(modules))}\nLABVM_CWD={shlex.quote(str(self.cwd))}\n"
        boot = (kernel.ASSETS / "labvm-boot.sh").read_text()
        return {".boot": boot, ".env": environment, ".script": script, ".out": ""}

    def _command(self, image: kernel.Kernel, scratch: Path, lab: Path) -> list[str]:
        command = [*kernel.QEMU, *MACHINE, "-no-reboot", "-nic", "none", "-m", str(self.memory), "-smp", str(self.cpus)]
        command += ["-kernel", str(image.vmlinux), "-initrd", str(scratch / "initrd"), "-append", BOOT]
        command += ["-serial", f"file:{scratch / 'console'}", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        shares = {"host": (Path("/"), True), "lab": (lab, False), "modules": (image.root / "lib" / "modules", True)}
        for tag, (path, readonly) in shares.items():
            options = f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap"
            command += ["-virtfs", options + (",readonly=on" if readonly else "")]
        return [*command, *self.devices]

    def _result(self, console: Path, lab: Path, stopped_after: float | None) -> Result:
        said = console.read_text(errors="replace") if console.exists() else ""
        output = (lab / ".out").read_text(errors="replace")
        if stopped_after is not None:
            notice = f"\nlab VM {self.series}: stopped after {stopped_after:g} s\n"
            return Result(returncode=TIMED_OUT, output=output + notice, console=said)
        code = (lab / ".rc").read_text().strip() if (lab / ".rc").exists() else ""
        if not code:
            raise Unavailable(f"lab VM {self.series} ended before its script did; its console: {said[-2000:]!r}")
        return Result(returncode=int(code), output=output, console=said)


def _watch(command: Sequence[str], output: Path, timeout: float, live: IO[str] | None) -> bool:
    """Run QEMU to its end or to the limit, passing on what the script prints; whether it ended by itself."""
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryFile("w+") as complaints, output.open(errors="replace") as written:
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=complaints)
        try:
            while not (ended := machine.poll() is not None) and time.monotonic() < deadline:
                _pass_on(written, live)
                time.sleep(POLL)
        finally:
            machine.kill()
            machine.wait()
            _pass_on(written, live)
        if ended and machine.returncode not in {0, CLEAN_END}:
            complaints.seek(0)
            raise Unavailable(f"QEMU ended with {machine.returncode}: {complaints.read().strip()[-2000:]}")
        return ended


def _pass_on(written: IO[str], live: IO[str] | None) -> None:
    if live is not None and (text := written.read()):
        live.write(text)
        live.flush()
