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

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(question), name="cluster question") for question in questions]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
