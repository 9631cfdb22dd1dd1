"""What travels: the data of every message, with its bounds. The envelope around it is in `events`.

Unknown fields from a newer sender are kept and ignored. Names on the wire are snake_case; an inline action is
written as a HookTemplate writes it. All durations are seconds, all times RFC 3339 with an offset.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from agent.contract.actions import Action
from agent.contract.errors import BadInput
from agent.contract.states import AttemptState, GuardState, Outcome
from agent.contract.topics import check_name, is_level

#: A trigger may not wait longer than this for its start (DESIGN: at most 15 min after issued_at).
MAX_START_WINDOW_SECONDS = 900
#: Ids and tombstones outlive the deadline by this much, and clocks may differ by it (DESIGN: Delivery).
CLOCK_TOLERANCE_SECONDS = 30
#: How often a running attempt says that it lives.
HEARTBEAT_SECONDS = 10
#: Five minutes when a hook gives no timeout (KubeStash's default).
DEFAULT_TIMEOUT_SECONDS = 300
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600
#: A command that is larger is refused before it is parsed.
MAX_COMMAND_BYTES = 256 * 1024
#: An outcome is cut to fit into this much, as sent (DESIGN: Delivery 8).
MAX_OUTCOME_BYTES = 120 * 1024
#: Kept of each output stream: the first 8 KiB and the last 24 (SEMANTICS: exec).
DEFAULT_OUTPUT_LIMIT_BYTES = 32 * 1024
MAX_ATTEMPTS = 1000
#: Attempts in one list of the latest ones; about what fits into a message.
MAX_LISTED = 250
#: At the ends of its range a datetime overflows when a tolerance is added or its offset is taken off.
_FIRST_YEAR, _LAST_YEAR = 1970, 9000

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _uuid(value: str) -> str:
    if not _UUID.fullmatch(value):
        raise ValueError(f"{value[:60]!r} is not a UUID in lower case")
    return value


def check_run_id(text: str) -> str:
    """A run's id, as somebody typed it. Raises BadInput for what is none."""
    if not _UUID.fullmatch(text):
        raise BadInput(f"run id {text[:60]!r} is not a UUID in lower case; `podhook runs` lists the latest")
    return text


def _level(value: str) -> str:
    if not is_level(value):
        raise ValueError(f"{value[:60]!r} cannot be a topic level: letters, digits, '-', '_' and '.', at most 128")
    return value


def _name(value: str) -> str:
    try:
        return check_name("name", value)
    except BadInput as error:  # pydantic wants a ValueError
        raise ValueError(str(error)) from error


def _instant(value: datetime) -> datetime:
    if not _FIRST_YEAR <= value.year <= _LAST_YEAR:
        raise ValueError(f"the year {value.year} is out of range ({_FIRST_YEAR} to {_LAST_YEAR})")
    return value


Uuid = Annotated[str, AfterValidator(_uuid)]
Instant = Annotated[AwareDatetime, AfterValidator(_instant)]
Level = Annotated[str, AfterValidator(_level)]
KubernetesName = Annotated[str, AfterValidator(_name)]
PodUid = Annotated[str, Field(min_length=1, max_length=128)]
Attempt = Annotated[int, Field(ge=1, le=MAX_ATTEMPTS)]
Seconds = Annotated[float, Field(gt=0, le=MAX_TIMEOUT_SECONDS, allow_inf_nan=False)]


class Message(BaseModel):
    """The data of one message. `TYPE` is its CloudEvents type."""

    model_config = ConfigDict(extra="allow", frozen=True, ser_json_bytes="base64")
    TYPE: ClassVar[str]


class OfAttempt(Message):
    """A message that speaks of one attempt; its id is `{run_id}/{attempt}`."""

    run_id: Uuid
    attempt: Attempt

    @property
    def trigger_id(self) -> str:
        """The id under which an agent executes at most once."""
        return f"{self.run_id}/{self.attempt}"


class Targets(Message):
    """How many targets a run has and a hash of who they are, so that a run cannot shrink unnoticed.

    `strategy` says how many of them must have run it: whoever asks the agents later needs that for a verdict.
    """

    count: Annotated[int, Field(ge=1, le=100_000)]
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    strategy: Literal["ExecuteOnOne", "ExecuteOnAll"] = "ExecuteOnAll"

    @classmethod
    def of(
        cls,
        targets: Iterable[tuple[str, str, str]],
        strategy: Literal["ExecuteOnOne", "ExecuteOnAll"] = "ExecuteOnAll",
    ) -> Self:
        """Make it from (namespace, pod, pod uid) triples, in any order."""
        lines = sorted("/".join(target) for target in targets)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return cls(count=len(lines), hash=f"sha256:{digest}", strategy=strategy)


class Capture(Message):
    """How much of each output stream to keep, in bytes. 0 keeps none."""

    limit_bytes: Annotated[int, Field(ge=0, le=64 * 1024)] = DEFAULT_OUTPUT_LIMIT_BYTES


