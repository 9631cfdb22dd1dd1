"""Why an attempt must end before its action is done, and how an action is ended for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import StrEnum
from typing import Any

from agent.contract.durations import format_duration
from agent.contract.errors import ErrorCode
from agent.contract.messages import ErrorDetail, Result
from agent.contract.states import Outcome


class StopReason(StrEnum):
    """Who wants the end."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    AGENT_STOPPING = "agent_stopping"


class Stop:
    """Set once; the first reason stays."""

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self._reason: asyncio.Future[StopReason] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None

    def start_clock(self) -> None:
        """The action begins now: it has `timeout_seconds` from here."""
        self._timer = asyncio.get_running_loop().call_later(self.timeout_seconds, self.set, StopReason.TIMED_OUT)

    def set(self, reason: StopReason) -> None:
        """Ask for the end. Without effect when somebody asked before."""
        if not self._reason.done():
            self._reason.set_result(reason)

    def close(self) -> None:
        """The action has ended; forget the clock."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def reason(self) -> StopReason | None:
        """Who asked, or None as long as nobody did."""
        return self._reason.result() if self._reason.done() else None

    async def wait(self) -> StopReason:
        """Wait until somebody asks."""
        return await asyncio.shield(self._reason)

    def ended(self, what: str) -> Result:
        """The result of an attempt that was stopped; `what` is the subject of its sentence.

        Raises:
            RuntimeError: nobody asked for a stop.
        """
        if self.reason is None:
            raise RuntimeError("the attempt was not stopped")
        limit = format_duration(self.timeout_seconds)
        outcome, code, sentence = {
            StopReason.TIMED_OUT: (
                Outcome.TIMED_OUT,
                ErrorCode.TIMEOUT,
                f"{what} did not end within its timeout of {limit}; raise the timeout if it needs longer",
            ),
            StopReason.CANCELLED: (
                Outcome.CANCELLED,
                ErrorCode.CANCELLED,
                f"{what} was stopped because the coordinator cancelled it",
            ),
            StopReason.AGENT_STOPPING: (
                Outcome.INTERRUPTED,
                ErrorCode.AGENT_STOPPED,
                f"{what} was stopped because the agent was told to stop; whether it took effect is unknown",
            ),
        }[self.reason]
        return Result(outcome=outcome, error=ErrorDetail(code=code, message=sentence))


async def unless_stopped(work: Coroutine[Any, Any, Result], stop: Stop, what: str) -> Result:
    """Run `work` to its end, or cancel it when a stop is asked for and say so. Cancellation passes through."""
    task = asyncio.create_task(work, name=f"action {what}")
    waiting = asyncio.create_task(stop.wait(), name="action stop")
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else stop.ended(what)
    finally:
        for each in (task, waiting):
            each.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
