"""The coordinator: connects, knows who is there, runs hooks and gathers their verdicts."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Self

import structlog
import uuid_utils

from agent.bus.broker import Broker, parse_broker
from agent.bus.link import Link
from agent.bus.types import Connected, Delivery, Disconnected, LinkOptions
from agent.contract.errors import BadInput
from agent.contract.messages import ErrorDetail, Presence
from agent.contract.templates import PodExecutor
from agent.contract.topics import Topics
from agent.coordinator.calls import HookCall
from agent.coordinator.results import OnEvent, RunEvent, RunResult, TargetResult
from agent.coordinator.round import Round
from agent.coordinator.targets import Selection, select
from agent.coordinator.verdict import Verdict, verdict_on_all, verdict_on_one
from agent.coordinator.watch import CANCEL_SECONDS
from agent.coordinator.wire import Wire

log = structlog.get_logger("podhook.coordinator")

#: Presence is complete when nothing retained came for this long; the broker says no end of it.
QUIET_SECONDS = 0.4
#: ... and at the latest after this long.
SETTLED_SECONDS = 5.0
CONNECT_SECONDS = 5.0


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def _guarded(on_event: OnEvent) -> OnEvent:
    """Who watches a run must not be able to stop it: what the callback raises is logged."""

    def tell(event: RunEvent) -> None:
        try:
            on_event(event)
        except Exception:
            log.exception("event.callback_failed", run_id=event.run_id, kind=event.kind)

    return tell


def _ignore(_: RunEvent) -> None:
    """Nobody watches."""


class Coordinator:
    """Runs hooks through the agents on a broker.

    Example:
        ::

            async with Coordinator("mqtt://127.0.0.1:1883") as coordinator:
                run = await coordinator.run(HookCall(load_hooks(text)[0]))
                print(run.verdict)

    Args:
        broker: a URL (`mqtt://host:1883`) or a `Broker` with credentials and certificates.
        topic_root: first level of every topic, as the agents have it.
        connect_seconds: how long the first connection may take.

    Raises (on entering):
        BrokerRefused: the broker answered and said no.
        LinkDown: no connection within `connect_seconds`.
        InvalidSettings: the broker's settings cannot be used.
    """

    def __init__(
        self,
        broker: str | Broker,
        *,
        topic_root: str = "podhook",
        connect_seconds: float = CONNECT_SECONDS,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._broker = broker if isinstance(broker, Broker) else parse_broker(broker)
        self._topics = Topics(topic_root)
        self._connect_seconds = connect_seconds
        self._now = now
        self.id = f"c-{secrets.token_hex(8)}"
        options = LinkOptions(
            client_id=f"podhook_{self.id}",
            subscriptions=((self._topics.replies(self.id), 1), (self._topics.presences(), 0)),
            receive_maximum=1000,
        )
        self._link = Link(self._broker, options)
        self._wire = Wire(self._link, self._topics, self.id, now)
        self._rounds: set[Round] = set()
        self._reading: asyncio.Task[None] | None = None
        self._presence_changed = asyncio.Event()
        self._wire.on_presence = self._presence_changed.set
        self._last_retained = 0.0
        self._cancels = 0

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        try:
            await self._link.wait_up(self._connect_seconds)
        except BaseException:
            await self._link.__aexit__()
            raise
        self._last_retained = asyncio.get_running_loop().time()
        self._reading = asyncio.create_task(self._read(), name="coordinator")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._link.__aexit__()

    # -- who is there

    async def agents(self) -> list[Presence]:
        """Everybody's presence, by namespace and name, once it is complete."""
        await self._settle(None)
        return self._known()

    async def presence_changed(self) -> None:
        """Wait until somebody's presence changes."""
        self._presence_changed.clear()
        await self._presence_changed.wait()

    # -- hooks

    async def run(self, call: HookCall, *, run_id: str | None = None, on_event: OnEvent = _ignore) -> RunResult:
        """Run a hook on the pods that it selects, and come back with its verdict.

        Cancelling the task that awaits this cancels the run: what was started is stopped, and up to ten seconds are
        spent on hearing how it ended. `on_event` then still hears every outcome.

        Args:
            call: the hook and how it is called.
            run_id: a UUIDv7 of your own, used once; made here if None.
            on_event: called for everything that happens, on the event loop; must not block. What it raises is logged.

        Raises:
            InvalidHook: the hook cannot be run as it is called; nothing was triggered.
            BadInput: `run_id` is no UUID, or a run of this coordinator has it; nothing was triggered.
        """
        call.check()
        executor = call.executor()
        run_id = self._checked(run_id or str(uuid_utils.uuid7()))
        cancels = self._cancels
        begun, started_at = asyncio.get_running_loop().time(), self._now()

        def result(
            verdict: Verdict, targets: Sequence[TargetResult] = (), error: ErrorDetail | None = None
        ) -> RunResult:
            seconds = asyncio.get_running_loop().time() - begun
            return RunResult(run_id, call.hook.name, verdict, started_at, seconds, tuple(targets), error, tuple(notes))

        notes: list[str] = []
        selection = await self._select(call, executor, cancels)
        if self._cancels != cancels:
            return result(
                Verdict.CANCELLED,
                error=ErrorDetail(code="cancelled", message="cancelled before anything was triggered; nothing ran"),
            )
        error = _why_not(call, executor, selection)
        if error is not None:
            return result(Verdict.NOT_STARTED, error=error)
        if selection.missing:
            names = ", ".join(map(str, selection.missing))
            notes.append(f"went on without {len(selection.missing)} selected pods whose agent is offline: {names}")
        if not selection.targets:
            notes.append("no pod was selected, and that was allowed")
            return result(Verdict.SUCCEEDED)
        tell = _guarded(on_event)
        tell(RunEvent("selected", run_id, targets=selection.targets))
        a_round = Round(
            run_id=run_id,
            hook=call.hook.name,
            action=call.action(),
            call=call,
            executor=executor,
            targets=selection.targets,
            wire=self._wire,
            on_event=tell,
            now=self._now,
        )
        results = await self._drive(a_round)
        outcomes = [each.result.outcome for each in results]
        if executor.strategy == "ExecuteOnOne":
            return result(verdict_on_one(outcomes, cancelled=a_round.cancelled), results)
        return result(verdict_on_all(outcomes, len(selection.targets), cancelled=a_round.cancelled), results)

    def cancel(self, *, within_seconds: float = CANCEL_SECONDS) -> None:
        """Cancel every run of this coordinator; their `run` comes back soon with what is known.

        Args:
            within_seconds: how long the pods have to say how it ended; who is silent then is `lost`. A second call
                can only shorten it.
        """
        self._cancels += 1
        self._presence_changed.set()  # a run that still waits to know its targets ends here, too
        for each in self._rounds:
            each.cancel(within_seconds)

    async def _drive(self, a_round: Round) -> list[TargetResult]:
        """Run a round to its end; when we are cancelled, cancel it and still hear its end, then pass that on."""
        self._wire.listen(a_round)
        self._rounds.add(a_round)
        running = asyncio.create_task(a_round.run(), name=f"run {a_round.run_id}")
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            a_round.cancel()
            await asyncio.wait({running})
            raise
        finally:
            running.cancel()
            self._rounds.discard(a_round)
            self._wire.forget(a_round)
            await a_round.close()

    def _checked(self, run_id: str) -> str:
        try:
            valid = str(uuid.UUID(run_id)) == run_id
        except ValueError:
            valid = False
        if not valid:
            raise BadInput(f"run id {run_id[:60]!r} is not a UUID in lower case; leave it out to have one made")
        if any(each.run_id == run_id for each in self._rounds):
            raise BadInput(f"run id {run_id} is in use by a run that has not ended; every run needs its own")
        return run_id

    # -- targets

    async def _select(self, call: HookCall, executor: PodExecutor, cancels: int) -> Selection:
        def enough() -> bool:
            found = len(select(self._known(), executor, call.namespaces).targets)
            return found == call.expect or self._cancels != cancels

        await self._settle(enough if call.expect is not None else None)
        return select(self._known(), executor, call.namespaces)

    async def _settle(self, enough: Callable[[], bool] | None) -> None:
        """Wait until presence is complete, that is quiet for a while; with `enough`, also for that, a few seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + SETTLED_SECONDS
        while loop.time() < end:
            quiet_at = self._last_retained + QUIET_SECONDS
            quiet = loop.time() >= quiet_at
            if quiet:
                self._wire.presence_complete()
                if enough is None or enough():
                    return
            self._presence_changed.clear()
            try:
                async with asyncio.timeout_at(end if quiet else min(quiet_at, end)):
                    await self._presence_changed.wait()
            except TimeoutError:
                continue

    def _known(self) -> list[Presence]:
        return [presence for _, presence in sorted(self._wire.presences.items())]

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        async for event in self._link.events():
            match event:
                case Connected():
                    self._last_retained = loop.time()
                    self._presence_changed.set()
                    for each in self._rounds:
                        each.link_restored()
                case Disconnected(reason, _):
                    self._last_retained = float("inf")  # not quiet before the link is up again
                    self._wire.link_lost()
                    for each in self._rounds:
                        each.on_event(RunEvent("broker", each.run_id, text=f"connection lost: {reason}"))
                case Delivery():
                    if event.retain:
                        self._last_retained = loop.time()
                    self._wire.take(event)
                    event.ack()


def _why_not(call: HookCall, executor: PodExecutor, selection: Selection) -> ErrorDetail | None:
    """Why a run must not begin with this selection; None when it may."""
    where = "any namespace" if call.namespaces is None else "namespace " + ", ".join(sorted(call.namespaces))
    what = f"selector {executor.selector!r}" + (" and owner" if executor.owner else "")
    if call.expect is not None and selection.found != call.expect:
        code, text = (
            "unexpected_count",
            f"{what} in {where} found {selection.found} pods, expected {call.expect}; nothing was triggered",
        )
    elif selection.missing and not call.allow_missing:
        names = ", ".join(map(str, selection.missing[:20]))
        code = "missing_agents"
        text = (
            f"{len(selection.missing)} selected pods have no live agent: {names}; nothing was triggered. "
            "Bring them back, or go on without them with --allow-missing"
        )
    elif selection.missing and not selection.targets and not call.allow_empty:
        code = "missing_agents"
        text = f"every one of the {len(selection.missing)} selected pods is without a live agent; nothing was triggered"
    elif not selection.targets and not call.allow_empty and call.expect != 0:
        code = "no_targets"
        text = (
            f"{what} in {where} matches no agent; nothing was triggered. See who is there with `podhook agents`, "
            "or accept it with --allow-empty"
        )
    else:
        return None
    return ErrorDetail(code=code, message=text)