class CatalogueHook(Message):
    """A hook from the agent's own catalogue, by name, with parameters."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    params: dict[str, str] = {}


class Guard(Message):
    """An undo that the agent runs by itself unless it is renewed or released within `ttl_seconds`."""

    undo: Action
    ttl_seconds: Seconds
    timeout_seconds: Seconds = DEFAULT_TIMEOUT_SECONDS


class TriggerAddress(OfAttempt):
    """Who sent a trigger and whom it is meant for: enough to answer one whose rest cannot be understood."""

    coordinator: Level
    pod_uid: PodUid


class Trigger(TriggerAddress):
    """Run this action, once, if it can be started before `deadline`."""

    TYPE: ClassVar[str] = "dev.podhook.trigger.v1"

    targets: Targets
    action: Action | None = None
    hook: CatalogueHook | None = None
    name: Annotated[str, Field(max_length=253)] = ""
    timeout_seconds: Seconds = DEFAULT_TIMEOUT_SECONDS
    issued_at: Instant
    deadline: Instant
    capture: Capture = Capture()
    guard: Guard | None = None
    wait_for_go: bool = False

    @model_validator(mode="after")
    def _action_or_hook(self) -> Self:
        if (self.action is None) == (self.hook is None):
            raise ValueError("give either an inline action or the name of a catalogue hook")
        return self


class Go(OfAttempt):
    """Start what is ready, before `start_by`."""

    TYPE: ClassVar[str] = "dev.podhook.go.v1"
    pod_uid: PodUid
    start_by: Instant


class Cancel(OfAttempt):
    """Stop it, or never start it. `deadline` is the trigger's, and says how long to remember."""

    TYPE: ClassVar[str] = "dev.podhook.cancel.v1"
    pod_uid: PodUid
    deadline: Instant


class Renew(OfAttempt):
    """Give the guard of this attempt another `ttl_seconds` from now."""

    TYPE: ClassVar[str] = "dev.podhook.renew.v1"
    ttl_seconds: Seconds


class Release(OfAttempt):
    """The guard is no longer needed. `deadline` is the trigger's."""

    TYPE: ClassVar[str] = "dev.podhook.release.v1"
    pod_uid: PodUid
    deadline: Instant


class Query(Message):
    """What do you know of this run (or of this attempt)? Answered by a report on the query's own run topic.

    Without a run: what were your latest attempts? At most `limit` of them are told, newest first.

    `settle` asks for an answer that stays true: an attempt that was never seen gets a tombstone first. It
    needs the attempt's pod uid, issued_at and deadline, because only they tell the agent whether its memory
    reaches that far.
    """

    TYPE: ClassVar[str] = "dev.podhook.query.v1"

    query_id: Uuid
    coordinator: Level
    run_id: Uuid | None = None
    attempt: Attempt | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED)] = MAX_LISTED
    settle: bool = False
    pod_uid: PodUid | None = None
    issued_at: Instant | None = None
    deadline: Instant | None = None

    @model_validator(mode="after")
    def _settles_one(self) -> Self:
        if self.settle and None in (self.run_id, self.attempt, self.pod_uid, self.issued_at, self.deadline):
            raise ValueError("a query that settles names run_id, attempt, pod_uid, issued_at and deadline")
        return self


class Reply(OfAttempt):
    """Something an agent says about an attempt.

    `trigger_hash` is the SHA-256 (hexadecimal) of the trigger's CloudEvent as it arrived: an answer to other
    bytes under the same id concludes nothing.
    """

    namespace: KubernetesName
    pod: KubernetesName
    pod_uid: PodUid
    trigger_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Accepted(Reply):
    """It is in the journal."""

    TYPE: ClassVar[str] = "dev.podhook.accepted.v1"


class Ready(Reply):
    """All checks passed, nothing was done; waiting for `go`."""

    TYPE: ClassVar[str] = "dev.podhook.ready.v1"


class Started(Reply):
    """The action began."""

    TYPE: ClassVar[str] = "dev.podhook.started.v1"
    at: Instant


class Heartbeat(Reply):
    """It still runs."""

    TYPE: ClassVar[str] = "dev.podhook.heartbeat.v1"
    running_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Output(Reply):
    """A piece of a stream as it comes, for people who watch. May be lost; the outcome has what counts."""

    TYPE: ClassVar[str] = "dev.podhook.output.v1"
    stream: Literal["stdout", "stderr"]
    text: str
    encoding: Literal["utf-8", "base64"] = "utf-8"


class ErrorDetail(Message):
    """Why: a stable code (`agent.contract.errors.ErrorCode`) and a sentence for people.

    `rule` is the rule of the agent's policy that refused it, if one did.
    """

    code: Annotated[str, Field(min_length=1, max_length=64)]
    message: Annotated[str, Field(max_length=8192)]
    rule: Annotated[str, Field(max_length=256)] | None = None


