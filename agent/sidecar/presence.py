"""Presence: a retained sentence about who is here, kept true against wills, successors and late goodbyes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

import structlog

from agent import __version__
from agent.bus.link import Link
from agent.bus.types import Delivery, Publication, Will
from agent.contract.errors import BadInput, LinkDown, PublishRefused
from agent.contract.events import CONTENT_TYPE, Kinds, open_event, seal
from agent.contract.messages import CLOCK_TOLERANCE_SECONDS, MAX_COMMAND_BYTES, Owner, Presence
from agent.contract.topics import Topics
from agent.pod.identity import Identity
from agent.sidecar.trust import Signature

log = structlog.get_logger("podhook.presence")

T = TypeVar("T")

_KINDS = Kinds.of(Presence)
#: Said again at most this often when somebody else writes to our topic.
SAY_AGAIN_SECONDS = 1.0
#: Of what we said and did not hear come back yet, this much is remembered; hearing one ends the wait for those before.
MAX_UNHEARD = 64
#: What presence tells of the rest at most, in characters or bytes: an outsized one is refused by brokers and readers.
MAX_PROBLEM_CHARACTERS = 1000
MAX_PROBLEMS_BYTES = MAX_CONTAINERS_BYTES = MAX_OWNERS_BYTES = 16 * 1024
_TOLERANCE = timedelta(seconds=CLOCK_TOLERANCE_SECONDS)


@dataclass(slots=True)
class PresenceFacts:
    """What presence tells besides who we are; changes while the agent lives."""

    labels: dict[str, str] = field(default_factory=dict)
    containers: list[str] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


class PresenceKeeper:
    """Says that the agent is online, again whenever something else stands there, and goodbye at the end."""

    def __init__(
        self,
        identity: Identity,
        topics: Topics,
        facts: PresenceFacts,
        *,
        unsigned: bool,
        born_at: Callable[[], datetime],
        now: Callable[[], datetime],
        signature: Signature,
    ) -> None:
        self._identity = identity
        self._signature = signature
        self._facts = facts
        self._unsigned = unsigned
        self._born_at = born_at
        self._now = now
        self._started_at = now()
        self._changed = asyncio.Event()
        self._leaving = False
        # Our own sentences, hashed: the latest, and those that the broker has not handed back to us yet, oldest first.
        self._latest = b""
        self._unheard: list[bytes] = []
        self.topic = topics.presence(identity.namespace, identity.pod)
        self.taken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def will(self) -> Will:
        """What the broker says when we vanish: the names and labels by which runs miss us, and no more.

        MQTT has room for 65,535 bytes of it (section 3.1.3.3), and what was wrong or who else was in the pod is past.
        """
        return Will(self.topic, self._sealed("offline"))

    def announce(self) -> None:
        """Something changed, or the link is up: say it soon."""
        self._changed.set()

    async def keep_announcing(self, link: Link) -> None:
        """Publish presence after each `announce`. Never ends by itself."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._leaving or self.taken.done():
                continue  # after a goodbye, or beside a successor, "online" would be wrong for ever
            said = self._sealed("online")
            self._latest = _hash(said)
            self._unheard = [*self._unheard[1 - MAX_UNHEARD :], self._latest]
            try:
                await link.publish(Publication(self.topic, said, retain=True, content_type=CONTENT_TYPE))
            except LinkDown:
                continue  # the next connection announces again
            except PublishRefused as error:
                log.error("presence.refused_by_broker", error=str(error), next="check the broker's access rules")
            await asyncio.sleep(SAY_AGAIN_SECONDS)

    async def say_goodbye(self, link: Link) -> None:
        """Clear the retained presence: nobody is here any more, on purpose."""
        self._leaving = True
        try:
            await link.publish(Publication(self.topic, b"", retain=True))
        except (LinkDown, PublishRefused) as error:
            log.warning("presence.goodbye_not_said", error=str(error))

    def saw(self, delivery: Delivery) -> None:
        """Somebody wrote to our topic: ourselves, our predecessor's will, a successor, or somebody who repeats us.

        What is not our latest sentence, word for word, is contradicted, be it signed and be it our own of before: a
        label that we had yesterday must not stand there. Each sentence comes back to us once; that is no repetition,
        also if we have said another meanwhile (which comes back after it), and so there is no end of it only while
        somebody else goes on, and then at most one a second.

        `taken` is set when a later pod of our name is alive: it must be seen speaking now, because a retained sentence
        may be all that is left of it, and an old one may be repeated by whoever heard it.
        """
        if self._leaving or self.taken.done():
            return
        heard = _hash(delivery.payload)
        if heard in self._unheard:
            del self._unheard[: self._unheard.index(heard) + 1]
            return
        if heard == self._latest:
            return
        try:
            said = self._signature.ours(delivery.payload)
            event = open_event(said, _KINDS, limit_bytes=MAX_COMMAND_BYTES)
            if (event.data.namespace, event.data.pod) != (self._identity.namespace, self._identity.pod):
                raise BadInput(f"presence of {event.data.namespace}/{event.data.pod} on another agent's topic")
        except BadInput:  # also what nobody of ours has signed: a stranger on the broker must not send us away
            self.announce()
            return
        if not delivery.retain and self._is_successor(event.data, event.time):
            self.taken.set_result(event.data.pod_uid)
            return
        self.announce()

    def _is_successor(self, presence: Presence, time: datetime) -> bool:
        """Whether this is said now, by somebody who came after us.

        Of two pods with one name the later-born is the present. Of one pod with two agents it is the one that started
        later: our own earlier life did not, whatever birth it had without a journal. A clock that is wrong, or a birth
        that is still to come, proves nothing: we go on contradicting it, and neither is sent away.
        """
        now = self._now()
        if presence.state != "online" or max(abs(now - time), abs(now - presence.clock)) > _TOLERANCE:
            return False
        if presence.pod_uid == self._identity.pod_uid:
            return presence.started_at is not None and presence.started_at > self._started_at
        later = (presence.born_at, presence.pod_uid) > (self._born_at(), self._identity.pod_uid)
        return later and presence.born_at - now <= _TOLERANCE

    def _more(self) -> dict[str, Any]:
        facts = self._facts
        return {
            "containers": _within(MAX_CONTAINERS_BYTES, facts.containers, _size),
            "owners": _within(MAX_OWNERS_BYTES, facts.owners, lambda owner: len(owner.model_dump_json().encode())),
            "problems": _bounded(facts.problems.values()),
        }

    def _sealed(self, state: Literal["online", "offline"]) -> bytes:
        presence = Presence(
            namespace=self._identity.namespace,
            pod=self._identity.pod,
            pod_uid=self._identity.pod_uid,
            state=state,
            born_at=self._born_at(),
            clock=self._now(),
            version=__version__,
            started_at=self._started_at,
            labels=self._facts.labels,
            unsigned=self._unsigned,
            **(self._more() if state == "online" else {}),
        )
        said = seal(presence, source=self._identity.source, time=self._now(), event_id=str(uuid.uuid4()))
        return self._signature.sign(said)


def _within(limit_bytes: int, each: Iterable[T], size: Callable[[T], int]) -> list[T]:
    """As many from the first on as fit."""
    kept: list[T] = []
    for one in each:
        limit_bytes -= size(one)
        if limit_bytes < 0:
            break
        kept.append(one)
    return kept


def _bounded(problems: Iterable[str]) -> list[str]:
    """Sentences that fit into a presence; the rest is counted."""
    sentences = [
        text
        if len(text) <= MAX_PROBLEM_CHARACTERS
        else f"{text[:MAX_PROBLEM_CHARACTERS]}... (whole in the agent's log)"
        for text in problems
    ]
    kept = _within(MAX_PROBLEMS_BYTES, sentences, _size)
    more = len(sentences) - len(kept)
    return [*kept, f"and {more} more problems; see the agent's log"] if more else kept


def _size(text: str) -> int:
    """Bytes in JSON, a comma and a space included."""
    return len(json.dumps(text, ensure_ascii=False).encode()) + 2


def _hash(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()
