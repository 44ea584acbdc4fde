"""A lab of hosts as network namespaces that removes exactly what it made.

    with Topology() as t:
        a, b = t.host("a"), t.host("b")
        t.link(a, "eth0", b, "eth0", a_addresses=["192.0.2.1/24"], b_addresses=["192.0.2.2/24"])
        a.run("ping -c 1 -W 1 192.0.2.2")

Commands enter by nsenter: "ip netns exec" mounts its own /sys and hides BPF filesystems.
Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from headrace.errors import HeadraceError
from headrace.testing.wait import wait_until

NAMESPACES = Path("/run/netns")
IPV6_LEAST_MTU = 1280
CLONE_NEWNET = 0x40000000
GRACE = 2.0
"""Seconds a process has between SIGTERM and SIGKILL."""

Command = str | Sequence[str]
_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(HeadraceError):
    """A command of the lab ended badly; the message has its output."""


class Process(subprocess.Popen[str]):
    """A process of a namespace, in a session of its own; what it prints goes to ``log``."""

    log: Path

    def output(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        """End it and all that it started."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(GRACE)
        return self.wait()


class Namespace:
    """One host of a topology."""

    def __init__(self, topology: Topology, host: str, name: str) -> None:
        self.host = host
        self.name = name
        self.path = NAMESPACES / name
        self._topology = topology

    def run(
        self, command: Command, *, check: bool = True, stdin: str | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end and return what it printed; ``check`` raises when it fails. No shell is involved."""
        return run(self._inside(command), check=check, stdin=stdin, timeout=timeout)

    def popen(
        self,
        command: Command,
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start in the background; ended with the topology."""
        return self._topology.start(self._inside(command), self.host, stdin=stdin, stdout=stdout, env=env)

    @contextlib.contextmanager
    def enter(self) -> Iterator[Self]:
        """Put the current thread into the namespace: sockets, netlink and sysctls then are the host's."""
        with Path("/proc/thread-self/ns/net").open("rb") as home, self.path.open("rb") as inside:
            _setns(inside.fileno())
            try:
                yield self
            finally:
                _setns(home.fileno())

    def ip(self, command: Command) -> list[dict[str, Any]]:
        """Answer of ``ip`` with this host's namespace, as JSON where it prints any."""
        words = shlex.split(command) if isinstance(command, str) else list(command)
        printed = run(["ip", "-json", "-details", "-n", self.name, *words]).stdout
        answer: list[dict[str, Any]] = json.loads(printed) if printed.strip() else []
        return answer

    def sysctl(self, key: str, value: str | int) -> None:
        """Set e.g. ``net.ipv4.ip_forward``; a device's name with a dot in it is written with slashes around."""
        with self.enter():
            Path("/proc/sys", key if "/" in key else key.replace(".", "/")).write_text(str(value))

    def ifindex(self, device: str) -> int:
        """Index of a device."""
        with self.enter():
            return socket.if_nametoindex(device)

    def mac(self, device: str) -> str:
        """MAC of a device."""
        return str(self.ip(f"link show dev {device}")[0]["address"])

    def ready(self, device: str) -> bool:
        """Whether the kernel has noticed the carrier and all IPv6 addresses can be used."""
        (facts,) = self.ip(f"address show dev {device}")
        addresses = [address for address in facts["addr_info"] if address["family"] == "inet6"]
        if not addresses and facts["mtu"] >= IPV6_LEAST_MTU:
            return False
        return facts["operstate"] == "UP" and not any(address.get("tentative") for address in addresses)

    def _inside(self, command: Command) -> list[str]:
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
        return ["nsenter", f"--net={self.path}", "--", *words]


class Topology:
    """Owns namespaces, their veths, BPF filesystems, processes and a folder, all named by a random prefix."""

    def __init__(self) -> None:
        self.prefix = f"hr{secrets.token_hex(3)}"
        self._hosts: dict[str, Namespace] = {}
        self._exit = contextlib.ExitStack()
        self._count = itertools.count(1)

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self._exit.callback(shutil.rmtree, self.directory)
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    def on_exit(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call when the topology goes, last registered first."""
        self._exit.callback(callback, *arguments)

    def host(self, name: str) -> Namespace:
        """Return the namespace of host ``name``, made when first asked for."""
        if name not in self._hosts:
            host = Namespace(self, name, f"{self.prefix}-{name}")
            run(["ip", "netns", "add", host.name])
            self.on_exit(run, ["ip", "netns", "delete", host.name])
            for part in ("all", "default"):  # the kernel checks addresses unless both say no
                host.sysctl(f"net.ipv6.conf.{part}.accept_dad", 0)
                host.sysctl(f"net.ipv6.conf.{part}.dad_transmits", 0)
            run(["ip", "-n", host.name, "link", "set", "lo", "up"])
            self._hosts[name] = host
        return self._hosts[name]

    def link(
        self,
        a: Namespace,
        a_device: str,
        b: Namespace,
        b_device: str,
        *,
        a_addresses: Sequence[str] = (),
        b_addresses: Sequence[str] = (),
        mtu: int = 1500,
    ) -> None:
        """Connect two hosts by a veth pair, both ends up; addresses as ``192.0.2.1/24``."""
        pair = f"name {a_device} netns {a.name} mtu {mtu} type veth peer name {b_device} netns {b.name} mtu {mtu}"
        run(["ip", "link", "add", *pair.split()])
        for host, device, addresses in ((a, a_device, a_addresses), (b, b_device, b_addresses)):
            lines = [f"address add {address} dev {device}{_nodad(address)}" for address in addresses]
            run(["ip", "-n", host.name, "-batch", "-"], stdin="\n".join([*lines, f"link set {device} up"]))
        for host, device in ((a, a_device), (b, b_device)):
            wait_until(lambda h=host, d=device: h.ready(d), what=f"device {device} of host {host.host} ready")  # type: ignore[misc]

    def bpffs(self, path: Path | None = None) -> Path:
        """Mount a BPF filesystem (in our folder when no path is given) and return its path."""
        where = path or self.directory / f"bpffs{next(self._count)}"
        where.mkdir(parents=True, exist_ok=True)
        run(["mount", "-t", "bpf", "bpf", str(where)])
        self.on_exit(run, ["umount", str(where)])
        return where

    def small_disk(self, name: str, octets: int) -> Path:
        """A file system of its own in our folder, as large as asked."""
        where = self.directory / name
        where.mkdir()
        run(["mount", "-t", "tmpfs", "-o", f"size={octets}", "tmpfs", str(where)])
        self.on_exit(run, ["umount", str(where)])
        return where

    def start(
        self,
        command: Sequence[str],
        host: str = "lab",
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a process outside any namespace; ended with the topology. A given ``env`` adds to ours."""
        log = self.directory / f"{host}-{next(self._count)}.log"
        with log.open("w") as file:
            process = Process(
                command,
                text=True,
                stdin=stdin,
                stdout=file if stdout is None else stdout,
                stderr=file,
                env={**os.environ, **env} if env else None,
                start_new_session=True,
            )
        process.log = log
        self.on_exit(process.stop)
        return process


def run(
    command: Sequence[str], *, check: bool = True, stdin: str | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command of the lab."""
    done = subprocess.run(command, check=False, input=stdin or "", capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        message = f"{shlex.join(command)} ended with {done.returncode}: {(done.stderr + done.stdout).strip()}"
        raise CommandFailed(message)
    return done


def _nodad(address: str) -> str:
    return " nodad" if ":" in address else ""


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")
