"""A controller for tests and the lab: in a thread of this process, or a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from headrace.controller.api import HEARTBEAT
from headrace.controller.config import ControllerConfig
from headrace.controller.identity import Authority
from headrace.controller.serve import running
from headrace.testing.wait import wait_until

STARTED = "headrace controller: serving "
"""What the process prints before its URL."""


@contextlib.contextmanager
def controller_thread(config: ControllerConfig, *, heartbeat: float = HEARTBEAT) -> Iterator[str]:
    """Serve from a thread, in the caller's network namespace; yields the URL. For synchronous tests."""
    answers: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        end = asyncio.Event()
        stop.append((asyncio.get_running_loop(), end))
        async with running(config, heartbeat=heartbeat) as controller:
            answers.put(controller.url)
            await end.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 - raised where the test waits
            answers.put(error)

    thread = threading.Thread(target=run, name="controller")
    thread.start()
    try:
        answer = answers.get(timeout=10)
        if isinstance(answer, BaseException):
            raise answer
        yield answer
    finally:
        if stop:
            loop, end = stop[0]
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(end.set)
        thread.join(10)


@contextlib.contextmanager
def controller_process(
    directory: Path, *, listen: str = "127.0.0.1:0", tls: bool = False, prefix: Sequence[str] = ()
) -> Iterator[str]:
    """Serve from ``headrace controller``; yields the URL.

    State, configuration, log and (``tls``) certificates are in ``directory``. ``prefix`` is put before the
    command, to run it in a network namespace.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pki = directory / "pki"
    if tls and not pki.exists():
        authority = Authority.create(pki)
        authority.issue(
            pki, "controller", "controller", "localhost", ["localhost", listen.rpartition(":")[0].strip("[]")]
        )
        authority.issue(pki, "client", "operator", "cli")
    path = directory / "controller.toml"
    path.write_text(
        f'listen = "{listen}"\nstore = "sqlite:{directory / "state.db"}"\n'
        f'tls = {"true" if tls else "false"}\ncertificates = "{pki}"\n'
    )
    command = [*prefix, sys.executable, "-m", "headrace", "controller", "--config", str(path)]
    log, said = directory / "controller.log", directory / "controller.out"
    with (
        log.open("ab") as errors,
        said.open("wb") as words,
        subprocess.Popen(command, stdout=words, stderr=errors) as process,
    ):
        try:
            wait_until(lambda: STARTED in said.read_text() or process.poll() is not None, 15)
            if process.poll() is not None:
                raise RuntimeError(f"controller ended with status {process.returncode}: {log.read_text()[-2000:]}")
            yield said.read_text().partition(STARTED)[2].split()[0]
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
