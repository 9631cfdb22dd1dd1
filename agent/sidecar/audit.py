"""The audit: who asked for what and when, what was decided, and what came of it. docs/audit.md has every field.

One line of JSON for each decision and one for its outcome; denied ones too. Never a payload, an argument but the
program's name, an environment or a header's value.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from agent.contract.action_secrets import redactor_of
from agent.contract.actions import Action
from agent.contract.messages import ErrorDetail, OfAttempt, OutcomeMessage, Query, Trigger, TriggerAddress
from agent.contract.states import Outcome
from agent.pod.identity import Identity
from agent.sidecar.audit_stream import AppendedFile, LineWriter, Sink, StandardOutput
from agent.sidecar.floods import Flood
from agent.sidecar.runner import Prepared
from agent.sidecar.trust import ANYBODY, Voucher

log = structlog.get_logger("podhook.audit")

STDOUT, OFF = "stdout", "off"
UNSIGNED = "unsigned"
MAX_REASON_CHARACTERS = 500
MAX_WORD_CHARACTERS = 200
#: At the end, lines have this long to be written.
CLOSE_SECONDS = 2

OFF_PROBLEM = "there is no audit (PODHOOK_AUDIT=off): nobody will know who ran what; set it to stdout or to a file"


class Audit:
    """The audit of one agent. `sink` takes its lines, None takes none; `failed` hears that it cannot, and when it can.

    `failed` is called from another thread. `clock` (monotonic seconds) is for the bound on lines about refusals.
    """

    def __init__(
        self,
        identity: Identity,
        sink: Sink | None,
        now: Callable[[], datetime],
        failed: Callable[[str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._now = now
        self._strangers = Flood(clock=clock)
        self._known = Flood(clock=clock)  # of their own: a flood of strangers must not hide a refusal of a trusted key
        self._questions = Flood(clock=clock)  # coordinators ask again and again: that must not hide refusals either
        self._writer = LineWriter(sink, self._dropped, failed) if sink is not None else None

    # -- decisions

    def accepted(self, trigger: Trigger, trigger_hash: str, prepared: Prepared, who: Voucher = ANYBODY) -> None:
        """A trigger will run, or waits for its go: in the container that was chosen, by the rule that allows it."""
        what = _of_trigger(trigger, trigger_hash, prepared.container, prepared.action)
        self._put("decision", {"decision": "accepted", **_by(who), **what, "rule": prepared.rule})

    def refused(
        self,
        address: TriggerAddress,
        trigger_hash: str,
        why: ErrorDetail | None,
        who: Voucher = ANYBODY,
        container: str = "",
    ) -> None:
        """A trigger will not run. `container` is the one it would have run in, if that is known.

        The address alone is known of some.
        """
        what, said = _of(address, trigger_hash), _why(why)
        if isinstance(address, Trigger):
            what = _of_trigger(address, trigger_hash, container, address.action)
            hide = redactor_of(address).text
            said = {name: hide(word) if name == "reason" else word for name, word in said.items()}
        self._refuse(who, {**what, **said})

    def repeated(self, trigger: Trigger, trigger_hash: str, who: Voucher = ANYBODY) -> None:
        """A trigger that was seen before came again: a redelivery, or a replay. It does not run again."""
        self._limited(
            self._of_whom(who), "decision", {"decision": "repeated", **_by(who), **_of(trigger, trigger_hash)}
        )

    def unverified(self, payload: bytes, code: str, reason: str) -> None:
        """Bytes that nobody vouches for: whatever they ask for, nothing in them is believed."""
        about = {"bytes": len(payload), "payload_hash": hashlib.sha256(payload).hexdigest()}
        self._refuse(ANYBODY, {"command": "unverified", **about, "code": code, "reason": reason})

    def unreadable(self, payload: bytes, code: str, reason: str, oversize_bytes: int = 0) -> None:
        """Bytes that are no command. Of those over the limit (`oversize_bytes`) nothing was read."""
        about: dict[str, object] = {"bytes": oversize_bytes or len(payload)}
        if not oversize_bytes:
            about["payload_hash"] = hashlib.sha256(payload).hexdigest()
        self._refuse(ANYBODY, {"command": "unreadable", **about, "code": code, "reason": reason})

    def denied(self, command: OfAttempt | Query, code: str, reason: str = "", who: Voucher = ANYBODY) -> None:
        """A command other than a trigger is not obeyed."""
        self._refuse(who, {**_of_command(command), "code": str(code), "reason": reason})

    def obeyed(self, command: OfAttempt | Query, effect: str, who: Voucher = ANYBODY, **more: object) -> None:
        """A command other than a trigger changed something: what, in a word."""
        line = {"decision": "accepted", **_by(who), **_of_command(command), "effect": effect, **more}
        self._put("decision", line)

    def answered(self, query: Query, who: Voucher = ANYBODY) -> None:
        """A query was answered and changed nothing: somebody read what ran here, output included."""
        line: dict[str, object] = {"decision": "accepted", **_by(who), **_of_command(query), "effect": "answered"}
        self._limited(self._questions, "decision", line)

    # -- outcomes

    def ended(self, outcome: OutcomeMessage, hook: str = "", *, recovered: bool = False) -> None:
        """An attempt that was accepted has ended. `recovered`: it was found so after a restart.

        Of one that was refused after all, at the socket for example, the line says why, as its decision would have.
        """
        why = _why(outcome.error)
        if outcome.outcome is not Outcome.REJECTED:
            why.pop("reason", None)  # it may quote what a server or a command said
        line: dict[str, object] = {
            "run_id": outcome.run_id,
            "attempt": outcome.attempt,
            "trigger_hash": outcome.trigger_hash,
            **({"hook": hook} if hook else {}),
            "outcome": str(outcome.outcome),
            **{name: _short(word, MAX_REASON_CHARACTERS) for name, word in why.items()},
            "duration_seconds": round(outcome.duration_seconds, 4),
            **({"recovered": True} if recovered else {}),
        }
        self._put("outcome", line)

    # -- life

    def settle(self) -> None:
        """Tell of refusals that were held back, when no other line does."""
        for flood, of in ((self._strangers, "refused"), (self._known, "refused"), (self._questions, "answered")):
            if count := flood.settle():
                self._put("suppressed", {"count": count, "of": of})

    def close(self) -> None:
        """Tell what was held back and write what waits."""
        self.settle()
        if self._writer is not None:
            self._writer.close(CLOSE_SECONDS)

    # -- within

    def _refuse(self, who: Voucher, line: dict[str, object]) -> None:
        reason = str(line.pop("reason", ""))
        more = {"reason": _short(reason, MAX_REASON_CHARACTERS)} if reason else {}
        self._limited(self._of_whom(who), "decision", {"decision": "refused", **_by(who), **line, **more})

    def _of_whom(self, who: Voucher) -> Flood:
        return self._known if who.kid else self._strangers

    def _limited(self, flood: Flood, kind: str, line: dict[str, object]) -> None:
        held_back = flood.admit()
        if held_back is not None:
            self._put(kind, {**line, **({"suppressed": held_back} if held_back else {})})

    def _put(self, kind: str, line: dict[str, object]) -> None:
        if self._writer is not None:
            self._writer.put(self._line(kind, line))

    def _dropped(self, count: int) -> bytes:
        return self._line("dropped", {"count": count})

    def _line(self, kind: str, line: dict[str, object]) -> bytes:
        at = self._now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        head = {"time": at, "audit": kind, "agent": str(self._identity), "pod_uid": self._identity.pod_uid}
        return json.dumps({**head, **line}, separators=(",", ":")).encode() + b"\n"


def open_sink(where: str) -> Sink | None:
    """The sink that PODHOOK_AUDIT names; None when it is off."""
    if where == OFF:
        return None
    return StandardOutput() if where == STDOUT else AppendedFile(Path(where))


def problem_of(where: str, why: str) -> str:
    """What presence says of an audit that cannot be written."""
    place = "standard output" if where == STDOUT else where
    return f"the audit cannot be written to {place}: {why}; lines are dropped and counted until that is mended"


def _by(who: Voucher) -> dict[str, object]:
    return {"key_id": who.kid or UNSIGNED, **({"key_name": who.name} if who.name else {})}


def _why(error: ErrorDetail | None) -> dict[str, str]:
    """Why something was refused: the code, the sentence, and the policy's rule if one says so."""
    if error is None:
        return {}
    rule = {"rule": error.rule} if error.rule else {}
    return {"code": error.code, "reason": error.message, **rule}


