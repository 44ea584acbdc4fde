"""A real guest: QEMU (TCG) with virtio-net on a tap, a Debian kernel, busybox, and an echo service on port 7.

The tap belongs to the test (or to the agent under test); QEMU runs in the network namespace that holds it, as on a
host. Commands go over a virtio serial line (an emulated UART was seen to lose a FIFO of
octets), so a guest answers whatever its network does. A guest takes 125 MB and is ready
in 3 to 5 s; :meth:`Guest.start` without waiting lets several boot side by side.
"""

from __future__ import annotations

import base64
import logging
import math
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec

from headrace.errors import NotSupported, Unavailable
from headrace.testing import kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

ECHO_PORT = 7
MODULES = ("virtio_pci", "virtio_console", "virtio_net")
BOOT = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check"
MACHINE = ("-M", "q35", "-accel", "tcg", "-cpu", "Nehalem", "-nodefaults", "-vga", "none", "-display", "none")
GRACE = 5.0
"""Seconds that a slow machine may take to report what it did in time."""
OFFLOADS = (
    *("csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo"),
    *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"),
)
"""What lets a guest send partial checksums and super-packets (``host_*``) or receive them (``guest_*``)."""


class Answer(NamedTuple):
    """What a command in a guest gave: exit code, and standard output and error together."""

    returncode: int
    output: str


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The virtio-net device. ``offloads`` off: complete checksums and no super-packets, as an XDP port needs.

    ``vnet_hdr``: the tap was made with it (needed for offloads); ``queues`` above 1 needs a tap made ``multi_queue``;
    ``mtu`` is told to the guest by the device, as Nova does.
    """

    vnet_hdr: bool = True
    offloads: bool = True
    queues: int = 1
    mtu: int | None = None

    def arguments(self, tap: str, mac: str) -> list[str]:
        """QEMU's arguments for a card with this address on a tap that exists."""
        several = self.queues > 1
        backend = f"tap,id=net,ifname={tap},script=no,downscript=no,vhost=off"
        backend += f",vnet_hdr={'on' if self.vnet_hdr else 'off'}" + (f",queues={self.queues}" if several else "")
        device = f"virtio-net-pci,netdev=net,mac={mac},romfile="
        device += f",mq=on,vectors={2 * self.queues + 2}" if several else ""
        device += f",host_mtu={self.mtu}" if self.mtu else ""
        device += "" if self.offloads else "".join(f",{name}=off" for name in OFFLOADS)
        return ["-netdev", backend, "-device", device]


