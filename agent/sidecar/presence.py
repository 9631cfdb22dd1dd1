"""Presence: a retained sentence about who is here, kept true against wills, successors and late goodbyes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import structlog

from agent import __version__
from agent.bus.link import Link
from agent.bus.types import Delivery, Publication, Will
from agent.contract.errors import BadInput, LinkDown, PublishRefused
from agent.contract.events import CONTENT_TYPE, Kinds, open_event, seal
from agent.contract.messages import MAX_COMMAND_BYTES, Owner, Presence
from agent.contract.topics import Topics
from agent.pod.identity import Identity
from agent.sidecar.trust import Signature

log = structlog.get_logger("podhook.presence")

_KINDS = Kinds.of(Presence)
#: Said again at most this often when somebody else writes to our topic.
SAY_AGAIN_SECONDS = 1.0


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
        self._births: set[datetime] = set()  # what we said of ourselves: another birth is another agent, uid or not
        self.topic = topics.presence(identity.namespace, identity.pod)
        self.taken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def will(self) -> Will:
        """What the broker says when we vanish."""
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
            try:
                await link.publish(
                    Publication(self.topic, self._sealed("online"), retain=True, content_type=CONTENT_TYPE)
                )
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
        """Somebody wrote to our topic: ourselves, our predecessor's will, or a successor.

        `taken` is set when a later-born pod of our name is alive: it must be seen speaking now, because a retained
        sentence may be all that is left of it.
        """
        if self._leaving or self.taken.done():
            return
        try:
            said = self._signature.ours(delivery.payload)
            presence: Presence = open_event(said, _KINDS, limit_bytes=MAX_COMMAND_BYTES).data
        except BadInput:  # also what nobody of ours has signed: a stranger on the broker must not send us away
            self.announce()
            return
        ours = presence.pod_uid == self._identity.pod_uid and presence.born_at in self._births
        if ours and presence.state == "online":
            return
        later = (presence.born_at, presence.pod_uid) > (self._born_at(), self._identity.pod_uid)
        if not ours and presence.state == "online" and later and not delivery.retain:
            self.taken.set_result(presence.pod_uid)
            return
        self.announce()

    def _sealed(self, state: Literal["online", "offline"]) -> bytes:
        self._births.add(self._born_at())
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
            containers=self._facts.containers,
            owners=self._facts.owners,
            unsigned=self._unsigned,
            problems=list(self._facts.problems.values()),
        )
        said = seal(presence, source=self._identity.source, time=self._now(), event_id=str(uuid.uuid4()))
        return self._signature.sign(said)
