"""Several questions at once, but not all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

#: An API server shares its attention among all who ask (API priority and fairness).
AT_ONCE = 8


async def together(questions: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """The answers in the order of the questions; the first error ends the others and is raised as it is."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def ask(question: Callable[[], Awaitable[T]]) -> T:
        async with turns:
            return await question()

    # Not a TaskGroup: until Python 3.11.3 one that failed leaves the task behind as if it were being cancelled, and the
    # next `asyncio.timeout` in it then ends with CancelledError (cpython issue 102780).
    tasks = [asyncio.create_task(ask(question), name="cluster question") for question in questions]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
