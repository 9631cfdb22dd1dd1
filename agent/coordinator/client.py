"""The coordinator: connects, knows who is there, runs hooks and gathers their verdicts."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import structlog
import uuid_utils

from agent.bus.broker import Broker, parse_broker
from agent.bus.link import Link
from agent.bus.types import Connected, Delivery, Disconnected, LinkOptions
from agent.contract.errors import BadInput, BrokerRefused, InvalidSettings
from agent.contract.messages import MAX_LISTED, AttemptReport, ErrorDetail, Presence, Query, check_run_id
from agent.contract.templates import Executor, Hook, PodExecutor
from agent.contract.topics import Topics, is_level
from agent.coordinator.alone import Alone
from agent.coordinator.calls import HookCall
from agent.coordinator.choosing import Chooser, Source
from agent.coordinator.inquiry import ask
from agent.coordinator.operator import OperatorOptions
from agent.coordinator.picture import Picture, picture_of
from agent.coordinator.results import OnEvent, RunEvent, RunResult, TargetResult, guarded, ignore
from agent.coordinator.resume import Resumption
from agent.coordinator.roster import Roster
from agent.coordinator.round import Round
from agent.coordinator.secrets import Secrets
from agent.coordinator.solo import Solo
from agent.coordinator.targets import Selection, Target, why_not
from agent.coordinator.trust import Trust, load_agent_keys, load_key, printable
from agent.coordinator.usage import asks_labels
from agent.coordinator.verdict import Verdict, verdict_of
from agent.coordinator.watch import CANCEL_SECONDS
from agent.coordinator.wire import Distrusted, Wire

if TYPE_CHECKING:
    from agent.cluster import Cluster
    from agent.contract.functions import Function
    from agent.contract.signing.keys import Keyring, SigningKey

log = structlog.get_logger("podhook.coordinator")
T = TypeVar("T")

CONNECT_SECONDS = 5.0
#: The broker of a coordinator that has none: a name that is never resolved (RFC 6761, section 6.4).
NOWHERE = "mqtt://invalid."
_NO_BROKER = "agents are reached over a broker, and this coordinator was given none; give its URL"
#: Said of a run that somebody cancelled while it was still asked where it runs.
_TOO_LATE = ErrorDetail(code="cancelled", message="cancelled before anything was triggered; nothing ran")
#: How often is looked whether a broker that refused us still does.
_REFUSED_PAUSE_SECONDS = 0.5
#: Who is asked for its clock, and is well, answers within this.
CLOCK_SECONDS = 1.5


@dataclass(slots=True)
class _Run:
    """A run and what is known of it so far."""

    call: HookCall
    run_id: str
    started_at: datetime
    tell: OnEvent
    begun: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    notes: list[str] = field(default_factory=list)
    secrets: Secrets = field(default_factory=Secrets)
    missing: tuple[Target, ...] = ()

    def result(
        self,
        verdict: Verdict,
        targets: Sequence[TargetResult] = (),
        *,
        error: ErrorDetail | None = None,
        verified: bool,
    ) -> RunResult:
        seconds = asyncio.get_running_loop().time() - self.begun
        ended = tuple(replace(each, result=self.secrets.taken_out(each.result)) for each in targets)
        return RunResult(
            self.run_id,
            self.call.hook.name,
            verdict,
            self.started_at,
            seconds,
            ended,
            error,
            tuple(self.notes),
            verified,
            self.missing,
        )


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def _id_as(broker: Broker) -> str:
    """The level of the topics on which answers come: the broker user, if there is one.

    Rules can then say who may read there. Several coordinators of one user hear each other's answers, and leave those
    that are not about their own runs alone.
    """
    try:
        user, _ = broker.credentials()
    except InvalidSettings:
        user = None  # connecting says it
    return user if user is not None and is_level(user) else f"c-{secrets.token_hex(8)}"


class Coordinator:
    """Runs hooks through the agents on a broker.

    Example:
        ::

            async with Coordinator("mqtt://127.0.0.1:1883") as coordinator:
                run = await coordinator.run(HookCall(load_hooks(text)[0]))
                print(run.verdict)

    Args:
        broker: a URL (`mqtt://host:1883`) or a `Broker` with credentials and certificates. None: no agent can be
            reached, and only hooks run that need none.
        topic_root: first level of every topic, as the agents have it.
        connect_seconds: how long the first connection may take.
        key: the private key that signs what is sent, or its file (`podhook keygen`); None sends unsigned, which only
            agents with PODHOOK_ALLOW_UNSIGNED obey.
        agent_keys: the public keys of agents by namespace, or the directory of their files (`NAMESPACE.pub`); what an
            agent of a namespace says and does not verify is then refused. None: nothing is verified.
        cluster: knows which pods there are and runs the Jobs of Functions; entered by its owner. None: agents say
            which pods there are.
        source: `auto`, `kubernetes` or `presence`; see `Source`.
        functions: Functions that are files, by name; they win over the cluster's.
        operator: how hooks of the Operator executor run here.

    Raises:
        InvalidKey: a key file that cannot be used.

    Raises (on entering):
        BrokerRefused: the broker answered and said no.
        LinkDown: no connection within `connect_seconds`.
        InvalidSettings: the broker's settings cannot be used.
    """

    def __init__(
        self,
        broker: str | Broker | None,
        *,
        topic_root: str = "podhook",
        connect_seconds: float = CONNECT_SECONDS,
        key: SigningKey | Path | None = None,
        agent_keys: Mapping[str, Keyring] | Path | None = None,
        cluster: Cluster | None = None,
        source: Source | str = Source.AUTO,
        functions: Mapping[str, Function] | None = None,
        operator: OperatorOptions | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._reachable = broker is not None
        self._broker = broker if isinstance(broker, Broker) else parse_broker(broker or NOWHERE)
        self._topics = Topics(topic_root)
        self._connect_seconds = connect_seconds
        self._now = now
        self.id = _id_as(self._broker)
        # The id stands in every trigger. A client id that follows from it would let whoever reads one take the session.
        options = LinkOptions(
            client_id=f"podhook_{secrets.token_hex(12)}",
            subscriptions=((self._topics.replies(self.id), 1), (self._topics.presences(), 0)),
            receive_maximum=1000,
        )
        self._link = Link(self._broker, options)
        self._trust = Trust(
            load_key(key) if isinstance(key, Path) else key,
            load_agent_keys(agent_keys) if isinstance(agent_keys, Path) else agent_keys,
        )
        self._wire = Wire(self._link, self._topics, self.id, now, self._trust)
        self._roster = Roster(self._wire)
        self._cluster = cluster
        self._chooser = Chooser(self._roster, cluster, Source(source))
        self._alone = Alone(operator or OperatorOptions(), cluster, functions or {})
        self._alive: set[Round | Resumption | Solo] = set()
        self._reading: asyncio.Task[None] | None = None
        self._cancels = 0

    async def __aenter__(self) -> Self:
        if not self._reachable:
            return self
        await self._link.__aenter__()
        try:
            await self._link.wait_up(self._connect_seconds)
        except BaseException:
            await self._link.__aexit__()
            raise
        self._roster.link_restored()
        self._reading = asyncio.create_task(self._read(), name="coordinator")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            await self._link.__aexit__()

    async def wait_connected(self, within_seconds: float) -> None:
        """Wait until the broker is there, again; a coordinator without one has nothing to wait for.

        A no is not the last word: a broker that restarts may not know its users yet, and the link asks again.

        Raises:
            LinkDown: it is not, within that time.
            BrokerRefused: it still says no at the end of that time.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within_seconds
        while self._reachable:
            try:
                await self._link.wait_up(max(0.0, until - loop.time()))
            except BrokerRefused:
                left = until - loop.time()
                if left <= 0:
                    raise
                await asyncio.sleep(min(_REFUSED_PAUSE_SECONDS, left))
            else:
                return

    # -- who is there

    @property
    def knows_pods(self) -> bool:
        """Whether the cluster says which pods there are; otherwise agents do, and one that is away may be gone."""
        return self._chooser.asks_cluster

    @property
    def verifies(self) -> bool:
        """Whether what agents say is verified, presence included: it was given their keys."""
        return self._trust.verifies

    @property
    def distrusted(self) -> list[Distrusted]:
        """Presences that do not verify, and why, by namespace and name: until that is mended nobody is there.

        Of an agent whose presence verified before, that one counts. Empty without agent keys.
        """
        return self._roster.distrusted

    async def agents(self) -> list[Presence]:
        """Everybody's presence, by namespace and name, once it is complete; if we verify, of those that do."""
        return await self._roster.agents()

    async def presence_changed(self) -> None:
        """Wait until somebody's presence is another than `agents` last told."""
        await self._roster.changed()

    # -- hooks

    async def run(self, call: HookCall | Hook, *, run_id: str | None = None, on_event: OnEvent = ignore) -> RunResult:
        """Run a hook by its executor - agents in the pods it selects, or the coordinator itself - to its verdict.

        Cancelling the task that awaits this cancels the run: what was started is stopped, and up to ten seconds are
        spent on hearing how it ended. `on_event` then still hears every outcome.

        Args:
            call: the hook and how it is called. A hook alone is called as it stands, in its own namespace (`default`
                for one that has none).
            run_id: a UUIDv7 of your own, used once; made here if None.
            on_event: called for everything that happens, on the event loop; must not block. What it raises is logged.

        Raises:
            InvalidHook: the hook cannot be run as it is called; nothing was triggered.
            BadInput: `run_id` is no UUID, or a run of this coordinator has it, or there is no broker to reach agents
                by; nothing was triggered.
            ClusterError: the cluster cannot be asked what this needs of it, or says no; nothing was triggered.
        """
        if isinstance(call, Hook):
            call = HookCall(call, namespaces=frozenset({call.namespace or "default"}))
        cancels = self._cancels
        call = await self._informed(call)
        call.check()
        executor = call.executor()
        run_id, secrets = self._checked(run_id or str(uuid_utils.uuid7())), Secrets.of(call, executor)
        run = _Run(call, run_id, self._now(), secrets.kept_from(guarded(on_event)), secrets=secrets)
        run.notes += secrets.notes
        if executor.pod is not None:
            return await self._run_in_pods(run, executor.pod, cancels)
        return await self._run_alone(run, executor, cancels)

    async def select(self, call: HookCall) -> Selection:
        """Which pods a call of a Pod executor means, and which of them have a live agent; nothing is triggered.

        Raises:
            InvalidHook: the hook cannot be run as it is called.
            BadInput: there is no broker to reach agents by.
            ClusterUnavailable: the cluster says which pods there are, and cannot be asked.
        """
        call = await self._informed(call)
        call.check()
        self._need_broker()
        cancels = self._cancels
        return await self._chooser.select(call, call.pods(), lambda: self._cancels != cancels)

    def check(self, call: HookCall) -> None:
        """What `run` would refuse before anything is triggered, as far as nobody has to be asked.

        Raises:
            InvalidHook: the hook cannot be run as it is called.
            BadInput: it runs in pods, and there is no broker to reach agents by.
        """
        call.check()
        if call.executor().type == "Pod":
            if not self._reachable:
                raise BadInput(_NO_BROKER)
        else:
            self._alone.check(call)

    async def _run_in_pods(self, run: _Run, executor: PodExecutor, cancels: int) -> RunResult:
        call = run.call
        self._need_broker()
        selection = await self._chooser.select(call, executor, lambda: self._cancels != cancels)
        verifies = self._trust.verifies
        if self._cancels != cancels:
            return run.result(Verdict.CANCELLED, error=_TOO_LATE, verified=verifies)
        error = why_not(call, executor, selection)
        if error is not None:
            return run.result(Verdict.NOT_STARTED, error=error, verified=verifies)
        run.notes += selection.notes
        run.missing = selection.missing
        if selection.missing:
            names = ", ".join(map(str, selection.missing))
            why = "is offline or does not verify" if selection.doubted else "is offline"
            run.notes.append(f"went on without {len(selection.missing)} selected pods whose agent {why}: {names}")
        if not selection.targets:
            run.notes.append("no pod was selected, and that was allowed")
            return run.result(Verdict.SUCCEEDED, verified=verifies)
        run.tell(RunEvent("selected", run.run_id, targets=selection.targets))
        a_round = Round(
            run_id=run.run_id,
            hook=call.hook.name,
            what=call.sent(),
            call=call,
            executor=executor,
            targets=selection.targets,
            wire=self._wire,
            on_event=run.tell,
            now=self._now,
        )
        results = await self._drive(a_round)
        run.notes += [
            f"not believed: {namespace}/{pod}: {printable(why)}" for (namespace, pod), why in a_round.unverified.items()
        ]
        outcomes = [each.result.outcome for each in results]
        count, cancelled = len(selection.targets), a_round.cancelled
        verdict = verdict_of(executor.strategy, outcomes, count, cancelled=cancelled)
        return run.result(verdict, results, verified=verifies)

    async def _run_alone(self, run: _Run, executor: Executor, cancels: int) -> RunResult:
        """What needs no agent: whoever says how it ended is this coordinator, so it is as good as verified."""
        target, attempt = await self._alone.prepare(run.call, executor, run.run_id)
        if self._cancels != cancels:
            return run.result(Verdict.CANCELLED, error=_TOO_LATE, verified=True)
        run.tell(RunEvent("selected", run.run_id, targets=(target,)))
        solo = Solo(run.run_id, run.call, target, attempt, run.tell, self._now)
        results = await self._to_its_end(solo, solo.run())
        outcomes = [each.result.outcome for each in results]
        verdict = verdict_of("ExecuteOnAll", outcomes, 1, cancelled=solo.cancelled)
        return run.result(verdict, results, verified=True)

    async def _informed(self, call: HookCall) -> HookCall:
        """The call with the labels of its namespaces, where its template asks for them and the cluster has them."""
        if self._cluster is None or not asks_labels(call.hook):
            return call
        if call.namespaces is None or call.namespace_labels is not None:
            return call
        from agent.coordinator.kubernetes import namespace_labels  # noqa: PLC0415 (only with a cluster)

        return replace(call, namespace_labels=await namespace_labels(self._cluster, call.namespaces))

    def cancel(self, *, within_seconds: float = CANCEL_SECONDS) -> None:
        """Cancel every run of this coordinator; their `run` comes back soon with what is known.

        Args:
            within_seconds: how long the pods have to say how it ended; who is silent then is `lost`. A second call
                can only shorten it.
        """
        self._cancels += 1
        self._roster.wake()  # a run that still waits to know its targets ends here, too
        for each in self._alive:
            each.cancel(within_seconds)

    @property
    def cancels(self) -> int:
        """How often `cancel` was called: who does one thing after the other sees whether the next is still wanted."""
        return self._cancels

    # -- runs that are asked about later, by whoever

    async def query(self, run_id: str, *, namespaces: frozenset[str] | None = None) -> Picture:
        """What the agents' journals say of a run, be it this coordinator's, another's, or that of one that died.

        Args:
            run_id: the run.
            namespaces: whose agents to ask; None for all.

        Raises:
            BadInput: `run_id` is no UUID.
            LinkDown: the broker went away meanwhile.
        """
        return await (await self._resumption(run_id, namespaces, ignore)).look()

    async def runs(self, *, limit: int = MAX_LISTED, namespaces: frozenset[str] | None = None) -> list[Picture]:
        """The latest runs that the agents know, newest first.

        Each agent tells its latest `limit` attempts, 250 at most, and so an older run may be told in part.

        Raises:
            LinkDown: the broker went away meanwhile.
        """

        def question(query_id: str, _: Target) -> Query:
            return Query(query_id=query_id, coordinator=self.id, limit=min(limit, MAX_LISTED))

        await self._roster.settle()
        online, offline = self._roster.present(namespaces)
        answers = await ask(self._wire, online, question, run_id=None, now=self._now)
        attempts: dict[str, dict[Target, list[AttemptReport]]] = {}
        for target, answer in answers.items():
            for each in answer.report.attempts:
                if each.run_id is not None:
                    attempts.setdefault(each.run_id, {}).setdefault(target, []).append(each)
        found = [
            picture_of(
                run_id,
                of,
                silent=set(online) - set(answers),
                offline=offline,
                verified=self._trust.verifies,
                kid=self._trust.kid,
            )
            for run_id, of in attempts.items()
        ]
        return sorted(found, key=lambda each: (each.issued_at is not None, each.issued_at, each.run_id), reverse=True)

    async def resume(
        self,
        run_id: str,
        *,
        cancel: bool = False,
        namespaces: frozenset[str] | None = None,
        on_event: OnEvent = ignore,
    ) -> RunResult:
        """Gather a run that was triggered before, to its end. Never triggers anything.

        Cancelling the task that awaits this, or `cancel`, cancels the run: what runs is stopped, and no further attempt
        of it starts on any agent that is online.

        Args:
            run_id: the run.
            cancel: cancel it at once.
            namespaces: whose agents are asked; None for all.
            on_event: as for `run`.

        Raises:
            BadInput: `run_id` is no UUID, or a run of this coordinator has it.
            LinkDown: the broker went away before the agents were heard.
        """
        cancels = self._cancels
        resumption = await self._resumption(run_id, namespaces, guarded(on_event))
        cancel = cancel or self._cancels != cancels  # somebody wanted the end while we learnt who is there
        return await self._to_its_end(resumption, resumption.run(cancel=cancel))

    async def _resumption(self, run_id: str, namespaces: frozenset[str] | None, on_event: OnEvent) -> Resumption:
        run_id = self._checked(run_id)
        self._need_broker()
        await self._roster.settle()
        return Resumption(run_id, self._wire, on_event, self._now, lambda: self._roster.present(namespaces))

    # -- agents

    async def clocks(self, agents: Iterable[Presence]) -> dict[tuple[str, str], float]:
        """How many seconds the clock of each agent is ahead of ours, by (namespace, pod); of those who answer.

        Right to half of a round trip.
        """

        def question(query_id: str, _: Target) -> Query:
            return Query(query_id=query_id, coordinator=self.id, limit=1)

        online = [Target.of(each) for each in agents if each.state == "online"]
        answers = await ask(self._wire, online, question, run_id=None, now=self._now, within_seconds=CLOCK_SECONDS)
        return {
            target.key: answer.skew_seconds for target, answer in answers.items() if answer.skew_seconds is not None
        }

    async def prune(self, agents: Iterable[Presence]) -> AsyncIterator[Target]:
        """Clear the retained presence of those that are offline, and tell each that was cleared.

        One that lives after all says again that it is there.

        Raises:
            LinkDown, PublishRefused: not all could be cleared.
        """
        await self._roster.settle()
        for target in map(Target.of, agents):
            if not self._wire.is_online(target):
                await self._wire.clear_presence(target)
                yield target

    async def prune_distrusted(self, claims: Iterable[Distrusted]) -> AsyncIterator[Distrusted]:
        """Clear presences that do not verify, and tell each that was cleared. An agent that lives there says its own.

        Raises:
            LinkDown, PublishRefused: not all could be cleared.
        """
        for each in claims:
            await self._wire.clear_presence(Target(each.namespace, each.pod, ""))
            yield each

    # -- the life of a run

    async def _drive(self, a_round: Round) -> list[TargetResult]:
        self._wire.listen(a_round, a_round.run_id, a_round.query_id)
        try:
            return await self._to_its_end(a_round, a_round.run())
        finally:
            self._wire.forget(a_round.run_id, a_round.query_id)
            await a_round.close()

    async def _to_its_end(self, what: Round | Resumption | Solo, work: Coroutine[None, None, T]) -> T:
        """Do the work of a run; when we are cancelled, cancel the run and still hear its end, then pass that on."""
        self._alive.add(what)
        running = asyncio.create_task(work, name=f"run {what.run_id}")
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            what.cancel()
            await asyncio.wait({running})
            raise
        finally:
            running.cancel()
            self._alive.discard(what)

    def _need_broker(self) -> None:
        if self._reading is None:
            raise BadInput(_NO_BROKER)

    def _checked(self, run_id: str) -> str:
        check_run_id(run_id)
        if any(each.run_id == run_id for each in self._alive):
            raise BadInput(f"run id {run_id} is in use by a run that has not ended; every run needs its own")
        return run_id

    @property
    def _rounds(self) -> list[Round]:
        return [each for each in self._alive if isinstance(each, Round)]

    async def _read(self) -> None:
        async for event in self._link.events():
            match event:
                case Connected():
                    self._roster.link_restored()
                    for a_round in self._rounds:
                        a_round.link_restored()
                case Disconnected(reason, _):
                    self._roster.link_lost()
                    for a_round in self._rounds:
                        a_round.link_lost()
                    for each in self._alive:
                        each.on_event(RunEvent("broker", each.run_id, text=f"connection lost: {reason}"))
                case Delivery():
                    if event.retain:
                        self._roster.retained()
                    self._wire.take(event)
                    event.ack()
