"""Commands and daemons that end when the bench ends, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STOP_PATIENCE_S = 5.0


class CommandError(Exception):
    """A command said no; the message has the command and its last words."""


class SetupError(Exception):
    """A contender cannot run on this machine; the message says what it lacks."""


def within(namespace: str | None, argv: Iterable[str]) -> list[str]:
    """``argv`` in a network namespace: nsenter, since ``ip netns exec`` remounts /sys and hides the bpf file system."""
    return [*(["nsenter", f"--net=/run/netns/{namespace}", "--"] if namespace else []), *argv]


def run(
    *argv: str,
    namespace: str | None = None,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> str:
    """Run to the end and return stdout; raise ``CommandError`` when it fails or takes longer than ``timeout`` s."""
    command = within(namespace, argv)
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{' '.join(argv)[:200]}: not done after {timeout:g} s") from error
    except FileNotFoundError as error:
        raise CommandError(f"{argv[0]}: not installed") from error
    if done.returncode:
        raise CommandError(f"{' '.join(argv)[:200]}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


class Daemon:
    """A child that the kernel kills if we die, and that ``stop`` ends and waits for."""

    def __init__(
        self,
        *argv: str,
        namespace: str | None = None,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        talks: bool = False,
    ) -> None:
        self.name = Path(argv[0]).name
        # setpriv makes the kernel send the signal; exec keeps the promise.
        command = ["setpriv", "--pdeathsig", "KILL", "--", *within(namespace, argv)]
        self._log: BinaryIO = log.open("wb") if log else tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else self._log,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident(self) -> int:
        """Octets of memory that it has for itself or shares (proc_pid_status(5), VmRSS)."""
        told = Path(f"/proc/{self.pid}/status").read_text()
        return next((int(line.split()[1]) * 1024 for line in told.splitlines() if line.startswith("VmRSS:")), 0)

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, line: str) -> str:
        """Send a line to a child that ``talks`` and return the line it answers."""
        if self._process.stdin is None or self._process.stdout is None:
            raise CommandError(f"{self.name}: does not talk")
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()
        return self._process.stdout.readline().decode()

    def signal(self, number: int) -> None:
        if self.alive():
            self._process.send_signal(number)

    def last_words(self, octets: int = 500) -> str:
        """The end of what it logged, for a message."""
        try:
            # Opened anew, for an offset of our own.
            return Path(f"/proc/self/fd/{self._log.fileno()}").read_text(errors="replace").strip()[-octets:]
        except (OSError, ValueError):
            return ""

    def stop(self) -> None:
        """End it; a stopped process (SIGSTOP) must be continued by then or is killed."""
        if self.alive():
            self._process.terminate()
            try:
                self._process.wait(STOP_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