class CapturedStream(Message):
    """What was kept of a stream. `text` is base64 where the bytes are not UTF-8."""

    text: str = ""
    encoding: Literal["utf-8", "base64"] = "utf-8"
    total_bytes: Annotated[int, Field(ge=0)] = 0
    truncated: bool = False


class Result(Message):
    """How an attempt ended, apart from who it was: the value an action comes back with.

    What was rejected ran nothing, unless `http_status` says that a request was answered before the rest was refused.
    """

    outcome: Outcome
    exit_code: int | None = None
    signal: Annotated[str, Field(max_length=32)] | None = None
    http_status: int | None = None
    stdout: CapturedStream = CapturedStream()
    stderr: CapturedStream = CapturedStream()
    duration_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    started_at: Instant | None = None
    error: ErrorDetail | None = None
    notes: list[Annotated[str, Field(max_length=2048)]] = []

    @classmethod
    def of(cls, outcome: Result) -> Result:
        """The result in an outcome, apart from who it was."""
        return Result.model_validate({name: getattr(outcome, name) for name in Result.model_fields})


class OutcomeMessage(Result, Reply):
    """How an attempt ended. Published again until the broker has it."""

    TYPE: ClassVar[str] = "dev.podhook.outcome.v1"


class GuardMessage(Reply):
    """What became of a guard."""

    TYPE: ClassVar[str] = "dev.podhook.guard.v1"
    state: GuardState
    error: ErrorDetail | None = None


class AttemptReport(Message):
    """One attempt as the journal has it; `outcome` once it has ended. `targets` is what its trigger said.

    In a list of the latest attempts there is no outcome, and `run_id` says which run it was of. `issued_at` and
    `deadline` are the trigger's, `changed_at` is when it came into its state, by the agent's clock. `key_id` is the
    thumbprint of the key that signed its trigger; None if nobody did.
    """

    run_id: Uuid | None = None
    attempt: Attempt
    state: AttemptState
    trigger_hash: str
    name: str = ""
    targets: Targets | None = None
    issued_at: Instant | None = None
    deadline: Instant | None = None
    changed_at: Instant | None = None
    key_id: Annotated[str, Field(max_length=64)] | None = None
    outcome: OutcomeMessage | None = None


class Report(Message):
    """The answer to a query about `attempt` (None: the whole run). An empty list of attempts says: never seen.

    `query_hash` is the SHA-256 (hexadecimal) of the query's CloudEvent: an answer to another question is none.

    `tombstoned`, after a query that settles: the attempt never started here and can never start any more; with
    `tombstoned_for` that holds only for triggers signed by the key of this thumbprint, the one that asked.
    `cannot_tell` says why an empty list proves nothing: another pod's uid, a journal that does not reach that
    far. `clock` is the agent's wall clock when it answered.
    """

    TYPE: ClassVar[str] = "dev.podhook.report.v1"

    query_id: Uuid
    query_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    run_id: Uuid | None = None
    namespace: KubernetesName
    pod: KubernetesName
    pod_uid: PodUid
    attempt: Attempt | None = None
    attempts: list[AttemptReport]
    tombstoned: bool = False
    tombstoned_for: Annotated[str, Field(max_length=64)] | None = None
    cannot_tell: Annotated[str, Field(max_length=1024)] | None = None
    clock: Instant | None = None


class Owner(Message):
    """An ownerReference of the pod, or of one of its owners."""

    api_version: str
    kind: str
    name: str
    uid: str | None = None
    controller: bool | None = None


class Presence(Message):
    """Who is there. Retained; the will says the same with `state: offline`.

    `born_at` is the birth of the agent's journal: of two pods with one name, the later-born is the present.
    `clock` is the agent's wall clock when it said so. `problems` are sentences that need somebody's hands.
    """

    TYPE: ClassVar[str] = "dev.podhook.presence.v1"

    namespace: KubernetesName
    pod: KubernetesName
    pod_uid: PodUid
    state: Literal["online", "offline"]
    born_at: Instant
    clock: Instant
    version: str = ""
    started_at: Instant | None = None
    labels: dict[str, str] = {}
    containers: list[str] = []
    owners: list[Owner] = []
    unsigned: bool = False
    problems: list[str] = []


COMMANDS: tuple[type[Message], ...] = (Trigger, Go, Cancel, Renew, Release, Query)
REPLIES: tuple[type[Message], ...] = (
    Accepted,
    Ready,
    Started,
    Heartbeat,
    Output,
    OutcomeMessage,
    GuardMessage,
    Report,
)
_ALL: tuple[type[Message], ...] = (*COMMANDS, *REPLIES, Presence)
MESSAGES: dict[str, type[Message]] = {model.TYPE: model for model in _ALL}
