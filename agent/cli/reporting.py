"""What people and programs see of `podhook around`: events and a summary on standard error, and a report as JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from agent.cli.exits import tell
from agent.cli.view import WIDTH_WITHOUT_TERMINAL, ErrorConsole, RunView, drawn, print_result, state_text
from agent.contract.durations import format_duration
from agent.contract.errors import BadInput
from agent.coordinator.around import HookEnd, Pre, State
from agent.coordinator.operation import Record
from agent.coordinator.plan import PlannedHook
from agent.coordinator.report import report_of, report_of_nothing
from agent.coordinator.results import OnEvent, ignore

#: A pipe that is full is not waited for longer than this: its reader may have been stopped.
_READER_SECONDS = 10


class Reporter:
    """Writes the report, if one is wanted. Each time all of it, in one step: who reads sees the old one or the new.

    `decided` is the exit code once the operation has ended: what fails after that changes neither. A pipe or a device
    cannot be replaced: it is held from `check` on, and gets the last report only.
    """

    def __init__(self, file: Path | None, plan: str, operation: str) -> None:
        self._file = file
        self._held: int | None = None
        self._operation = operation
        self.plan = plan
        self.namespace = ""
        self.decided: int | None = None

    def check(self) -> None:
        """Whether it can be written, before anything is run. Raises BadInput."""
        if self._file is None:
            return
        file = self._file
        try:
            if file.is_file() or not file.exists():
                with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}."):
                    pass
                self._file = file.resolve()
            else:
                self._held = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)  # a FIFO: waits for its reader
                os.set_blocking(self._held, False)
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
            self._file = None
            raise BadInput(f"--report: cannot write {file}: {getattr(error, 'strerror', None) or error}") from error

    def write(self, record: Record) -> None:
        """The report as far as it has come; a disk that is full decides nothing."""
        if record.stage == "ended":
            self.decided = record.exit_code
        if self._held is None or record.stage == "ended":
            self._write(report_of(record, plan=self.plan, namespace=self.namespace))

    def nothing_ran(self, exit_code: int, code: str, message: str) -> int:
        """Say why nothing was begun, there and to people; returns the exit code."""
        if self.decided is not None:
            tell("what came after the end of the operation changes nothing about it")
            return self.decided
        tell(message)
        self._write(
            report_of_nothing(
                plan=self.plan, operation=self._operation, code=code, message=message, exit_code=exit_code
            )
        )
        return exit_code

    def _write(self, report: dict[str, Any]) -> None:
        if self._file is None:
            return
        data = (json.dumps(report, indent=2) + "\n").encode()
        try:
            if self._held is None:
                _replace(self._file, data)
            else:
                _feed(self._held, data)
        except OSError as error:
            tell(f"the report cannot be written to {self._file}: {error.strerror}")


def _feed(descriptor: int, data: bytes) -> None:
    """Write all of it to somebody who may read slowly, or not at all: nobody waits long for that. Raises OSError."""
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    while data:
        if not ready.poll(_READER_SECONDS * 1000):
            raise TimeoutError(errno.ETIMEDOUT, f"nobody read it for {_READER_SECONDS} s")
        data = data[os.write(descriptor, data) :]


def _replace(file: Path, data: bytes) -> None:
    """Put `data` in the place of what is there, on disk before it counts; readable as any new file is."""
    mask = os.umask(0)
    os.umask(mask)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fchmod(opened.fileno(), 0o666 & ~mask)
            os.fsync(opened.fileno())
        Path(name).replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


class AroundView:
    """Shows an operation; nothing that goes wrong with showing it is let through."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    @contextlib.contextmanager
    def hook(self, hook: PlannedHook) -> Iterator[OnEvent]:
        """A hook begins: its events, live on a terminal."""
        view = RunView(hook.title)
        shown = False
        with contextlib.suppress(Exception):  # a terminal that is gone
            view.__enter__()
            shown = True
        try:
            yield view if shown else ignore
        finally:
            with contextlib.suppress(Exception):
                view.__exit__()

    def say(self, text: str) -> None:
        """A sentence for people."""
        tell(text)

    def changed(self, record: Record) -> None:
        """The record says more than before. A report that cannot be written must keep nobody frozen."""
        try:
            self._reporter.write(record)
        except Exception as error:  # noqa: BLE001
            tell(f"the report cannot be written: {type(error).__name__}: {error}")


def summary(record: Record) -> None:
    """What happened, on standard error: each hook that did not succeed by its pods, then all of it, a line each."""
    with contextlib.suppress(OSError):
        console = ErrorConsole()
        if not console.is_terminal:
            console = ErrorConsole(width=WIDTH_WITHOUT_TERMINAL)
        for end in (*record.pres, *record.posts):
            if end.run is not None and end.state is not State.SUCCEEDED:
                print_result(end.run, console)
        console.print(_table(record))
    if record.unreached:
        pods = ", ".join(record.unreached)
        tell(
            f"no post hook succeeded in {pods}: what a pre hook froze there may still be frozen; "
            f"`podhook run PLAN --phase {record.kind.phases[1]} --status-phase Failed` runs the post hooks again"
        )
    tell(_sentence(record))


def _table(record: Record) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("STEP", "", "STATE", "TIME", "DETAIL"):
        table.add_column(column, overflow="fold", no_wrap=column in ("STEP", "STATE"))
    for end in record.pres:
        table.add_row(*_row(end))
    command = record.command
    state = "not_run" if command is None else "succeeded" if command.code == 0 else "failed"
    seconds = format_duration(command.seconds) if command is not None and not command.error else "-"
    detail = "" if command is None else command.error or f"exit code {command.code}"
    table.add_row("command", drawn(record.program), state_text(state), seconds, drawn(detail))
    for end in record.posts:
        table.add_row(*_row(end))
    return table


def _row(end: HookEnd) -> tuple[str, Text, Text, str, Text]:
    seconds = format_duration(end.run.duration_seconds) if end.run is not None else "-"
    return str(end.hook.phase), drawn(end.hook.title), state_text(str(end.state)), seconds, drawn(end.why)


def _sentence(record: Record) -> str:
    code = record.exit_code
    failed = [end for end in record.posts if end.state not in (State.SUCCEEDED, State.SKIPPED)]
    posts = f"{len(failed)} of {len(record.posts)} post hooks did not succeed" if failed else "post hooks are done"
    if record.command is not None:
        own = record.command.error or f"the command ended with exit code {record.command.code}"
        return f"{own}; {posts} (exit code {code})"
    why = "stopped" if record.pre is Pre.STOPPED else "failed"
    return f"{why} before the command, which did not run; {posts} (exit code {code})"
