"""A watch that goes on: over the server's timeouts, broken connections, and a past that the server has forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from agent.cluster.asking import Asker
from agent.cluster.reading import MAX_OBJECT_BYTES, Json, read_object
from agent.cluster.refusals import TRANSIENT, Question
from agent.cluster.retrying import WATCH
from agent.cluster.session import Query
from agent.cluster.watching import ADDED, DELETED, MODIFIED, Event, Seen
from agent.contract.errors import ClusterError, ClusterRefused, ClusterUnavailable

#: The server ends a watch after so long (it would choose 30 to 60 min itself); a broken connection that nobody told
#: us of is noticed some seconds later, so this bounds for how long an event can stay unseen.
SERVER_SECONDS = 240
_GRACE_SECONDS = 15.0
_GONE = 410

#: Every object there is, and the version of the list.
Relist = Callable[[], Awaitable[tuple[list[Json], str]]]


class _Expired(Exception):  # noqa: N818 (what happened)
    """The server does not know the version any more from which it was asked to go on."""


@dataclass(slots=True)
class Watch:
    """One watch. `version` is the place from which it goes on, "" where it begins with a list."""

    asker: Asker
    question: Question
    query: Query
    relist: Relist
    version: str = ""
    _opened: float | None = field(default=None, init=False)

    async def events(self) -> AsyncGenerator[Event]:
        """Events, in the API server's order for each object, without end.

        Raises:
            ClusterUnavailable: five minutes of failures without an event between them.
            ClusterError: any other no.
        """
        seen, clock = Seen(), self.asker.clock
        began, failures = clock.now(), 0
        while True:
            self._opened = None
            try:
                if not self.version:
                    objects, self.version = await self.relist()
                    for event in seen.list(objects):
                        yield event
                async with contextlib.aclosing(self._stream()) as told:
                    async for kind, item in told:
                        for event in seen.event(kind, item):
                            yield event
                error = ClusterUnavailable(f"{self.asker.server} ends the question to {self.question} at once")
                if self._lived():  # an end that the server has announced
                    failures = 0
                    continue
            except _Expired:
                self.version = ""
                error = ClusterUnavailable(f"{self.asker.server} forgets at once what it answered to {self.question}")
            except ClusterUnavailable as caught:
                error = caught
            if self._lived() or not failures:
                began, failures = clock.now(), 0
            failures += 1
            pause, passed = WATCH.pause(failures, error, clock.spread()), clock.now() - began
            if passed + pause > WATCH.seconds:
                raise ClusterUnavailable(
                    f"{error}; the watch has failed {failures} times in {passed:.0f} s", status=error.status
                ) from error
            await clock.sleep(pause)

    def _lived(self) -> bool:
        """Whether the last connection was one: what breaks after a while is no reason to give up."""
        return self._opened is not None and self.asker.clock.now() - self._opened >= 1

    async def _stream(self) -> AsyncGenerator[Event]:
        """The events of one connection."""
        query = [
            *self.query,
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", self.version),
            ("timeoutSeconds", str(SERVER_SECONDS)),
        ]
        try:
            async with self.asker.stream(self.question, query, SERVER_SECONDS + _GRACE_SECONDS) as stream:
                self._opened = self.asker.clock.now()
                async with contextlib.aclosing(stream.lines(MAX_OBJECT_BYTES)) as lines:
                    async for line in lines:
                        event = self._event(line)
                        if event is not None:
                            yield event
        except ClusterError as error:
            if error.status == _GONE:
                raise _Expired from error
            raise

    def _event(self, line: bytes) -> Event | None:
        """What a line says; None for a bookmark, which only says how far the server is."""
        server = self.asker.server
        message = read_object(line, "an event of a watch", server)
        kind, item = message.get("type"), message.get("object")
        if not isinstance(kind, str) or not isinstance(item, dict):
            raise ClusterUnavailable(f"{server} answered with something that is not an event of a watch")
        if kind == "ERROR":
            raise self._error(item)
        metadata = item.get("metadata")
        if not isinstance(metadata, dict) or kind not in (ADDED, MODIFIED, DELETED, "BOOKMARK"):
            raise ClusterUnavailable(f"{server} answered with something that is not an event of a watch")
        self.version = str(metadata.get("resourceVersion") or self.version)
        return None if kind == "BOOKMARK" else (kind, item)

    def _error(self, status: Json) -> ClusterError:
        code, message = status.get("code"), str(status.get("message") or "no reason given")[:256]
        code = code if isinstance(code, int) else 0
        sentence = f"{self.asker.server} broke off the question to {self.question} ({code}: {message})"
        if code in TRANSIENT or not code:
            return ClusterUnavailable(sentence, status=code)
        return ClusterRefused(sentence, status=code)
