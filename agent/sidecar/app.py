"""The agent, wired: it owns the link, the journal and every task, and stops them in the right order.

It stays up whatever is missing - broker, disk, key - and says what is wrong in the log and in its presence: a
sidecar must never take its pod down.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from agent import __version__
from agent.bus.inspection import SESSION_EXPIRY_SECONDS
from agent.bus.link import Link
from agent.bus.types import Connected, Delivery, Disconnected, LinkOptions
from agent.contract.errors import (
    BadInput,
    InvalidSettings,
    JournalFull,
    JournalLocked,
    JournalNewer,
    JournalUnavailable,
    Unverified,
)
from agent.contract.messages import MAX_COMMAND_BYTES
from agent.contract.topics import client_id
from agent.journal import Journal, JournalThread
from agent.pod import supervisor
from agent.pod.census import Neighbours
from agent.pod.containers import Containers
from agent.pod.entering import EnteringLauncher
from agent.pod.identity import PodDescription, WatchedFile, parse_description, parse_labels
from agent.pod.kubernetes import OwnPod
from agent.pod.processes import LocalLauncher, reap_strays
from agent.pod.supervisor import AGENT_UID, COMMAND_UID
from agent.sidecar.attempts import Attempts
from agent.sidecar.audit import OFF, OFF_PROBLEM, Audit, open_sink, problem_of
from agent.sidecar.health import Health, serving_health
from agent.sidecar.inbox import InvalidTrigger, open_command
from agent.sidecar.key_files import KeyFiles
from agent.sidecar.logs import floods
from agent.sidecar.policy import PolicyFile
from agent.sidecar.presence import PresenceFacts, PresenceKeeper
from agent.sidecar.runner import Runner, RunnerOptions
from agent.sidecar.settings import AgentSettings, command_environment, own_secrets
from agent.sidecar.voice import Outbox, Voice

log = structlog.get_logger("podhook.agent")

#: How often files are looked at, and a journal that failed is tried again.
LOOK_SECONDS = 5
PRUNE_SECONDS = 600
#: At the end, outcomes have this long to reach the broker before goodbye is said.
FLUSH_SECONDS = 3
RECEIVE_MAXIMUM = 64
#: What waits for us in our own memory: more than NATS hands out before it wants an answer (1024), and 64 commands of
#: the largest size. Of chatter at QoS 0 the rest is dropped; QoS 1 stays at the broker.
QUEUE_MESSAGES = 4000
QUEUE_BYTES = 16 * 1024 * 1024

OUR_USER_PROBLEM = (
    f"container {{containers}} runs as a user that podhook keeps for itself ({AGENT_UID}, {COMMAND_UID}), so it can "
    "end the agent; give it another runAsUser"
)
AS_AGENT_PROBLEM = (
    "commands in the agent's own container run as the agent's own user, so they can read its files and key and end it: "
    "without SETUID there is no other"
)


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class Agent:
    """One agent. `run` is its whole life."""

    def __init__(self, settings: AgentSettings, *, now: Callable[[], datetime] = utc_now) -> None:
        self._settings = settings
        self._now = now
        self._identity = settings.identity()
        self._topics = settings.topics()
        self._journal = JournalThread()
        self._launcher: LocalLauncher | EnteringLauncher = (
            LocalLauncher()
            if supervisor.start.channel is None
            else EnteringLauncher(supervisor.start.channel, Neighbours(), settings.container)
        )
        self._journal_error: JournalUnavailable | None = None
        self._facts = PresenceFacts()
        self._description = PodDescription()
        self._labels_file = WatchedFile(settings.labels_file)
        self._pod_file = WatchedFile(settings.pod_file)
        self._keys = KeyFiles(settings, now, self._problem, self._announce)
        self._obeyed_kept = ""
        self._policy = PolicyFile(settings.policy)
        self._fallback_birth = now()
        self._audit = Audit(self._identity, open_sink(settings.audit), now, self._audit_failed)
        self._loop = asyncio.get_running_loop()
        self._presence: PresenceKeeper = PresenceKeeper(
            self._identity,
            self._topics,
            self._facts,
            unsigned=settings.allow_unsigned,
            born_at=self._born_at,
            now=now,
            signature=self._keys.signature,
        )
        self._commands_topic = self._topics.commands(self._identity.namespace, self._identity.pod)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain: no new work, outcomes delivered, goodbye said.

        If a later-born pod has our name, the broker is left to it at once, and the process only waits for its end.
        """
        settings = self._settings
        log.info(
            "agent.starting",
            agent=str(self._identity),
            version=__version__,
            broker=settings.parsed_broker().url,
        )
        self._keys.begin()
        if settings.audit == OFF:
            self._problem("audit", OFF_PROBLEM)
        try:
            async with serving_health(settings.health_port, self._health) as why_not:
                self._problem("health", why_not)
                await self._live(stop)
        finally:
            self._audit.close()  # all else has ended, and no thread that a name look-up hangs in is asked for it
        log.info("agent.stopped")

    async def _live(self, stop: asyncio.Event) -> None:
        settings = self._settings
        await self._look_around()
        self._look_at_files()
        await self._open_journal()
        try:
            await self._wait_for_lock(stop)
            if stop.is_set():
                return
            async with (
                Link(settings.parsed_broker(), self._link_options()) as link,
                asyncio.TaskGroup() as group,
            ):
                await self._serve(link, group, stop)
        finally:
            await self._journal.close()
            if isinstance(self._launcher, EnteringLauncher):
                self._launcher.close()
        if self._presence.taken.done() and not stop.is_set():
            log.info("agent.away", until="it is told to stop")
            await stop.wait()

    async def _wait_for_lock(self, stop: asyncio.Event) -> None:
        """While another agent has our journal, stay off the bus: both would answer every trigger, and one run it."""
        while isinstance(self._journal_error, JournalLocked) and not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await stop.wait()
            if not stop.is_set():
                self._journal_error = None
                await self._open_journal()
                if self._journal_error is None:
                    self._problem("journal", None)

    async def _serve(self, link: Link, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        attempts, outbox = self._wire(link, group)
        await self._recover(attempts)
        keepers = [
            group.create_task(outbox.keep_sending(), name="outbox"),
            group.create_task(self._presence.keep_announcing(link), name="presence"),
            group.create_task(self._look_after(attempts), name="look after"),
            group.create_task(self._read(link, attempts, outbox), name="read"),
        ]
        if self._settings.kubernetes and not self._described:
            search = OwnPod(self._identity).find(self._found_own_pod, functools.partial(self._problem, "kubernetes"))
            keepers.append(group.create_task(search, name="own pod"))
        stopping = asyncio.create_task(stop.wait(), name="stop")
        waiting: set[asyncio.Future[Any]] = {stopping, self._presence.taken}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        replaced = self._presence.taken.done()
        if replaced:
            log.error(
                "agent.replaced",
                by_pod_uid=self._presence.taken.result(),
                effect="the broker is left to the later-born pod of this name; this agent stays away",
            )
        log.info("agent.stopping", grace_seconds=self._settings.grace_seconds)
        await attempts.drain(self._settings.grace_seconds, FLUSH_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await outbox.flush()
                if not replaced:
                    await self._presence.say_goodbye(link)
        for task in keepers:
            task.cancel()

    # -- parts

    def _wire(self, link: Link, group: asyncio.TaskGroup) -> tuple[Attempts, Outbox]:
        settings = self._settings
        voice = Voice(link, self._identity, self._topics, self._now, self._keys.signature.sign)
        outbox = Outbox(voice, self._journal, link)
        runner = Runner(
            self._launcher,
            self._look_for,
            command_environment,
            RunnerOptions(
                address=self._identity.address,
                user_agent=f"podhook/{__version__}",
                output_limit_bytes=settings.output_limit_bytes,
                http_verify_pod=settings.http_verify_pod,
                http_verify_host=settings.http_verify_host,
                http_ca_file=settings.http_ca_file,
                secrets_dir=settings.secrets_dir,
                secrets=own_secrets(),
            ),
            now=self._now,
            policy=self._policy.current,
            environments=self._launcher.learn_environments if isinstance(self._launcher, EnteringLauncher) else None,
        )
        attempts = Attempts(
            identity=self._identity,
            max_concurrent=settings.max_concurrent,
            journal=self._journal,
            runner=runner,
            voice=voice,
            outbox=outbox,
            group=group,
            now=self._now,
            journal_failed=self._journal_failed,
            journal_broken=lambda: self._journal_error,
            journal_full=self._journal_full,
            audit=self._audit,
        )
        return attempts, outbox

    async def _look_around(self) -> None:
        if isinstance(self._launcher, EnteringLauncher):
            await self._launcher.look_around()

    async def _look_for(self, wanted: str | None) -> Containers:
        """The pod's containers; everybody is looked at unless the one that is wanted is known to live."""
        if isinstance(self._launcher, EnteringLauncher) and wanted is not None:
            known = self._containers()
            first = next((name for name in known.described if name != known.own), "")
            if self._launcher.neighbours.main(wanted or first) is None:
                await self._launcher.look_around()
        return self._containers()

    def _containers(self) -> Containers:
        """The pod's containers as they were seen last."""
        own, pod, start = self._settings.container, str(self._identity), supervisor.start
        if isinstance(self._launcher, LocalLauncher):
            return Containers(self._description, own, pod, why_not=start.why_not, alone=not start.asked)
        census = self._launcher.neighbours.census
        why_not = start.why_not or census.why_not
        return Containers(self._description, census.own or own, pod, tuple(census.siblings), why_not)

    @property
    def _described(self) -> bool:
        return self._description != PodDescription()

    def _found_own_pod(self, description: PodDescription) -> None:
        """The API server's description; the file's wins, also when it could be read only meanwhile."""
        if not self._described:
            self._description = description
            self._look_at_files()
            self._presence.announce()

    def _link_options(self) -> LinkOptions:
        return LinkOptions(
            client_id=client_id(self._identity.namespace, self._identity.pod, self._journal.client_suffix),
            # Our own presence at QoS 1, unlike everybody else's: so the will waits in our session, and a message that
            # does not expire keeps mosquitto 2.0.11 from choking on a queue of commands that did.
            subscriptions=((self._commands_topic, 1), (self._presence.topic, 1)),
            will=self._presence.will,
            session_expiry_seconds=SESSION_EXPIRY_SECONDS,
            receive_maximum=RECEIVE_MAXIMUM,
            packet_limit_bytes=MAX_COMMAND_BYTES,
            queue_messages=QUEUE_MESSAGES,
            queue_bytes=QUEUE_BYTES,
        )

    def _health(self) -> Health:
        return Health(str(self._identity), __version__, tuple(self._facts.problems))

    def _born_at(self) -> datetime:
        journal = self._journal.journal
        return journal.born_at if journal else self._fallback_birth

    # -- the bus

    async def _read(self, link: Link, attempts: Attempts, outbox: Outbox) -> None:
        async for event in link.events():
            match event:
                case Connected(limits):
                    log.info("broker.connected", protocol=limits.protocol, session_present=limits.session_present)
                    for note in limits.notes:
                        log.info("broker.protocol", note=note)
                    self._problem("broker", "; ".join(limits.warnings) or None)
                    self._presence.announce()
                    outbox.wake()
                case Disconnected(reason, retry_seconds):
                    log.warning("broker.disconnected", reason=reason, retry_seconds=round(retry_seconds, 2))
                case Delivery() if event.topic == self._presence.topic:
                    self._presence.saw(event)
                    event.ack()
                case Delivery():
                    await self._command(event, attempts)

    async def _command(self, delivery: Delivery, attempts: Attempts) -> None:
        """Handle one command and acknowledge it: whatever is in it, it must not come back and do the same again."""
        if self._presence.taken.done():
            return  # a later-born pod has our name: nothing begins here any more
        try:
            await self._obey_or_refuse(delivery, attempts)
        except Exception:
            log.exception("command.crashed", topic=delivery.topic)
        delivery.ack()

    async def _obey_or_refuse(self, delivery: Delivery, attempts: Attempts) -> None:
        payload, oversize = delivery.payload, delivery.oversize_bytes
        try:
            command = open_command(payload, self._keys.trust(), self._identity, self._now(), oversize_bytes=oversize)
            await attempts.handle(command)
        except InvalidTrigger as error:
            await attempts.refuse_invalid(error)
        except Unverified as error:
            log.warning("command.refused", code=error.code, error=str(error))
            self._audit.unverified(payload, error.code, str(error))
        except BadInput as error:
            log.warning("command.refused", code=type(error).__name__, error=str(error))
            self._audit.unreadable(payload, type(error).__name__, str(error), oversize)

    def _audit_failed(self, why: str | None) -> None:
        """Called by the audit's own thread."""
        sentence = why and problem_of(self._settings.audit, why)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._problem, "audit", sentence)

    # -- the journal and the files

    async def _open_journal(self) -> None:
        try:
            journal = await self._journal.open(self._settings.state_dir, self._identity.pod_uid, self._now())
        except JournalUnavailable as error:
            self._journal_failed(error)
            return
        if journal.reset_from is not None:
            reset = f"the journal was damaged and set aside as {journal.reset_from.name}; what it remembered is gone"
            self._problem("journal_reset", reset)
        log.info("journal.open", born_at=journal.born_at.isoformat())
        with contextlib.suppress(JournalUnavailable):  # not read: since our start, which is no earlier than the truth
            self._keys.obeyed.recall(await self._journal.call(Journal.obeyed))
        await self._keep_obeyed()

    async def _keep_obeyed(self) -> None:
        """Write down since when whom is obeyed, if it changed: for our next life."""
        text = self._keys.obeyed.text
        if self._journal.journal is None or text == self._obeyed_kept:
            return
        try:
            await self._journal.call(Journal.keep_obeyed, text)
        except JournalUnavailable as error:
            self._journal_failed(error)
        else:
            self._obeyed_kept = text

    def _journal_failed(self, error: JournalUnavailable) -> None:
        hint = "" if isinstance(error, JournalNewer) else "; it is tried again every few seconds"
        self._problem("journal", f"every trigger is refused: {error}{hint}")
        self._journal_error = error

    def _journal_full(self, full: JournalFull) -> None:
        self._problem("journal_full", f"every trigger is refused: {full}")

    async def _recover(self, attempts: Attempts) -> None:
        if self._journal_error is not None:
            return  # done when it is mended
        try:
            await attempts.recover()
        except JournalUnavailable as error:
            self._journal_failed(error)

    async def _look_after(self, attempts: Attempts) -> None:
        """Files that change, a journal that failed, rows that may go, orphans that came to us."""
        loop = asyncio.get_running_loop()
        pruned = loop.time()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._look_around()
            self._look_at_files()
            await self._keep_obeyed()
            self._audit.settle()
            for event, suppressed in floods.leftovers():
                log.warning("log.suppressed", of=event, suppressed=suppressed)
            if isinstance(self._launcher, LocalLauncher):
                reap_strays(self._launcher.running)
            if self._journal_error is not None:
                await self._mend_journal(attempts)
            elif "journal_full" in self._facts.problems or loop.time() - pruned > PRUNE_SECONDS:
                pruned = loop.time()
                await self._make_room()

    async def _make_room(self) -> None:
        try:
            await self._journal.call(Journal.prune, self._now(), pressed="journal_full" in self._facts.problems)
            await self._journal.call(Journal.check_room)
        except JournalFull as full:
            self._journal_full(full)
        except JournalUnavailable as error:
            self._journal_failed(error)
        else:
            self._problem("journal_full", None)

    async def _mend_journal(self, attempts: Attempts) -> None:
        """Try the journal again. What was refused without a record meanwhile must not turn into a yes: the floor."""
        if self._journal.journal is None:
            await self._open_journal()
            if self._journal.journal is None:
                return
        try:
            await self._journal.call(Journal.prune, self._now())
            await attempts.recover()
            async with attempts.handling:  # no refusal without a record between the floor and the end of refusing
                await attempts.raise_floor()
                self._journal_error = None
        except JournalUnavailable as error:
            self._journal_failed(error)
            return
        self._problem("journal", None)

    def _look_at_files(self) -> None:
        self._keys.look(commands_are_others=isinstance(self._launcher, EnteringLauncher))
        self._policy.look()
        self._problem("policy", self._policy.problem)
        try:
            if (text := self._labels_file.changed()) is not None:
                self._facts.labels = parse_labels(text)
                self._problem("labels", None)
                self._presence.announce()
        except InvalidSettings as error:
            self._problem("labels", f"labels are as last read: {error}")
        try:
            if (text := self._pod_file.changed()) is not None:
                self._description = parse_description(text)
                self._problem("pod_file", None)
                self._presence.announce()
        except InvalidSettings as error:
            self._problem("pod_file", f"the pod description is as last read: {error}")
        self._facts.owners = self._description.presence_owners()
        self._note_containers()

    def _note_containers(self) -> None:
        """What presence says of the pod's containers, and of what stands in the way of commands there."""
        containers = self._containers()
        if self._facts.containers != containers.names:
            self._facts.containers = containers.names
            self._presence.announce()
        if not supervisor.start.asked:
            return  # an agent of its own, not a sidecar
        why_not = containers.why_not
        self._problem("entering", f"commands run in the agent's own container only: {why_not}" if why_not else None)
        if isinstance(self._launcher, LocalLauncher):
            self._problem("own user", AS_AGENT_PROBLEM)
            return
        siblings = self._launcher.neighbours.census.siblings.values()
        ours = ", ".join(main.container for main in siblings if main.uid in (AGENT_UID, COMMAND_UID))
        self._problem("users", OUR_USER_PROBLEM.format(containers=ours) if ours else None)

    def _announce(self) -> None:
        self._presence.announce()

    def _problem(self, name: str, sentence: str | None) -> None:
        """Note what needs somebody's hands, or that it is mended; said in the log and in presence, once.

        A file's name may be no text (bytes that are not UTF-8); what goes out is.
        """
        sentence = sentence and sentence.encode("utf-8", "backslashreplace").decode()
        if self._facts.problems.get(name) == sentence:
            return
        if sentence is None:
            self._facts.problems.pop(name)
            log.info("problem.mended", problem=name)
        else:
            self._facts.problems[name] = sentence
            log.error("problem", problem=name, text=sentence)
        self._presence.announce()
