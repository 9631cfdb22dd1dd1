"""Many agents played by one process: `python -m tests.delivery.population URL ROOT COUNT`.

It says online for each, keeps every trigger, and answers every query as an agent does: running, and once it was told
`go` on its standard input, succeeded. Told so, it publishes all outcomes as fast as the broker takes them. A line of
JSON on its standard output tells what has happened: `there`, `triggered`, `said`.

With `silent` as a fourth argument it only says that it is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Delivery, LinkOptions, Publication
from agent.contract.events import Kinds, digest, open_event, seal
from agent.contract.messages import COMMANDS, AttemptReport, Message, OutcomeMessage, Presence, Query, Report, Trigger
from agent.contract.states import AttemptState, Outcome
from agent.contract.topics import Topics
from tests.agents import until
from tests.brokers import leashed

#: So many agents share a connection: no single one is sent more than the broker keeps for it.
HOUSEHOLD = 500
WITHIN_SECONDS = 30
LABELS = {"app": "crowd"}
_KINDS = Kinds.of(*COMMANDS)


def sealed(message: Message) -> bytes:
    """The CloudEvent of a message."""
    return seal(message, source="/agents/crowd", time=datetime.now(UTC), event_id=str(uuid.uuid4()))


@dataclass(slots=True)
class Household:
    """Some agents behind one connection, in a namespace of their own."""

    link: Link
    topics: Topics
    namespace: str
    pods: list[str]
    outcomes: dict[tuple[str, str], tuple[str, bytes, OutcomeMessage]] = field(default_factory=dict)
    said: bool = False

    async def arrive(self) -> None:
        """Say online for each."""
        now = datetime.now(UTC)
        await self.publish(
            (
                self.topics.presence(self.namespace, pod),
                sealed(
                    Presence(
                        namespace=self.namespace,
                        pod=pod,
                        pod_uid=f"uid-{pod}",
                        state="online",
                        born_at=now,
                        clock=now,
                        labels=LABELS,
                    )
                ),
                True,
            )
            for pod in self.pods
        )

    async def publish(self, publications: Iterator[tuple[str, bytes, bool]]) -> None:
        """All at once, as far as the link lets them under way."""
        await asyncio.gather(
            *(self.link.publish(Publication(topic, payload, retain=retain)) for topic, payload, retain in publications)
        )

    async def serve(self) -> None:
        """Keep triggers, answer queries."""
        async for event in self.link.events():
            if not isinstance(event, Delivery):
                continue
            message = open_event(event.payload, _KINDS, limit_bytes=1 << 20).data
            pod = event.topic.split("/")[-2]
            if isinstance(message, Trigger):
                self.keep(pod, message, event.payload)
                if self.said:
                    await self.say(pod, message.run_id)
            elif isinstance(message, Query):
                report = sealed(self.report(pod, message, digest(event.payload)))
                topic = self.topics.reply(message.coordinator, message.query_id, self.namespace, pod)
                await self.link.publish(Publication(topic, report))
            event.ack()

    def keep(self, pod: str, trigger: Trigger, payload: bytes) -> None:
        """Make its outcome at once, so that saying it is nothing but a publish."""
        outcome = OutcomeMessage(
            run_id=trigger.run_id,
            attempt=trigger.attempt,
            trigger_hash=hashlib.sha256(payload).hexdigest(),
            namespace=self.namespace,
            pod=pod,
            pod_uid=trigger.pod_uid,
            outcome=Outcome.SUCCEEDED,
            exit_code=0,
        )
        topic = self.topics.reply(trigger.coordinator, trigger.run_id, self.namespace, pod)
        self.outcomes[pod, trigger.run_id] = topic, sealed(outcome), outcome

    async def say(self, pod: str, run_id: str) -> None:
        """Publish one outcome."""
        topic, payload, _ = self.outcomes[pod, run_id]
        await self.link.publish(Publication(topic, payload))

    def report(self, pod: str, query: Query, query_hash: str) -> Report:
        """What this agent's journal would say."""
        known = self.outcomes.get((pod, query.run_id))
        entries = []
        if known is not None:
            outcome = known[2]
            state = AttemptState.SUCCEEDED if self.said else AttemptState.STARTED
            entries = [
                AttemptReport(
                    attempt=outcome.attempt,
                    state=state,
                    trigger_hash=outcome.trigger_hash,
                    outcome=outcome if self.said else None,
                )
            ]
        return Report(
            query_id=query.query_id,
            query_hash=query_hash,
            run_id=query.run_id,
            namespace=self.namespace,
            pod=pod,
            pod_uid=f"uid-{pod}",
            attempt=query.attempt,
            attempts=entries,
        )


def tell(what: str, **more: object) -> None:
    """One line for whoever started us."""
    print(json.dumps({"event": what, **more}), flush=True)


async def main(url: str, root: str, count: int, *, silent: bool) -> None:
    """Live until we are killed."""
    topics, homes = Topics(root), []
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for at in range(0, count, HOUSEHOLD):
            namespace = f"crowd-{at // HOUSEHOLD}"
            subscriptions = () if silent else ((topics.commands(namespace, "+"), 1),)
            options = LinkOptions(f"{root}-{namespace}", subscriptions, receive_maximum=1000)
            link = await stack.enter_async_context(Link(parse_broker(url), options))
            await link.wait_up(WITHIN_SECONDS)
            pods = [f"db-{number:04}" for number in range(at, min(at + HOUSEHOLD, count))]
            homes.append(Household(link, topics, namespace, pods))
        await asyncio.gather(*(home.arrive() for home in homes))
        tell("there")
        for home in homes:
            group.create_task(home.serve(), name=home.namespace)
        await until(
            lambda: silent or sum(len(home.outcomes) for home in homes) == count, "every trigger", WITHIN_SECONDS
        )
        tell("triggered")
        await asyncio.to_thread(sys.stdin.readline)
        begun = time.monotonic()
        await asyncio.gather(*(home.publish((t, p, False) for t, p, _ in home.outcomes.values()) for home in homes))
        seconds = time.monotonic() - begun
        for home in homes:
            home.said = True
        tell("said", outcomes=sum(len(home.outcomes) for home in homes), seconds=round(seconds, 3))


class Population:
    """A population in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    async def told(self, what: str) -> dict[str, object]:
        """Wait until it says this."""
        async with asyncio.timeout(WITHIN_SECONDS):
            return self._line(what, await asyncio.to_thread(self._process.stdout.readline))

    def speak_now(self) -> dict[str, object]:
        """Make everybody say its outcome at once, and hold up our own process until it is done."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._line("said", self._process.stdout.readline())

    @staticmethod
    def _line(what: str, line: str) -> dict[str, object]:
        assert line, f"the population ended before it said {what!r}"
        said = json.loads(line)
        assert said["event"] == what, f"the population said {said}, not {what!r}"
        return dict(said)


@contextlib.asynccontextmanager
async def population(url: str, root: str, count: int, *, silent: bool = False) -> AsyncIterator[Population]:
    """So many agents, all of them online."""
    arguments = (url, root, str(count), *(["silent"] if silent else []))
    process = subprocess.Popen(
        leashed(sys.executable, "-m", "tests.delivery.population", *arguments),
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    made = Population(process)
    try:
        await made.told("there")
        yield made
    finally:
        process.kill()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3], int(sys.argv[3]), silent=sys.argv[4:] == ["silent"]))
