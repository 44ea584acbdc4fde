"""Waiting for conditions."""

from __future__ import annotations

import itertools

import pytest

from headrace.testing.wait import async_wait_until, wait_until


def test_the_answer_comes_back() -> None:
    tries = itertools.count()
    assert wait_until(lambda: "ready" if next(tries) > 2 else "") == "ready"


def test_a_condition_that_never_comes_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"not within 0\.01 s: port p1 active"):
        wait_until(lambda: False, timeout=0.01, what="port p1 active")
    with pytest.raises(TimeoutError, match=r"test_wait\.py:\d+"):
        wait_until(lambda: False, timeout=0)


def test_a_broken_question_is_not_asked_again() -> None:
    tries = itertools.count()

    def broken() -> bool:
        next(tries)
        raise LookupError

    with pytest.raises(LookupError):
        wait_until(broken)
    assert next(tries) == 1


async def test_plain_and_coroutine_conditions_in_a_loop() -> None:
    tries = itertools.count()

    async def ready() -> int:
        return next(tries)

    assert await async_wait_until(ready) == 1
    assert await async_wait_until(lambda: next(tries)) == 2
    with pytest.raises(TimeoutError, match="nothing"):
        await async_wait_until(lambda: False, timeout=0.01, what="nothing")