class Guest:
    """A guest on ``tap`` in the network namespace ``ns`` (a name of ip-netns, or None for the caller's own).

    ``addresses`` have prefix lengths; ``gateways`` at most one per family; ``modules`` are loaded besides virtio's
    (8021q, ...); ``dad`` off makes IPv6 addresses usable at once, as in no real guest. IPv6 is in Debian's kernel.
    QEMU is killed when the thread that started it ends, so start guests in a thread that outlives them.
    """

    def __init__(
        self,
        ns: str | None,
        tap: str,
        mac: str,
        *,
        addresses: Sequence[str] = (),
        gateways: Sequence[str] = (),
        card: Card | None = None,
        modules: Sequence[str] = (),
        dad: bool = True,
        memory: int = 96,
        series: str = "6.1",
    ) -> None:
        """Describe the guest; nothing runs until :meth:`start`."""
        self.tap = tap
        self._enter = ("nsenter", f"--net=/run/netns/{ns}") if ns else ()
        self._hardware = [*MACHINE, "-no-reboot", "-m", str(memory), *(card or Card()).arguments(tap, mac)]
        settings = {"ADDRESSES": ",".join(addresses), "GATEWAYS": ",".join(gateways), "DAD": int(dad)}
        self._boot = " ".join([BOOT, *(f"{name}={value}" for name, value in settings.items() if value != "")])
        self._modules = (*MODULES, *modules)
        self._series = series
        self._machine: _Machine | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._running().process.pid

    @property
    def console(self) -> str:
        """What the guest's kernel and first process said so far."""
        return self._running().console.read_text(errors="replace")

    def start(self, *, wait: float = 30) -> Self:
        """Start QEMU and wait at most so many seconds until the guest takes commands; 0 leaves that to :meth:`ready`.

        Raises NotSupported (a program or module is missing) or Unavailable (QEMU failed, or it took too long).
        """
        kernel.require("qemu-system-x86_64", "setpriv", "nsenter")
        image = kernel.fetch(self._series)
        files = {"bin/echo-server": _echo_server().read_bytes()}
        files["etc/udhcpc/default.script"] = (kernel.ASSETS / "guest-dhcp").read_bytes()
        initrd = kernel.initramfs(image, self._modules, kernel.ASSETS / "guest-init", files)
        scratch = Path(tempfile.mkdtemp(prefix="guest-"))
        (scratch / "initrd").write_bytes(initrd)
        ours, its = socket.socketpair()
        with its, (scratch / "qemu").open("wb") as complaints:
            command = [*self._enter, *kernel.QEMU, *self._hardware, "-append", self._boot]
            command += ["-kernel", str(image.vmlinux), "-initrd", str(scratch / "initrd")]
            command += ["-serial", f"file:{scratch / 'console'}"]
            command += ["-chardev", f"socket,id=line,fd={its.fileno()}", "-device", "virtio-serial-pci"]
            command += ["-device", "virtserialport,chardev=line,name=line"]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=complaints, stderr=complaints, pass_fds=[its.fileno()]
            )
        self._machine = _Machine(process, ours, scratch)
        return self.ready(wait) if wait else self

    def ready(self, wait: float = 30) -> Self:
        """Wait until the guest takes commands; its addresses are usable then."""
        try:
            self._until("ready", time.monotonic() + wait)
        except BaseException:
            self.stop()
            raise
        return self

    def run(self, command: str, *, timeout: float = 30) -> Answer:
        """Run a shell command (busybox) as root and wait for it. What goes to the background must redirect its output.

        A command over the limit is killed and gives exit code 137.
        """
        mark = secrets.token_hex(8)
        line = f"{mark} {math.ceil(timeout)} {base64.b64encode(command.encode()).decode()}\n"
        with self._lock:
            self._running().line.sendall(line.encode())
            return self._until(mark, time.monotonic() + timeout + GRACE)

    def stop(self) -> None:
        """Kill QEMU and remove what it needed; the tap stays, it is not ours."""
        if self._machine is not None:
            machine, self._machine = self._machine, None
            machine.process.kill()
            machine.process.wait()
            machine.line.close()
            shutil.rmtree(machine.scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self if self._machine else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running(self) -> _Machine:
        if self._machine is None:
            raise Unavailable(f"guest on {self.tap}: it is not started")
        return self._machine

    def _until(self, mark: str, deadline: float) -> Answer:
        """Read the line up to a mark and the exit code behind it."""
        machine, heard = self._running(), b""
        end = re.compile(rb"\n" + mark.encode() + rb" (\d+)\n")
        while not (found := end.search(heard)):
            machine.line.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                more = machine.line.recv(65536)
            except TimeoutError:
                raise Unavailable(f"guest on {self.tap}: no answer; heard {heard!r}; {machine.last_words()}") from None
            if not more:
                raise Unavailable(f"guest on {self.tap}: QEMU ended; {machine.last_words()}")
            heard += more
        return Answer(int(found[1]), heard[: found.start()].decode(errors="replace"))


class _Machine(NamedTuple):
    """A running QEMU: its process, our end of its virtio serial line, its files."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    scratch: Path

    @property
    def console(self) -> Path:
        return self.scratch / "console"

    def last_words(self) -> str:
        """The end of what QEMU and the guest's kernel said, for a message."""
        files = {"QEMU": self.scratch / "qemu", "console": self.console}
        said = {name: path.read_text(errors="replace") for name, path in files.items() if path.exists()}
        return ", ".join(f"{name}: {text[-1000:].strip()!r}" for name, text in said.items())


def _echo_server() -> Path:
    """The static echo service, compiled when its source changed."""
    kernel.require("gcc")
    source, program = kernel.ASSETS / "echo.c", kernel.home() / "echo"
    with kernel.locked(program):
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            log.info("compile %s", source.name)
            command = ["gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-o", str(program), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotSupported(f"cannot compile {source.name} (libc6-dev missing?): {done.stderr.strip()[-500:]}")
    return program