def _of(address: TriggerAddress, trigger_hash: str) -> dict[str, object]:
    return {
        "command": "trigger",
        "coordinator": address.coordinator,
        "run_id": address.run_id,
        "attempt": address.attempt,
        "trigger_hash": trigger_hash,
    }


def _of_trigger(trigger: Trigger, trigger_hash: str, container: str, action: Action | None) -> dict[str, object]:
    found = _of(trigger, trigger_hash)
    if trigger.name or trigger.hook:
        found["hook"] = trigger.name or (trigger.hook.name if trigger.hook else "")
    hide = redactor_of(trigger).text
    what = _what(action) if action is not None else {"action": "catalogue"}
    words = {name: hide(value) if isinstance(value, str) else value for name, value in what.items()}
    if container := container or (action.container_name if action is not None else None) or "":
        words["container"] = container
    return {**found, **{name: _short(word) if isinstance(word, str) else word for name, word in words.items()}}


def _what(action: Action) -> dict[str, Any]:
    """What an action is about: its program, or method, host and port."""
    if action.exec_ is not None:
        user = {"user": action.exec_.user} if action.exec_.user else {}
        return {"action": action.kind, "program": action.exec_.command[0], **user}
    asked = action.http_get or action.http_post or action.tcp_socket
    assert asked is not None
    method = {} if action.tcp_socket is not None else {"method": "POST" if action.http_post is not None else "GET"}
    return {"action": action.kind, **method, "host": asked.host or "the pod's own", "port": asked.port}


def _of_command(command: OfAttempt | Query) -> dict[str, object]:
    kind = command.TYPE.removeprefix("dev.podhook.").partition(".")[0]
    if isinstance(command, Query):
        of = {"coordinator": command.coordinator, "run_id": command.run_id, "attempt": command.attempt}
        return {"command": kind, **{name: value for name, value in of.items() if value is not None}}
    return {"command": kind, "run_id": command.run_id, "attempt": command.attempt}


def _short(text: str, limit: int = MAX_WORD_CHARACTERS) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
