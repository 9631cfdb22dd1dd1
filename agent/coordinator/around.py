"""What runs around a command, and what all of it comes to (SEMANTICS: When a hook runs). Pure: values in, values out.

An operation is the pre hooks and the command between them and the post hooks. It succeeded if every pre hook did and
the command ended with exit code 0; anything else is Failed, and post hooks get their turn all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from agent.contract.plans import Phase, PolicyName
from agent.contract.states import Outcome
from agent.coordinator.plan import PlannedHook, plain
from agent.coordinator.results import RunResult
from agent.coordinator.verdict import Ended, Verdict, never_started


class AroundExit(IntEnum):
    """What `podhook around` says to the shell when the command itself has no say. 1 to 4 may be the command's."""

    INVALID = 121
    PRE_HOOK = 122
    POST_HOOK = 123
    UNREACHABLE = 124
    INTERRUPTED = 125


#: A shell's exit codes for what could not be started (POSIX, section 2.8.2), and what it adds to a signal's number.
NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 126, 127, 128


class Kind(StrEnum):
    """What the operation is; it chooses the pair of lists."""

    BACKUP = "backup"
    RESTORE = "restore"

    @property
    def phases(self) -> tuple[Phase, Phase]:
        """What runs before, and what after."""
        if self is Kind.BACKUP:
            return Phase.PRE_BACKUP, Phase.POST_BACKUP
        return Phase.PRE_RESTORE, Phase.POST_RESTORE


class Pre(StrEnum):
    """How the way to the command ended."""

    PASSED = "passed"
    FAILED = "failed"
    STOPPED = "stopped"


class State(StrEnum):
    """What became of one hook."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_RUN = "not_run"


@dataclass(frozen=True, slots=True)
class CommandEnd:
    """How the command ended: an exit code, a signal's number, or why it could not be started (with a shell's code)."""

    exit_code: int | None = None
    signal: int | None = None
    error: str = ""
    seconds: float = 0.0

    @property
    def code(self) -> int:
        """As a shell has it."""
        if self.signal is not None:
            return BY_SIGNAL + self.signal
        return self.exit_code or 0


@dataclass(frozen=True, slots=True)
class HookEnd:
    """What became of one hook of the plan. `why` is for people: why it did not run, or did not succeed.

    `unreached` are pods that it was meant for and in which it did not succeed, although others had it.
    """

    hook: PlannedHook
    state: State
    why: str = ""
    run: RunResult | None = None
    unreached: tuple[str, ...] = ()


def operation_succeeded(pre: Pre, command: CommandEnd | None) -> bool:
    """Whether the operation as a whole succeeded. A command that was not run did not."""
    return pre is Pre.PASSED and command is not None and command.code == 0


def is_due(policy: PolicyName, kind: Kind, pre: Pre, *, succeeded: bool) -> bool:
    """Whether a post hook has its turn.

    After a failed preRestore hook only OnFailure: a migration must not touch a database that was never restored.
    """
    if kind is Kind.RESTORE and pre is not Pre.PASSED:
        return policy == "OnFailure"
    return policy == "Always" or (policy == "OnSuccess") == succeeded


def exit_code(
    pre: Pre, command: CommandEnd | None, posts: Collection[HookEnd], *, stopped: bool, warn_only: bool = False
) -> int:
    """What the shell hears.

    Args:
        pre: how the way to the command ended.
        command: how the command ended; None where it was not run.
        posts: every post hook.
        stopped: somebody ended post hooks before their time; what they came to says whether that was too early.
        warn_only: a post hook that failed is told, and does not decide.
    """
    if command is not None and command.code != 0:
        return command.code
    if pre is Pre.STOPPED:
        return AroundExit.INTERRUPTED
    if pre is Pre.FAILED or command is None:
        return AroundExit.PRE_HOOK
    if all(each.state in (State.SUCCEEDED, State.SKIPPED) for each in posts):
        return 0
    if stopped:
        return AroundExit.INTERRUPTED
    return 0 if warn_only else AroundExit.POST_HOOK


# -- which pods a hook touched


def touched(runs: Iterable[RunResult]) -> frozenset[tuple[str, str]]:
    """Pods, by (namespace, name), in which one of these runs did something, or may have."""
    return frozenset(
        each.target.key for run in runs for each in run.targets if not never_started(Ended.of(each.result))
    )


def reached(runs: Iterable[RunResult]) -> frozenset[tuple[str, str]]:
    """Pods in which one of these runs succeeded."""
    return frozenset(
        each.target.key for run in runs for each in run.targets if each.result.outcome is Outcome.SUCCEEDED
    )


def left_behind(pres: Iterable[HookEnd], posts: Sequence[HookEnd]) -> tuple[str, ...]:
    """Pods in which a pre hook did something and no post hook succeeded: what was frozen there may still be.

    Nobody, if the plan has no post hook for pods.
    """
    if not any(each.hook.in_pods for each in posts):
        return ()
    began = touched(each.run for each in pres if each.run is not None and each.hook.in_pods)
    ended = reached(each.run for each in posts if each.run is not None and each.hook.in_pods)
    return names(began - ended)


def names(keys: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Pods as people write them, in order."""
    return tuple(f"{namespace}/{pod}" for namespace, pod in sorted(keys))


def judged(hook: PlannedHook, run: RunResult, wanted: Collection[tuple[str, str]] = ()) -> HookEnd:
    """What became of a hook, by its run; `wanted` are pods in which it has to have succeeded."""
    short = frozenset(wanted) - reached([run]) | {each.key for each in run.missing if not hook.call.allow_missing}
    if run.verdict is not Verdict.SUCCEEDED:
        why = run.error.message if run.error is not None else _counts(run.targets_by_outcome())
        return HookEnd(hook, State.FAILED, f"{run.verdict}: {why}" if why else str(run.verdict), run, names(short))
    if short:
        gone = ", ".join(names(short)[:20])
        return HookEnd(hook, State.FAILED, f"succeeded, but not in {gone}: no live agent there", run, names(short))
    return HookEnd(hook, State.SUCCEEDED, "", run)


# -- what templates read


def error_text(
    pres: Iterable[HookEnd], command: CommandEnd | None, *, stopped_by: str = "", refused: bool = False
) -> str:
    """`Status.Error`: what failed, in our own words and of the plan's names; empty if nothing did.

    Templates put it into commands, so nothing that a hook or an agent wrote is in it.
    """
    failed = next((each for each in pres if each.state is State.FAILED), None)
    if stopped_by and command is None:
        text = f"stopped by {stopped_by} before the command ran"
    elif refused:
        text = "a hook could not begin, and nothing was run"
    elif failed is not None:
        text = f"{failed.hook.phase} hook {failed.hook.title} failed: {_of_run(failed.run)}"
    elif command is None or command.code == 0:
        return ""
    elif command.error:
        text = f"the command could not be started: exit code {command.code}"
    elif command.signal is not None:
        text = f"the command was ended by signal {command.signal}: exit code {command.code}"
    else:
        text = f"the command exited with code {command.code}"
    return plain(text)


def _of_run(run: RunResult | None) -> str:
    if run is None:
        return "not run"
    if not run.targets:
        return str(run.verdict)
    return _counts(run.targets_by_outcome())


def _counts(counts: dict[Outcome, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
