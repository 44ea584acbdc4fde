"""How a command on the host asks the agent there: one line of JSON each way over a Unix socket of root's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec

from headrace.agent.verify import Difference
from headrace.errors import HeadraceError, InvalidInput, Unavailable

SOCKET = "agent.sock"
PATIENCE = 120.0
"""Seconds that an answer may take."""
LONGEST = 64 * 1024 * 1024


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked: ``verify``, with or without ``repair``; ``drain`` on or off."""

    verify: bool = False
    repair: bool = False
    drain: bool | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``differences``: what was found; ``left``: what is still so after a repair. ``error``: why there is no answer."""

    differences: tuple[Difference, ...] = ()
    left: tuple[Difference, ...] = ()
    drained: bool = False
    agent: Literal["running", "absent"] = "running"
    error: str = ""


Handler = Callable[[Request], Awaitable[Answer]]


@contextlib.asynccontextmanager
async def listening(run: Path, handle: Handler) -> AsyncIterator[None]:
    """Answer requests while inside. The caller holds the datapath's lock: a socket found there is a dead one's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                answer = await handle(msgspec.json.decode(await reader.readline(), type=Request))
            except (HeadraceError, msgspec.MsgspecError, ValueError) as error:
                answer = Answer(error=str(error))
            writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        except OSError:  # whoever asked is gone
            pass
        finally:
            writer.close()

    path = run / SOCKET
    prepare(path)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(serve, path)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        prepare(path)


def prepare(path: Path) -> None:
    """Make room for a socket."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


def ask(run: Path, request: Request) -> Answer | None:
    """What the agent answers; None when none runs. Raises Unavailable when it does not answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect(str(run / SOCKET))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise Unavailable(f"{run / SOCKET}: {error.strerror}") from None
        try:
            sock.sendall(msgspec.json.encode(request) + b"\n")
            with sock.makefile("rb") as answers:
                line = answers.readline(LONGEST)
        except OSError:
            line = b""
    if not line:
        raise Unavailable("the agent ended, or did not answer in time; see its log")
    answer = msgspec.json.decode(line, type=Answer)
    if answer.error:
        raise InvalidInput(answer.error)
    return answer
