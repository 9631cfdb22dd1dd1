"""What people see of a run: a live table on a terminal, one line an event elsewhere, and the table of results."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.cli.exits import drawable, tell
from agent.contract.durations import format_duration
from agent.contract.messages import Result
from agent.contract.states import Outcome
from agent.coordinator import Picture, RunEvent, RunResult, Target

_STYLES = {
    Outcome.SUCCEEDED: "green",
    Outcome.FAILED: "red",
    Outcome.TIMED_OUT: "red",
    Outcome.REJECTED: "yellow",
    Outcome.CANCELLED: "yellow",
    Outcome.INTERRUPTED: "magenta",
    Outcome.UNREACHABLE: "yellow",
    Outcome.LOST: "magenta",
}
_YELLOW = ("cancelled", "not_started", "not_run", "incomplete", "not_found")
WIDTH_WITHOUT_TERMINAL = 200
#: More rows than this are counted, not drawn.
MAX_LIVE_ROWS = 30
#: Of more targets than this, steps on the way that are as they should be are not told one by one.
MANY_TARGETS = 50
_STEPS = frozenset({"triggered", "accepted", "ready", "go", "started"})
#: So many reasons of agents that could not be heard are told in words.
MAX_REASONS = 8


class ErrorConsole(Console):
    """Standard error. Rich's own, once nobody reads it, turns standard output to /dev/null and ends with code 1."""

    def __init__(self, *, width: int | None = None) -> None:
        super().__init__(stderr=True, width=width)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError again, for whoever writes."""
        raise BrokenPipeError


class RunView:
    """Watches one run. Everything goes to standard error, so standard output stays the result's."""

    def __init__(self, hook: str) -> None:
        self._hook = hook
        self._run_id = ""
        self._console = ErrorConsole()
        self._rows: dict[Target, tuple[str, str]] = {}
        self._begun = time.monotonic()
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = self._new_live() if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: RunEvent) -> None:
        """Take an event in."""
        self._run_id = event.run_id
        for target in event.targets:
            self._rows[target] = ("waiting", "")
        if event.target is not None:
            state = str(event.result.outcome) if event.result else event.kind
            passing = event.kind in ("asked", "dropped", "broker") or _is_heartbeat(event)
            if not passing or event.target not in self._rows:
                self._rows[event.target] = (state, event.text)
        if self._live is None:
            self._line(event)

    def _new_live(self) -> Live:
        return Live(
            console=self._console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            get_renderable=self._table,
        )

    def _line(self, event: RunEvent) -> None:
        if event.kind == "asked" or _is_heartbeat(event):
            return
        if event.kind in _STEPS and len(self._rows) > MANY_TARGETS:
            return
        what = str(event.result.outcome) if event.result else event.kind
        words = [f"{time.monotonic() - self._begun:7.3f}s", self._hook]
        if event.target is not None:
            words.append(str(event.target))
        words.append(what)
        if event.kind == "selected":
            words.append(f"{len(event.targets)} pod{'s' * (len(event.targets) != 1)} (run {event.run_id})")
        if event.attempt > 1:
            words.append(f"(attempt {event.attempt})")
        if event.text:
            words.append(f"- {event.text}")
        with contextlib.suppress(OSError):  # whoever read it may be gone; the run is not
            print(drawable(" ".join(words)), file=sys.stderr, flush=True)

    def _table(self) -> Table:
        table = Table(
            title=drawn(f"{self._hook}  {time.monotonic() - self._begun:.1f}s  run {self._run_id}"),
            box=box.SIMPLE,
            title_justify="left",
        )
        for column in ("POD", "STATE", ""):
            table.add_column(column, overflow="ellipsis", no_wrap=True)
        rows = list(self._rows.items())  # one step: it is drawn by a thread
        for target, (state, text) in sorted(rows)[:MAX_LIVE_ROWS]:
            table.add_row(drawn(str(target)), state_text(state), drawn(text))
        if len(rows) > MAX_LIVE_ROWS:
            ended = sum(state in set(Outcome) for _, (state, _) in rows)
            table.add_row(f"... {len(rows)} pods in all", f"{ended} ended", "")
        return table


def _is_heartbeat(event: RunEvent) -> bool:
    """Whether it says no more than that something still runs, as agents do every few seconds."""
    return event.kind == "running" and not event.text


def console_for_results() -> Console:
    """Standard output; in a file or a pipe lines are as long as they need to be, within reason."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH_WITHOUT_TERMINAL)


def print_result(run: RunResult, console: Console | None = None) -> None:
    """One hook's results as a table, and its verdict in a sentence, on standard output unless a console is given."""
    console = console or console_for_results()
    if run.targets:
        table = _targets_table("OUTCOME")
        for each in run.targets:
            said_by_agent = each.result.outcome not in (Outcome.UNREACHABLE, Outcome.LOST)
            verified = verified_text(run.verified) if said_by_agent else Text("-")
            table.add_row(*_cells(each.target, str(each.result.outcome), each.attempt, each.result, verified))
        console.print(table)
    for note in run.notes:
        console.print(drawn(f"note: {note}"), soft_wrap=True)
    console.print(
        Text.assemble(drawn(f"{run.hook}: "), state_text(str(run.verdict)), drawn(f" - {_sentence(run)}")),
        soft_wrap=True,
    )


