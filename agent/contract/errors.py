"""The tree of errors. The type says whose fault it was and whether trying again can help.

::

    PodhookError
    |-- BadInput              the sender's or the author's fault; the same input fails again
    |   |-- MalformedMessage  a payload that is no message of ours (bytes, JSON, CloudEvent, fields)
    |   |-- UnknownType       a message type or major version that this podhook does not speak
    |   |-- Unverified        a payload that nobody we trust has signed for us; says which rule it breaks
    |   |-- InvalidKey        a file that is no key of ours
    |   |-- InvalidHook       a HookTemplate with problems; carries all of them
    |   `-- InvalidSettings   a flag or a PODHOOK_* variable that cannot be used
    |-- Refusal               an agent says no; TEMPORARY has the codes that pass
    |-- IllegalMove           a bug: a state that cannot follow the present one
    |-- JournalUnavailable    the disk's fault; goes away when it has room and works again
    |   |-- JournalFull       at its bound of rows or bytes; goes away as old outcomes are forgotten
    |   |-- JournalLocked     another agent of the same pod lives; goes away with it
    |   `-- JournalNewer      written by a newer podhook; goes away with an upgrade
    |-- ClusterError          the API server's answer, or that there was none; `status` is HTTP's, 0 without one
    |   |-- ClusterUnavailable  it could not be asked, or cannot answer now: trying again makes sense
    |   |-- ClusterRefused    it does not let us (401, 403), or does not take what we sent: somebody has to mend it
    |   |-- ClusterNotFound   there is no such object, or no such kind of object
    |   `-- ClusterConflict   the name is taken, or the object is not the one that was meant any more
    `-- BusError              the broker's or the network's side
        |-- LinkDown          not connected, or the connection broke: trying again makes sense
        |-- BrokerRefused     the broker does not let us in: trying again helps only after a change
        `-- PublishRefused    the broker refused this one message (MQTT 5 reason code >= 0x80)
"""

# ruff: noqa: N818 - an error is named for what happened, as in trio

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """The stable names of what can go wrong with an attempt; `error.code` of an outcome."""

    # rejected: refused before anything ran
    UNSIGNED = "unsigned"
    BAD_SIGNATURE = "bad_signature"
    UNKNOWN_KEY = "unknown_key"
    KEY_NOT_ALLOWED = "key_not_allowed"
    WRONG_AUDIENCE = "wrong_audience"
    REPLAYED = "replayed"
    KEY_JUST_TRUSTED = "key_just_trusted"
    WRONG_POD_UID = "wrong_pod_uid"
    BEFORE_JOURNAL = "before_journal"
    CLOCK_SKEW = "clock_skew"
    EXPIRED = "expired"
    DEADLINE_TOO_FAR = "deadline_too_far"
    ID_REUSED = "id_reused"
    STALE_ATTEMPT = "stale_attempt"
    ATTEMPT_RUNNING = "attempt_running"
    BUSY = "busy"
    STOPPING = "stopping"
    JOURNAL_UNAVAILABLE = "journal_unavailable"
    JOURNAL_FULL = "journal_full"
    UNKNOWN_CONTAINER = "unknown_container"
    CONTAINER_NOT_ENTERABLE = "container_not_enterable"
    UNKNOWN_PORT = "unknown_port"
    UNKNOWN_HOOK = "unknown_hook"
    INVALID_PARAMS = "invalid_params"
    POLICY_DENIED = "policy_denied"
    POLICY_UNAVAILABLE = "policy_unavailable"
    ADDRESS_REFUSED = "address_refused"
    INVALID_ACTION = "invalid_action"
    UNSUPPORTED = "unsupported"
    SECRET_UNAVAILABLE = "secret_unavailable"  # noqa: S105 (a code)
    JOB_REFUSED = "job_refused"

    AGENT_RESTARTED_BEFORE_START = "agent_restarted_before_start"

    # failed: it ran, or could not be started
    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    NOT_FOUND = "not_found"
    NOT_EXECUTABLE = "not_executable"
    START_FAILED = "start_failed"
    OUT_OF_MEMORY = "out_of_memory"
    ENVIRONMENT_UNAVAILABLE = "environment_unavailable"
    HTTP_STATUS = "http_status"
    HTTP_PROTOCOL = "http_protocol"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TLS = "tls"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_TIMED_OUT = "connection_timed_out"
    CONNECTION_FAILED = "connection_failed"
    NAME_NOT_FOUND = "name_not_found"
    NO_ROUTE = "no_route"
    INTERNAL = "internal"

    # timed_out, cancelled, interrupted
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    TOMBSTONED = "tombstoned"
    AGENT_RESTARTED = "agent_restarted"
    AGENT_STOPPED = "agent_stopped"
    JOB_DELETED = "job_deleted"
    POD_GONE = "pod_gone"
    CONTAINER_RESTARTED = "container_restarted"
    LAUNCHER_RESTARTED = "launcher_restarted"

    # said by the coordinator: unreachable, lost
    NEVER_PUBLISHED = "never_published"
    NEVER_SEEN = "never_seen"
    STOPPED_AFTER_ERRORS = "stopped_after_errors"
    SILENT = "silent"


