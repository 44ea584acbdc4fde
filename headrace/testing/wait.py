"""Wait for a condition instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

FIRST_PAUSE = 0.001
LONGEST_PAUSE = 0.05


def wait_until(predicate: Callable[[], T], timeout: float = 5.0, what: str = "") -> T:
    """Ask ``predicate`` until its answer is true, and return that answer; ``timeout`` in seconds."""
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise _late(predicate, timeout, what)
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)
    return answer


@overload
async def async_wait_until(predicate: Callable[[], Awaitable[T]], timeout: float = 5.0, what: str = "") -> T: ...  # noqa: ASYNC109


@overload
async def async_wait_until(predicate: Callable[[], T], timeout: float = 5.0, what: str = "") -> T: ...  # noqa: ASYNC109


async def async_wait_until(predicate: Callable[[], Any], timeout: float = 5.0, what: str = "") -> Any:  # noqa: ASYNC109
    """Do as ``wait_until`` in an event loop; the predicate may be a coroutine function."""
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        given = predicate()
        answer = await given if inspect.isawaitable(given) else given
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise _late(predicate, timeout, what)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def _late(predicate: Callable[[], object], timeout: float, what: str) -> TimeoutError:
    if not what:
        code = getattr(predicate, "__code__", None)
        what = f"{code.co_filename}:{code.co_firstlineno}" if code else repr(predicate)
    return TimeoutError(f"not within {timeout:g} s: {what}")
