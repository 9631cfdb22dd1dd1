"""The thread of a journal: its calls block (0.2 ms for a write on a good disk) and must not hold up the event loop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from agent.contract.errors import JournalUnavailable
from agent.journal import file
from agent.journal.record import Journal

P = ParamSpec("P")
T = TypeVar("T")


class JournalThread:
    """Runs a journal's calls on one thread of its own, in order."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._journal: Journal | None = None
        self._path: Path | None = None

    @property
    def journal(self) -> Journal | None:
        """The open journal, for what was read when it was opened; None while there is none."""
        return self._journal

    async def open(self, directory: Path, pod_uid: str, now: datetime) -> Journal:
        """Open it (again). Raises what `Journal.open` raises."""
        self._path = file.path_of(directory, pod_uid)
        loop = asyncio.get_running_loop()
        self._journal = await loop.run_in_executor(self._executor, lambda: Journal.open(directory, pod_uid, now=now))
        return self._journal

    async def call(self, method: Callable[Concatenate[Journal, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `method` of the journal. It goes through to its end even if the caller is cancelled.

        Raises:
            JournalUnavailable: it is not open, or could not be read or written.
        """
        if self._journal is None:
            raise JournalUnavailable("the journal is not open")
        journal = self._journal
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, lambda: method(journal, *args, **kwargs))
        return await asyncio.shield(work)  # a cancelled future would take what waits out of the queue

    @property
    def client_suffix(self) -> str:
        """What makes the client id our own; the same after every start, also while the journal cannot be opened."""
        if self._journal is not None:
            return self._journal.client_suffix
        suffix = file.read_suffix(self._path) if self._path is not None else None
        if suffix is None:
            suffix = secrets.token_hex(6)
            if self._path is not None:
                file.keep_suffix(self._path, suffix)
        return suffix

    async def mark_refused(self, until: datetime) -> None:
        """A trigger issued before `until` was refused without a record: the next process shall know it as well.

        Raises:
            OSError: it cannot be marked.
        """
        if self._path is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, file.mark_refused, self._path, until)

    async def close(self) -> None:
        """Close the journal and end the thread."""
        if self._journal is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._journal.close)
            self._journal = None
        self._executor.shutdown(wait=False)
