"""Yes or no: whether a trigger may run, judged from values alone, before anything is recorded or done."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent.contract.errors import ErrorCode, Refusal
from agent.contract.messages import CLOCK_TOLERANCE_SECONDS, MAX_START_WINDOW_SECONDS, Trigger, TriggerAddress
from agent.journal import Memory
from agent.pod.identity import Identity
from agent.sidecar.trust import Voucher


@dataclass(frozen=True, slots=True)
class Situation:
    """What the agent is and does at this moment."""

    identity: Identity
    stopping: bool
    alive: int
    max_concurrent: int


def check_pod(trigger: TriggerAddress, identity: Identity) -> None:
    """Is it meant for us? A refusal here is not recorded: it stays true by itself.

    Raises:
        Refusal: another pod's uid.
    """
    if trigger.pod_uid != identity.pod_uid:
        raise Refusal(
            ErrorCode.WRONG_POD_UID,
            f"the trigger is meant for pod uid {trigger.pod_uid}, but {identity} has uid "
            f"{identity.pod_uid}: the pod was replaced; select the targets again",
        )


def check_signature(trigger: Trigger, voucher: Voucher, expires: datetime | None, now: datetime) -> None:
    """Is what it was signed for still good? `expires` is the end of that, None for an unsigned one.

    Raises:
        Refusal: it is over; or a copy may have been refused here, while its key was not trusted yet.
    """
    if expires is not None and now > expires:
        raise Refusal(
            ErrorCode.EXPIRED, f"its signature was good until {expires.isoformat()}, it is {now.isoformat()} here"
        )
    if voucher.since is not None and trigger.issued_at < voucher.since:
        what = f"key {voucher.kid} is trusted" if voucher.kid else "what nobody signed is obeyed"
        raise Refusal(
            ErrorCode.KEY_JUST_TRUSTED,
            f"the trigger was issued at {trigger.issued_at.isoformat()}, and {what} here only "
            f"since {voucher.since.isoformat()}: a copy may have been refused before; trigger again",
        )


def check_trigger(trigger: Trigger, memory: Memory, situation: Situation, now: datetime) -> None:
    """May it run now? A refusal here is recorded, so that it cannot turn into a yes later.

    Raises:
        Refusal: with its code, the values that decided, and the next step.
    """
    if memory.tombstoned:
        raise Refusal(
            ErrorCode.TOMBSTONED,
            f"attempt {trigger.trigger_id} was cancelled, or given up, before its trigger arrived",
        )
    check_times(trigger, memory, now)
    for entry in memory.entries:
        if entry.attempt > trigger.attempt:
            raise Refusal(
                ErrorCode.STALE_ATTEMPT,
                f"attempt {trigger.attempt} of run {trigger.run_id} comes after attempt {entry.attempt}; "
                "a lower attempt is never started after a higher one",
            )
        if not entry.state.ended:
            raise Refusal(
                ErrorCode.ATTEMPT_RUNNING,
                f"attempt {entry.attempt} of run {trigger.run_id} is {entry.state} here; "
                "one attempt of a run at a time: wait for its outcome or cancel it",
            )
    if situation.stopping:
        raise Refusal(
            ErrorCode.STOPPING,
            f"agent {situation.identity} is stopping and takes no new work; try again in a moment",
        )
    if situation.alive >= situation.max_concurrent:
        raise Refusal(
            ErrorCode.BUSY,
            f"agent {situation.identity} runs {situation.alive} attempts, the limit is {situation.max_concurrent}; "
            "try again later or raise PODHOOK_MAX_CONCURRENT (and limits.concurrency of its policy, if it has one)",
        )


def check_times(trigger: Trigger, memory: Memory, now: datetime) -> None:
    """The clocks: not from the future, not past its deadline, not older than our memory, not refused before.

    Raises:
        Refusal: with the times that decided.
    """
    ahead = (trigger.issued_at - now).total_seconds()
    if ahead > CLOCK_TOLERANCE_SECONDS:
        raise Refusal(
            ErrorCode.CLOCK_SKEW,
            f"the trigger was issued at {trigger.issued_at.isoformat()}, {ahead:.0f} s ahead of this agent's clock "
            f"({now.isoformat()}); the tolerance is {CLOCK_TOLERANCE_SECONDS} s: set both clocks",
        )
    window = (trigger.deadline - trigger.issued_at).total_seconds()
    if window > MAX_START_WINDOW_SECONDS:
        raise Refusal(
            ErrorCode.DEADLINE_TOO_FAR,
            f"the deadline is {window:.0f} s after issued_at; the limit is {MAX_START_WINDOW_SECONDS} s",
        )
    if now > trigger.deadline:
        raise Refusal(
            ErrorCode.EXPIRED,
            f"the deadline to start was {trigger.deadline.isoformat()}, it is {now.isoformat()} here; "
            "trigger again, with a longer start window if delivery is slow",
        )
    if (why := forgotten(trigger.issued_at, trigger.deadline, memory)) is not None:
        raise Refusal(
            ErrorCode.BEFORE_JOURNAL,
            f"the trigger may have run here already: {why}; look there before you trigger again",
        )
    if trigger.issued_at < memory.floor:
        raise Refusal(
            ErrorCode.JOURNAL_UNAVAILABLE,
            f"the trigger was issued at {trigger.issued_at.isoformat()}, and until {memory.floor.isoformat()} triggers "
            "were refused without a record, because the journal had no room or did not work; trigger again",
        )


def reach(
    pod_uid: str, issued_at: datetime, deadline: datetime, memory: Memory, identity: Identity, now: datetime
) -> str | None:
    """Why an empty memory proves nothing about an attempt; None when it does prove that it never started here."""
    if (issued_at - now).total_seconds() > CLOCK_TOLERANCE_SECONDS:
        return f"issued at {issued_at.isoformat()}, and it is {now.isoformat()} here: the clocks differ too much"
    if pod_uid != identity.pod_uid:
        return f"the attempt was meant for pod uid {pod_uid}; this is {identity.pod_uid}"
    return forgotten(issued_at, deadline, memory)


def forgotten(issued_at: datetime, deadline: datetime, memory: Memory) -> str | None:
    """Why the journal may not know a trigger any more, or never did; None when it knows all with these times."""
    if issued_at < memory.born_at:
        return f"issued at {issued_at.isoformat()}, before this journal's memory begins ({memory.born_at.isoformat()})"
    if deadline <= memory.forgotten_deadline:
        return f"its deadline {deadline.isoformat()} is among those that were forgotten"
    return None
