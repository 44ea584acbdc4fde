"""What waits to be sent to a watcher, bounded: one that is too slow is dropped, and the others never wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

import msgspec

from headrace.controller.api import Event

QUEUE_OCTETS = 32 * 1024 * 1024
"""The limit: twice the events of a network of 10,000 ports."""


def line(event: Event) -> bytes:
    """An event as it is sent."""
    return msgspec.json.encode(event) + b"\n"


class Watcher:
    """What waits to be sent to one watcher. ``host`` None: one that sees everything."""

    def __init__(self, host: str | None = None, *, limit: int = QUEUE_OCTETS) -> None:
        self.host = host
        self.dropped = False
        self.ended = False
        self.on_drop: Callable[[], None] = lambda: None
        self._limit = limit
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._more = asyncio.Event()

    def push(self, data: bytes) -> None:
        """Queue lines, or drop the watcher."""
        if self.dropped:
            return
        # What is waiting counts, not what comes: one large transaction must not drop who has kept up.
        if self._waiting > self._limit:
            self.drop()
            return
        self._waiting += len(data)
        self._lines.append(data)
        self._more.set()

    def drop(self) -> None:
        """Too slow: forget what waits, and cut the connection."""
        self.dropped = True
        self.clear()
        self.end()
        self.on_drop()

    async def pull(self, timeout: float) -> bytes:  # noqa: ASYNC109 - a quiet watch is no error: nothing comes back
        """What has come together, after waiting for something; nothing when the time is up or it has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):  # wait_for of Python 3.11 may swallow a cancellation
                await self._more.wait()
        data = b"".join(self._lines)
        self.clear()
        return data

    def clear(self) -> None:
        """Forget what waits."""
        self._lines.clear()
        self._waiting = 0
        self._more.clear()

    def end(self) -> None:
        """Wake who pulls, to stop."""
        self.ended = True
        self._more.set()
