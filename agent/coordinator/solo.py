"""One run that needs no agent - the coordinator's own action, or a Job - with retries and an end one can ask for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from agent.actions.stop import Stop, StopReason
from agent.contract.errors import ErrorCode
from agent.contract.messages import Result
from agent.contract.outcomes import failure
from agent.contract.states import Outcome
from agent.coordinator.calls import HookCall
from agent.coordinator.results import OnEvent, RunEvent, TargetResult
from agent.coordinator.retries import code_of, retry_pause_seconds, that_counts_of
from agent.coordinator.targets import Target
from agent.coordinator.verdict import may_retry
from agent.coordinator.watch import CANCEL_SECONDS

log = structlog.get_logger("podhook.coordinator")

#: Who watches hears what an attempt is about: its number, and what may end it.
Attempt = Callable[[int, Stop, Callable[[str], None]], Awaitable[Result]]


@dataclass(slots=True, eq=False)
class Solo:
    """One hook with one target that is no agent. `attempt` runs it once; see `Round` for what agents run."""

    run_id: str
    call: HookCall
    target: Target
    attempt: Attempt
    on_event: OnEvent
    now: Callable[[], datetime]
    cancelled: bool = False
    _stop: Stop | None = None
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> list[TargetResult]:
        """Run to the end, whatever that is; raises nothing for what the hook does."""
        results: list[TargetResult] = []
        while True:
            number = len(results) + 1
            result = await self._once(number)
            results.append(TargetResult(self.target, number, result))
            self._say("outcome", number, result.error.message if result.error else "", result)
            if not await self._again(number, result):
                return [that_counts_of(results)]

    async def _once(self, number: int) -> Result:
        if self.cancelled:
            return failure(Outcome.CANCELLED, ErrorCode.CANCELLED, "the run was cancelled before this attempt began")
        loop = asyncio.get_running_loop()
        started_at, begun = self.now(), loop.time()
        self._stop = Stop(self.call.timeout_seconds)
        self._say("started", number)
        try:
            result = await self.attempt(number, self._stop, lambda text: self._say("running", number, text))
        except Exception:
            log.exception("hook.crashed", run_id=self.run_id)
            text = "a fault in podhook itself ended the attempt; whether it took effect is unknown: see the log"
            result = failure(Outcome.INTERRUPTED, ErrorCode.INTERNAL, text)
        finally:
            self._stop.close()
        return result.model_copy(update={"started_at": started_at, "duration_seconds": loop.time() - begun})

    async def _again(self, number: int, result: Result) -> bool:
        """Whether there is another attempt; waits its pause."""
        if self.cancelled or number > self.call.max_retry:
            return False
        if not may_retry(result.outcome, code_of(result), retry_unknown=self.call.retry_unknown):
            return False
        pause = retry_pause_seconds(number, random.random())  # noqa: S311 (jitter, not a secret)
        self._say("retry", number + 1, f"attempt {number + 1} of {self.call.max_retry + 1} in {pause:.1f} s")
        try:
            async with asyncio.timeout(pause):
                await self._wanted.wait()
        except TimeoutError:
            pass
        return not self.cancelled

    def cancel(self, within_seconds: float = CANCEL_SECONDS) -> None:  # noqa: ARG002 (nobody else is waited for)
        """Start nothing more and end what runs; `run` then comes back soon."""
        if not self.cancelled:
            self._say("cancelled", 0)
        self.cancelled = True
        self._wanted.set()
        if self._stop is not None:
            self._stop.set(StopReason.CANCELLED)

    def _say(self, kind: str, attempt: int, text: str = "", result: Result | None = None) -> None:
        self.on_event(RunEvent(kind, self.run_id, self.target, attempt, text, result))
