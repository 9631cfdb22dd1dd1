"""The agent's key files, looked at from time to time: whom it obeys, and with which key it speaks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import structlog

from agent.contract.errors import InvalidSettings
from agent.pod.identity import WatchedFile
from agent.pod.supervisor import AGENT_UID, COMMAND_UID
from agent.sidecar.key_modes import exposed
from agent.sidecar.obeyed import UNSIGNED, Obeyed
from agent.sidecar.settings import AgentSettings
from agent.sidecar.trust import Signature, Trust, TrustedKeys

log = structlog.get_logger("podhook.agent")

UNSIGNED_PROBLEM = (
    "every trigger is refused: no trusted key; set PODHOOK_TRUSTED_KEYS to the public keys of coordinators "
    "(podhook keygen makes them), or PODHOOK_ALLOW_UNSIGNED=true if everybody who reaches the broker may run commands"
)
NO_KEY_PROBLEM = (
    "every trigger is refused: no trusted key in {path}; put the public keys of the coordinators there "
    "(podhook keygen makes them, *.pub)"
)

#: Notes what needs somebody's hands, by its name; None: it is mended.
NoteProblem = Callable[[str, str | None], None]


class KeyFiles:
    """Trusted keys and the agent key. `spoken` hears that what is said is signed anew."""

    def __init__(
        self, settings: AgentSettings, now: Callable[[], datetime], problem: NoteProblem, spoken: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._problem = problem
        self._spoken = spoken
        self._trusted = TrustedKeys(settings.trusted_keys) if settings.trusted_keys else None
        self._namespace = settings.identity().namespace
        self.obeyed = Obeyed(now)
        self._agent_key = WatchedFile(settings.agent_key)
        self.signature = Signature(configured=settings.agent_key is not None)

    def trust(self) -> Trust:
        """Whom this agent obeys at this moment."""
        keyring = self._trusted.keyring if self._trusted is not None else None
        return Trust(self._namespace, keyring, self._settings.allow_unsigned, self.obeyed.since)

    def begin(self) -> None:
        """Say once what follows from which files there are."""
        settings = self._settings
        if settings.allow_unsigned:
            log.warning("agent.unsigned", effect="whoever can publish to the broker can run commands here")
        elif settings.trusted_keys is None:
            self._problem("unsigned", UNSIGNED_PROBLEM)
        if settings.agent_key is None:
            log.warning("agent.says_unsigned", effect="nobody can verify outcomes and presence; set PODHOOK_AGENT_KEY")

    def look(self, *, commands_are_others: bool) -> None:
        """Read what changed. `commands_are_others`: commands in our own container run as another user than we do."""
        settings, trusted = self._settings, self._trusted
        if trusted is None:
            self.obeyed.are([UNSIGNED] if settings.allow_unsigned else [])
        if trusted is not None and trusted.look():
            self._problem("trusted_keys", trusted.problem)
            # A key that may do more now may have been refused before, like one that is new.
            self.obeyed.are([key.kid for key in trusted.keyring or () if key.may_command(self._namespace)])
            closed = trusted.keyring is None
            self._problem("unsigned", NO_KEY_PROBLEM.format(path=settings.trusted_keys) if closed else None)
            for key in trusted.keyring or ():
                log.info("key.trusted", key_id=key.kid, name=key.name, operator=key.operator)
        try:
            if (text := self._agent_key.changed()) is not None and self._agent_key.path is not None:
                self.signature.use(text, self._agent_key.path)
                self._problem("agent_key", None)
                self._spoken()
        except InvalidSettings as error:
            what = "still signed with the last good key" if self.signature.key else "not signed"
            self._problem("agent_key", f"what this agent says is {what}: {error}")
        if commands_are_others:  # where they run as we do, they can take our key anyway
            why = exposed(settings.agent_key, settings.trusted_keys, agent=AGENT_UID, commands=COMMAND_UID)
            self._problem("key files", why)