def print_picture(picture: Picture) -> None:
    """What the agents know of a run: a table, who could not be heard, and what it amounts to, on standard output."""
    console = console_for_results()
    if picture.known:
        table = _targets_table("STATE")
        for each in picture.known:
            result = each.result.result if each.result else None
            verified = verified_text(picture.verified)
            table.add_row(*_cells(each.target, str(each.counts.state), each.counts.attempt, result, verified))
        console.print(table)
    unheard: dict[str, list[Target]] = {"did not answer": list(picture.silent), "offline": list(picture.offline)}
    for target, why in picture.blind:
        reason = f"cannot tell ({why})" if len(unheard) < MAX_REASONS else "cannot tell either"
        unheard.setdefault(reason, []).append(target)
    for what, who in unheard.items():
        if who:
            names = ", ".join(map(str, who[:MAX_LIVE_ROWS])) + (", ..." if len(who) > MAX_LIVE_ROWS else "")
            console.print(drawn(f"{what}: {names}"), soft_wrap=True)
    hook = f"{picture.hook or 'run'}: "
    console.print(
        Text.assemble(drawn(hook), state_text(str(picture.verdict)), drawn(f" - {_told(picture)}")), soft_wrap=True
    )


def _told(picture: Picture) -> str:
    if picture.aims is None:
        return f"no agent that answered knows run {picture.run_id}"
    counts = ", ".join(f"{count} {state}" for state, count in sorted(picture.states.items()))
    of = f"{counts} of {picture.aims.count} targets"
    if picture.aims.strategy == "ExecuteOnOne":
        of = f"{counts} (on one of {picture.aims.count} pods)"
    return f"{of} (run {picture.run_id})"


def runs_table(pictures: Iterable[Picture]) -> Table:
    """Runs, one a line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("RUN", "HOOK", "STARTED", "PODS", "VERDICT", "STATES"):
        table.add_column(column, overflow="fold", no_wrap=column == "RUN")
    for each in pictures:
        begun = each.issued_at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if each.issued_at else "-"
        count = each.aims.count if each.aims else "?"
        states = ", ".join(f"{number} {state}" for state, number in sorted(each.states.items()))
        pods = f"{len(each.known)}/{count}"
        table.add_row(each.run_id, drawn(each.hook), begun, pods, state_text(str(each.verdict)), states)
    return table


def _targets_table(what: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("POD", overflow="fold")
    table.add_column(what, no_wrap=True)
    table.add_column("VERIFIED", no_wrap=True)
    table.add_column("TIME", justify="right", no_wrap=True)
    table.add_column("DETAIL", overflow="fold")
    return table


def _cells(
    target: Target, state: str, attempt: int, result: Result | None, verified: Text
) -> tuple[Text, Text, Text, str, Text]:
    if result is None:
        return drawn(str(target)), state_text(state), verified, "-", Text(f"attempt {attempt}")
    time_taken = format_duration(result.duration_seconds) if result.started_at else "-"
    return drawn(str(target)), state_text(state), verified, time_taken, drawn(detail_of(result, attempt))


def verified_text(verified: bool) -> Text:
    """Whether an agent proved that it said so; without agent keys nobody could."""
    return Text("yes", style="green") if verified else Text("unverified", style="yellow")


def show(print_it: Callable[[], None]) -> None:
    """Write a result to standard output; if nobody reads any more, that must not decide anything else."""
    try:
        print_it()
    except (OSError, SystemExit, ValueError):
        tell("the results can no longer be written to standard output")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python's last flush must not fail either


def detail_of(result: Result, attempt: int = 1) -> str:
    """What is worth saying of an outcome in one cell: why, or the first lines that came out."""
    words = [f"attempt {attempt}"] if attempt > 1 else []
    if result.error is not None:
        words.append(result.error.message)
    elif result.http_status is not None:
        words.append(f"HTTP {result.http_status}")
    output = result.stderr if result.error is not None and result.stderr.text else result.stdout
    text = output.text.strip()
    if text and output.encoding == "utf-8":
        words.append(_short(text))
    words += [f"note: {note}" for note in result.notes]
    return "; ".join(words)


def _sentence(run: RunResult) -> str:
    if run.error is not None:
        return run.error.message
    parts = [f"{count} {outcome}" for outcome, count in run.targets_by_outcome().items()]
    return f"{', '.join(parts) or 'no pods'} in {format_duration(run.duration_seconds)} (run {run.run_id})"


def summary_of(runs: Iterable[RunResult]) -> str:
    """All verdicts in one sentence."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[str(run.verdict)] = counts.get(str(run.verdict), 0) + 1
    return ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in counts.items())


def drawn(text: str) -> Text:
    """Text as it stands: no markup of rich's, and nothing that steers a terminal."""
    return Text(drawable(text))


def state_text(state: str) -> Text:
    """An outcome, a verdict or another state in its colour."""
    try:
        return Text(state, style=_STYLES[Outcome(state)])
    except ValueError:
        return Text(state, style="yellow" if state in _YELLOW else "")


def _short(text: str, limit: int = 160) -> str:
    lines = " | ".join(line.strip() for line in text.splitlines() if line.strip())
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in lines)
    return printable if len(printable) <= limit else f"{printable[:limit]}..."