#: Rejections of what nobody has signed as it must be: said to an unknown sender, about bytes that prove nothing.
UNVERIFIED = frozenset(
    {
        ErrorCode.UNSIGNED,
        ErrorCode.BAD_SIGNATURE,
        ErrorCode.UNKNOWN_KEY,
        ErrorCode.KEY_NOT_ALLOWED,
        ErrorCode.WRONG_AUDIENCE,
    }
)

#: Rejections that pass by themselves; only these are repeated by `maxRetry` (SEMANTICS: Retries).
TEMPORARY = frozenset(
    {
        ErrorCode.BUSY,
        ErrorCode.KEY_JUST_TRUSTED,
        ErrorCode.STOPPING,
        ErrorCode.JOURNAL_UNAVAILABLE,
        ErrorCode.JOURNAL_FULL,
        ErrorCode.AGENT_RESTARTED_BEFORE_START,
    }
)


class PodhookError(Exception):
    """Root of every error that podhook raises on purpose."""


class BadInput(PodhookError):
    """The sender's or the author's fault: the same input will fail again."""


class MalformedMessage(BadInput):
    """A payload that is not one of our messages."""


class Unverified(BadInput):
    """A payload that is not signed as it must be. `code` names the rule; nothing in the payload can be believed."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class InvalidKey(BadInput):
    """A file that is no key of ours; the message names the file and never what stands in it."""


class UnknownType(BadInput):
    """A message type, or a major version of one, that this podhook does not speak."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a document: where (`spec.action.httpGet.port`), and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidHook(BadInput):
    """A HookTemplate that cannot be used; `problems` has every reason, in document order."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class InvalidPolicy(BadInput):
    """A local policy that cannot be used; `problems` has every reason, in document order."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class InvalidSettings(BadInput):
    """A flag or an environment variable that cannot be used; the message names it."""


class Refusal(PodhookError):
    """An agent's no. Becomes a `rejected` outcome.

    `rule` is the policy's that says so; of any other no the code is the rule. `container` is the one that was asked
    for, once that is known.
    """

    def __init__(self, code: ErrorCode, message: str, rule: str = "", container: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.rule = rule
        self.container = container


class IllegalMove(PodhookError):
    """A move that the state table does not have. Nothing was changed."""


class JournalUnavailable(PodhookError):
    """The journal cannot record now (disk full, read-only, broken); nothing may run meanwhile."""


class JournalFull(JournalUnavailable):
    """The journal is at a bound of its own. What it has can be read and finished; nothing new fits."""


class JournalLocked(JournalUnavailable):
    """Another agent has this journal open: there are two of us, and one is too many."""


class JournalNewer(JournalUnavailable):
    """The journal was written by a newer podhook and is left untouched."""


class ClusterError(PodhookError):
    """A no of the API server, or none at all. `status` is the answer's (HTTP), 0 where there was none."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ClusterUnavailable(ClusterError):
    """The API server could not be asked, or cannot answer now. Trying again makes sense.

    `retry_after_seconds` is what it asked to wait for (HTTP's Retry-After, RFC 9110 section 10.2.3), else 0.
    """

    def __init__(self, message: str, *, retry_after_seconds: int = 0, status: int = 0) -> None:
        super().__init__(message, status=status)
        self.retry_after_seconds = retry_after_seconds


class ClusterRefused(ClusterError):
    """The API server does not let us ask that, or does not take what we sent: the same question gets the same no.

    Where a right is missing, the message names it, and `rule` is the YAML that gives it (for `kubectl apply -f -`).
    """

    def __init__(self, message: str, *, status: int = 0, rule: str = "") -> None:
        super().__init__(message, status=status)
        self.rule = rule


class ClusterNotFound(ClusterError):
    """There is no such object in the cluster, or no such kind of object."""


class ClusterConflict(ClusterError):
    """The name is taken, or the object of that name is another than the one that was meant."""


class BusError(PodhookError):
    """Something between us and the broker."""


class LinkDown(BusError):
    """Not connected, or the connection broke while waiting. Trying again makes sense."""


class BrokerRefused(BusError):
    """The broker answered and said no (credentials, client id, protocol). Change something first."""


class PublishRefused(BusError):
    """The broker refused one message; `reason_code` is MQTT 5's (section 2.4), >= 0x80."""

    def __init__(self, topic: str, reason_code: int, reason: str) -> None:
        super().__init__(
            f"the broker refused a publish to {topic!r}: {reason} (reason code 0x{reason_code:02x}); "
            "check this user's access rules"
        )
        self.reason_code = reason_code
