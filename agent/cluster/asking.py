"""One question until it is answered: asked again after a pause, with a new login when the old one has expired."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from agent.cluster.login import Way
from agent.cluster.refusals import Question, refusal
from agent.cluster.retrying import QUESTION, Patience
from agent.cluster.session import JSON, Answer, Hopeless, Query, Session, Stream
from agent.cluster.vendor import Vendor
from agent.cluster.words import Words
from agent.contract.errors import ClusterError, ClusterUnavailable

log = structlog.get_logger("podhook.cluster")

T = TypeVar("T")
_UNAUTHORIZED = 401
#: A Status that says no is small; whatever a proxy says instead is not read to its end.
_MAX_NO_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, as tests replace it: seconds that only grow, a pause, and a number in [0, 1)."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    spread: Callable[[], float] = random.random


class Asker:
    """Asks the API server. `open` before anything else, `close` at the end."""

    def __init__(self, way: Way, words: Words, timeout_seconds: float, clock: Clock) -> None:
        self.way = way
        self.words = words
        self.timeout_seconds = timeout_seconds
        self.clock = clock
        self._vendor: Vendor
        self._session: Session
        self._renewing = asyncio.Lock()

    async def open(self, vendor: Vendor) -> None:
        """Log in. Raises what `Way.log_in` and Session raise."""
        self._vendor = vendor
        self._session = await self._log_in()

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    @property
    def server(self) -> str:
        """How sentences name the API server."""
        return self._session.server

    @property
    def namespace(self) -> str:
        """The namespace of the login."""
        return self._session.login.namespace

    async def again(self, what: object, attempt: Callable[[int], Awaitable[T]], patience: Patience = QUESTION) -> T:
        """Call `attempt` with 1, 2, ... until it does not raise ClusterUnavailable, as `patience` has it.

        Raises:
            ClusterUnavailable: the last one's, saying how often and for how long it was tried.
        """
        began, failures = self.clock.now(), 0
        while True:
            try:
                return await attempt(failures + 1)
            except Hopeless:
                raise
            except ClusterUnavailable as error:
                failures += 1
                passed = self.clock.now() - began
                pause = patience.pause(failures, error, self.clock.spread())
                if failures >= patience.tries or passed + pause > patience.seconds:
                    raise ClusterUnavailable(
                        _gave_up(error, failures, passed, pause, patience),
                        retry_after_seconds=error.retry_after_seconds,
                        status=error.status,
                    ) from error
                log.warning(
                    "cluster.asked_again",
                    question=str(what),
                    failures=failures,
                    status=error.status,
                    pause_seconds=round(pause, 1),
                )
                await self.clock.sleep(pause)

    async def ask(self, question: Question, method: str = "GET", **asked: Any) -> Answer:
        """`ask_once`, again while that helps: for questions that change nothing when they are asked twice."""
        return await self.again(question, lambda _: self.ask_once(question, method, **asked))

    async def ask_once(
        self,
        question: Question,
        method: str = "GET",
        *,
        path: str = "",
        limit_bytes: int,
        query: Query = (),
        accept: str = JSON,
        body: Any = None,
        passing: frozenset[int] = frozenset(),
    ) -> Answer:
        """One question and its answer, whose status is 200 to 299 or one of `passing`.

        Raises:
            ClusterError: another status, an answer of more than `limit_bytes`, or none.
        """
        path = path or question.resource.path(question.namespace, question.name, question.subresource)

        async def ask(session: Session) -> Answer:
            async with session.used():
                return await session.ask(
                    method,
                    path,
                    query=query,
                    accept=accept,
                    body=body,
                    limit_bytes=limit_bytes,
                    timeout_seconds=self.timeout_seconds,
                )

        session = self._session
        answer = await ask(session)
        if answer.status == _UNAUTHORIZED:
            answer = await ask(await self._renewed(session))
        if answer.status not in passing and not 200 <= answer.status < 300:
            raise refusal(answer, question, self.server, self.words, self.namespace)
        if not answer.whole:
            raise Hopeless(
                f"{self.server} answered with more than {limit_bytes} bytes to {question}; ask for less (a narrower "
                "selector), and check that it is the API server"
            )
        return answer

    @asynccontextmanager
    async def stream(self, question: Question, query: Query, silence_seconds: float) -> AsyncIterator[Stream]:
        """One question whose answer is read as it comes; its status is 200.

        Raises:
            ClusterError: another status, or no answer.
        """
        path = question.resource.path(
            question.namespace, "" if question.verb == "watch" else question.name, question.subresource
        )
        async with AsyncExitStack() as stack:

            async def opened(session: Session) -> Stream:
                await stack.enter_async_context(session.used())
                return await stack.enter_async_context(
                    session.stream(
                        "GET", path, query=query, open_seconds=self.timeout_seconds, silence_seconds=silence_seconds
                    )
                )

            session = self._session
            stream = await opened(session)
            if stream.status == _UNAUTHORIZED:
                stream = await opened(await self._renewed(session))
            if stream.status != 200:
                answer = await stream.answer(_MAX_NO_BYTES)
                raise refusal(answer, question, self.server, self.words, self.namespace)
            yield stream

    # -- the login

    async def _renewed(self, refused: Session) -> Session:
        """A session with a new login: a token that was rotated or has expired is read or fetched anew."""
        async with self._renewing:
            if self._session is refused:  # else somebody else was quicker
                self._session = await self._log_in()
                await refused.retire()
            return self._session

    async def _log_in(self) -> Session:
        login = await self.way.log_in(self._vendor, self.words, self.timeout_seconds)
        return Session(self._vendor, login, self.words)


def _gave_up(error: ClusterError, failures: int, passed: float, pause: float, patience: Patience) -> str:
    asked = f"{error}; asked {failures} times in {passed:.0f} s"
    if failures >= patience.tries:
        return asked
    return f"{asked}, and the next {pause:.0f} s would pass the limit of {patience.seconds:g} s; try again later"
