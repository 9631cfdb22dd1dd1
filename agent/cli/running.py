"""Running calls one after the other and showing what comes of them: what `podhook run` and the demo share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cli import options
from agent.cli.exits import Exit, tell

if TYPE_CHECKING:
    from agent.coordinator import Coordinator, HookCall, RunResult

#: What ends a run: Ctrl-C, a polite end, a terminal that is gone.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Executed:
    """What came of the hooks that were run, and whether somebody stopped us in the middle."""

    runs: tuple[RunResult, ...]
    interrupted: bool


async def execute(
    connect: Callable[[], Coordinator],
    calls: Sequence[HookCall],
    *,
    output: options.Format,
    keep_going: bool,
    quiet: bool = False,
    before: Callable[[HookCall], None] | None = None,
) -> Executed:
    """Run calls one after the other, show them, and return their results. Ctrl-C and SIGTERM cancel the present one.

    The second Ctrl-C waits no longer to hear how it ended. `quiet` shows no events, only results. `before` is called
    before each call. Raises LinkDown, BrokerRefused, InvalidKey.
    """
    from agent.coordinator import Verdict

    runs: list[RunResult] = []
    async with connect() as coordinator:
        with stopped_by_signals(coordinator) as stops:
            for call in calls:
                if before is not None:
                    before(call)
                run = await _one(coordinator, call, output, quiet=quiet)
                runs.append(run)
                if stops or (run.verdict is not Verdict.SUCCEEDED and not keep_going):
                    break
    left = len(calls) - len(runs)
    if left and not quiet:
        hint = "" if stops else "; --keep-going runs them all the same"
        tell(f"{left} more hook{'s' * (left > 1)} not run{hint}")
    return Executed(tuple(runs), bool(stops))


@contextlib.contextmanager
def stopped_by_signals(coordinator: Coordinator) -> Iterator[list[int]]:
    """Signals cancel what runs; the second waits no longer. Yields the signals that came so far."""
    loop = asyncio.get_running_loop()
    came: list[int] = []

    def interrupt(number: int) -> None:
        came.append(number)
        if len(came) == 1:
            coordinator.cancel()
            tell("stopping what was started; each pod has 10 s to say how it ended (again: do not wait)")
        else:
            coordinator.cancel(within_seconds=0)
            tell("waiting no longer")

    stopping = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup stays nohup
    for number in stopping:
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield came
    finally:
        for number in stopping:
            loop.remove_signal_handler(number)


def exit_code(executed: Executed) -> Exit:
    """The worst of all verdicts, as the shell hears it; whoever interrupts hears that."""
    from agent.coordinator import Verdict

    verdicts = [run.verdict for run in executed.runs]
    if executed.interrupted:
        return Exit.INTERRUPTED
    if Verdict.FAILED in verdicts:
        return Exit.FAILED
    if not verdicts or all(verdict is Verdict.SUCCEEDED for verdict in verdicts):
        return Exit.SUCCEEDED
    nothing_ran = {Verdict.SUCCEEDED, Verdict.NOT_STARTED, Verdict.NOT_FOUND}
    return Exit.NO_TARGETS if nothing_ran.issuperset(verdicts) else Exit.FAILED


async def _one(coordinator: Coordinator, call: HookCall, output: options.Format, *, quiet: bool) -> RunResult:
    from agent.cli.view import RunView

    if quiet:
        run = await coordinator.run(call)
    else:
        with RunView(call.hook.name) as view:
            run = await coordinator.run(call, on_event=view)
    show_run(run, output)
    return run


def show_run(run: RunResult, output: options.Format) -> None:
    from agent.cli.view import print_result, show

    def write() -> None:
        if output is options.Format.JSON:
            print(json.dumps(run.to_json()), flush=True)
        else:
            print_result(run)

    show(write)


def params_of(given: list[str]) -> dict[str, str]:
    """Parameters as `--param NAME=VALUE` gives them. Raises BadInput."""
    from agent.contract.errors import BadInput

    params = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise BadInput(f"--param {each!r}: write NAME=VALUE")
        params[name] = value
    return params
