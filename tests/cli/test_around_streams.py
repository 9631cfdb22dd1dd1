"""Streams that are closed, readers that are gone, and reports that cannot be written: the thaw and the code stand."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from rich.console import Console

from agent.cli.reporting import AroundView, Reporter
from agent.cli.view import RunView
from agent.contract.errors import BadInput
from agent.coordinator.around import Kind
from agent.coordinator.operation import Record
from tests.cli.conftest import Cli
from tests.cli.test_around import OPERATOR, Stage

pytestmark = [pytest.mark.processes]
CODE = "import os, signal, sys\n{first}\nos.execv(sys.executable, [sys.executable, '-m', 'agent', *sys.argv[1:]])"


@pytest.fixture
def stage(tmp_path) -> Stage:
    """No broker: hooks run here."""
    return Stage(Cli("mqtt://127.0.0.1:9", "r", tmp_path), tmp_path)


@pytest.fixture
def plan(stage):
    pre = [stage.hook("freeze", stage.note("freeze"), executor=OPERATOR)]
    return stage.plan(pre, [stage.hook("thaw", stage.note("thaw"), executor=OPERATOR)])


def after(stage, first: str, *arguments: object, **more) -> subprocess.CompletedProcess[str]:
    """`podhook around` of a process that did `first`."""
    command = [sys.executable, "-c", CODE.format(first=first), "around", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.run(command, env=stage.cli.environment(), check=False, text=True, timeout=60, **streams)


@pytest.mark.parametrize("closed", [(2,), (0,), (0, 2), (0, 1, 2)])
def test_a_closed_stream_stays_closed_for_the_command_and_nothing_of_ours_gets_into_its_output(stage, plan, closed):
    out = stage.directory / "out"
    first = f"[os.close(each) for each in {closed}]"
    look = f"for n in 0 1 2; do [ -e /proc/$$/fd/$n ] || touch {stage.directory}/closed.$n; done; echo DUMP || true"
    with out.open("w") as stdout:
        done = after(stage, first, plan, "--", "sh", "-c", look, stdout=stdout)
    assert (done.returncode, stage.lines) == (0, ["freeze", "thaw"])
    assert out.read_text() == ("" if 1 in closed else "DUMP\n")
    assert {each.suffix for each in stage.directory.glob("closed.*")} == {f".{each}" for each in closed}


def test_a_reader_of_standard_error_that_is_gone_decides_nothing(stage, plan):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as broken:
        done = after(stage, "", plan, "--", "echo", "DUMP", stderr=broken)
    assert (done.returncode, done.stdout, stage.lines) == (0, "DUMP\n", ["freeze", "thaw"])


def test_sigchld_that_was_ignored_before_us_does_not_hide_how_the_command_ended(stage):
    plan = stage.plan([], stage.by_policy())
    done = after(stage, "signal.signal(signal.SIGCHLD, signal.SIG_IGN)", plan, "--", "sh", "-c", "exit 7")
    assert (done.returncode, stage.lines) == (7, ["Always", "OnFailure"]), done.stderr


def test_a_report_into_a_fifo_is_whole_and_its_reader_may_be_gone(stage, plan):
    fifo = stage.directory / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True) as reader:
        done = after(stage, "", plan, "--report", fifo, "--", "true")
        assert done.returncode == 0, done.stderr
        assert json.loads(reader.stdout.read())["exit_code"] == 0
    with subprocess.Popen(["head", "-c", "0", fifo]):
        assert after(stage, "", plan, "--report", fifo, "--", "true").returncode == 0


def test_a_report_nobody_reads_is_waited_for_with_a_bound(stage, plan, monkeypatch, capsys):
    monkeypatch.setattr("agent.cli.reporting._READER_SECONDS", 0.01)
    reading, writing = os.pipe()
    reporter = Reporter(stage.directory / "pipe", "p" * 200_000, "backup")
    reporter._held = writing
    os.set_blocking(writing, False)
    reporter.nothing_ran(121, "invalid", "no")
    assert "nobody read it for 0.01 s" in capsys.readouterr().err
    os.close(reading)
    os.close(writing)


def test_links_that_lead_to_each_other_are_no_report(stage):
    loop = stage.directory / "loop"
    loop.symlink_to(loop)
    with pytest.raises(BadInput, match="--report: cannot write"):
        Reporter(loop, "p", "backup").check()


def test_a_report_that_raises_ends_no_operation(capsys):
    class Broken(Reporter):
        def write(self, record):
            raise PermissionError(13, "Permission denied", "/report")

    AroundView(Broken(None, "p", "backup")).changed(None)
    assert "the report cannot be written: PermissionError" in capsys.readouterr().err


def test_without_a_terminal_sigint_is_the_shells_to_ignore(stage):
    """`nohup`, and a background job of a script: what was ignored before us is not ours to hear."""
    plan = stage.plan([], stage.by_policy())
    shell = f"kill -INT $PPID; {stage.note('command')}"
    done = after(stage, "signal.signal(signal.SIGINT, signal.SIG_IGN)", plan, "--", "sh", "-c", shell)
    assert (done.returncode, stage.lines) == (0, ["command", "Always", "OnSuccess"])
    assert signal.Signals.SIGINT.name not in done.stderr


def test_names_and_messages_steer_no_terminal_and_are_no_markup(stage):
    """They come from clusters, plans and agents."""
    name = "\x1b]0;mine\x07\x1b[2J[/red]"
    plan = stage.plan([], [stage.hook("x", "exit 3", executor=OPERATOR) | {"name": name}])
    done = after(stage, "", plan, "--", "true")
    assert done.returncode == 123
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr
    assert r"\x1b]0;mine\x07\x1b[2J[/red] operator failed" in done.stderr


def test_the_live_table_of_a_hook_whose_name_is_markup_is_drawn():
    view = RunView("[/red]\x1b[2J")
    console = Console(file=io.StringIO(), width=100)
    console.print(view._table())
    assert r"[/red]\x1b[2J" in console.file.getvalue()


def test_an_interrupt_after_the_end_does_not_say_that_nothing_ran(stage, capsys):
    """The signal handlers are gone before the interpreter is, and so may be the broker's connection."""
    file = stage.directory / "report.json"
    reporter = Reporter(file, "p", "backup")
    reporter.check()
    record = Record(Kind.BACKUP, "dump", datetime.now(UTC), stage="ended", exit_code=7)
    reporter.write(record)
    assert reporter.nothing_ran(125, "interrupted", "interrupted before anything ran") == 7
    assert json.loads(file.read_text())["exit_code"] == 7
    assert "nothing ran" not in capsys.readouterr().err
