"""`podhook around` as a CronJob meets it: which hooks ran, what the shell hears, and who got which signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.brokers import Mosquitto, free_port, poll
from tests.cli.conftest import Cli, Command, script

pytestmark = [pytest.mark.broker, pytest.mark.processes]

OPERATOR = {"type": "Operator"}
POLICIES = ("Always", "OnSuccess", "OnFailure")


@dataclass
class Stage:
    """A directory with a plan in it, and the diary that its hooks and its command write."""

    cli: Cli
    directory: Path
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def diary(self) -> Path:
        return self.directory / "diary"

    @property
    def lines(self) -> list[str]:
        return self.diary.read_text().splitlines() if self.diary.exists() else []

    def note(self, text: str) -> str:
        """The shell command that writes a line."""
        return f'echo "{text}" >> {self.diary}'

    def hook(self, name: str, shell: str, **more) -> dict:
        """An entry of a list whose template is a file of its own; by default it runs in both pods."""
        executor = more.pop("executor", None)
        (self.directory / f"{name}.yaml").write_text(json.dumps(script(shell, executor)))
        return {"name": name, "file": f"{name}.yaml", "timeout": "30s", **more}

    def plan(self, pre: list[dict], post: list[dict], kind: str = "Backup", **more) -> Path:
        path = self.directory / "plan.yaml"
        path.write_text(json.dumps({f"pre{kind}": pre, f"post{kind}": post, **more}))
        return path

    def by_policy(self) -> list[dict]:
        """One post hook for each policy, here, so that each is one line."""
        return [self.hook(p, self.note(p), executor=OPERATOR, executionPolicy=p) for p in POLICIES]

    def run(self, *arguments: object, within_seconds: float = 60, **more) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "agent", "around", *map(str, arguments)],
            env=self.cli.environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=within_seconds,
            **more,
        )

    def start(self, *arguments: object):
        return self.cli.start("around", *arguments)

    def until(self, line: str, times: int = 1) -> None:
        poll(lambda: self.lines.count(line) >= times, f"{line} in the diary", 20)


@pytest.fixture
def stage(shared, tmp_path) -> Stage:
    return Stage(shared, tmp_path)


# -- the matrix: what happens, and which hooks run and what the shell hears

SLOW = "sleep 600 & wait"

#: What happens -> (pre hook's shell, the command, the signal and the line after which it comes) -> (ran, exit code).
#: {name} notes a line. Every scenario has a post hook of each policy.
MATRIX = {
    "pre ok": (("{pre}", "{command}", None), ("pre pre command Always OnSuccess", 0)),
    "pre fails": (("{pre}; exit 3", "{command}", None), ("pre pre Always OnFailure", 122)),
    "command fails": (("{pre}", "{command}; exit 7", None), ("pre pre command Always OnFailure", 7)),
    "command killed": (("{pre}", "{command}; kill -KILL $$", None), ("pre pre command Always OnFailure", 137)),
    "command not found": (("{pre}", None, None), ("pre pre Always OnFailure", 127)),
    "coordinator SIGTERM in the pre hook": (
        ("{pre}; " + SLOW, "{command}", (signal.SIGTERM, "pre")),
        ("pre pre Always OnFailure", 125),
    ),
    "coordinator SIGINT in the pre hook": (
        ("{pre}; " + SLOW, "{command}", (signal.SIGINT, "pre")),
        ("pre pre Always OnFailure", 125),
    ),
    "coordinator SIGTERM in the command": (
        ("{pre}", "{command}; " + SLOW, (signal.SIGTERM, "command")),
        ("pre pre command Always OnFailure", 143),
    ),
    "coordinator SIGHUP in the command": (
        ("{pre}", "{command}; " + SLOW, (signal.SIGHUP, "command")),
        ("pre pre command Always OnFailure", 129),
    ),
    "coordinator SIGTERM, and the command ends well": (
        ("{pre}", "trap 'exit 0' TERM; {command}; " + SLOW, (signal.SIGTERM, "command")),
        ("pre pre command Always OnSuccess", 0),
    ),
    "coordinator SIGKILL in the command": (
        ("{pre}", "{command}; exec sleep 3", (signal.SIGKILL, "command")),
        ("pre pre command", -signal.SIGKILL),
    ),
    "coordinator SIGKILL in the pre hook": (
        ("{pre}; sleep 3", "{command}", (signal.SIGKILL, "pre")),
        ("pre pre", -signal.SIGKILL),
    ),
}


@pytest.mark.parametrize("name", MATRIX)
def test_the_matrix(stage, name):
    (pre, command, sent), (ran, code) = MATRIX[name]
    pre = pre.format(pre=stage.note("pre"))
    argv = ["sh", "-c", command.format(command=stage.note("command"))] if command else ["/none/such"]
    plan = stage.plan([stage.hook("pre", pre)], stage.by_policy())
    report = stage.directory / "report.json"
    running = stage.start(plan, "--report", report, "--", *argv)
    if sent is not None:
        number, line = sent
        stage.until(line, 2 if line == "pre" else 1)
        running.process.send_signal(number)
    assert running.wait(60) == code, "".join(running.err)
    assert sorted(stage.lines) == sorted(ran.split()), "".join(running.err)
    written = json.loads(report.read_text())
    if code >= 0:
        assert (written["stage"], written["exit_code"]) == ("ended", code)
        succeeded = "OnSuccess" in ran
        assert written["status"]["phase"] == ("Succeeded" if succeeded else "Failed")
        assert [each["state"] for each in written["hooks"] if each["list"] == "postBackup"] == [
            "succeeded",
            "succeeded" if succeeded else "skipped",
            "skipped" if succeeded else "succeeded",
        ]
    else:  # the report is as old as the last thing that happened: it says where everything stood
        stage_then = "pre" if "command" not in ran else "command"
        assert (written["stage"], written["exit_code"]) == (stage_then, None)


@pytest.mark.parametrize(
    ("pre", "command", "ran", "code"),
    [
        ("true", "true", "Always OnSuccess", 0),
        ("true", "exit 5", "Always OnFailure", 5),
        ("false", "true", "OnFailure", 122),
    ],
)
def test_after_a_failed_pre_restore_hook_only_on_failure_hooks_run(stage, pre, command, ran, code):
    """A migration must not touch a database that was never restored."""
    plan = stage.plan([stage.hook("pre", pre)], stage.by_policy(), kind="Restore")
    done = stage.run(plan, "--phase", "restore", "--", "sh", "-c", command)
    assert (done.returncode, stage.lines) == (code, ran.split()), done.stderr


def test_a_post_hook_that_fails_stops_neither_the_next_nor_a_failing_commands_own_code(stage):
    post = [stage.hook("broken", "exit 9"), stage.hook("thaw", stage.note("thaw"))]
    plan = stage.plan([], post)
    ends = {("true", ()): 123, ("true", ("--hook-failure", "warn")): 0, ("exit 4", ()): 4}
    for (command, flags), code in ends.items():
        stage.diary.unlink(missing_ok=True)
        done = stage.run(plan, *flags, "--", "sh", "-c", command)
        assert (done.returncode, stage.lines) == (code, ["thaw", "thaw"]), done.stderr
        assert "1 of 2 post hooks did not succeed" in done.stderr


def test_the_first_pre_hook_that_fails_ends_the_way_to_the_command(stage):
    pre = [stage.hook("one", stage.note("one")), stage.hook("two", "exit 1"), stage.hook("three", stage.note("three"))]
    plan = stage.plan(pre, [stage.hook("thaw", stage.note("thaw {{ .Status.Phase }}: {{ .Status.Error }}"))])
    done = stage.run(plan, "--", "touch", stage.directory / "ran")
    assert done.returncode == 122
    assert stage.lines == ["one"] * 2 + ["thaw Failed: preBackup hook two failed: 2 failed"] * 2
    assert not (stage.directory / "ran").exists()


# -- what is found before anything runs


def test_121_names_every_problem_of_the_plan_and_nothing_runs(stage):
    plan = stage.plan(
        [stage.hook("good", stage.note("good")), {"hookTemplate": {"name": "far"}}, {"file": "none.yaml"}],
        [stage.hook("post", "echo {{ .Status.Phaze | nonsense }}"), stage.hook("need", "echo ${X}", params={"Y": 1})],
    )
    report = stage.directory / "report.json"
    done = stage.run(plan, "--report", report, "--", "touch", stage.directory / "ran")
    assert done.returncode == 121
    for problem in (
        "preBackup[1].hookTemplate: 'far' is looked up in a cluster, and none is asked",
        "preBackup[2].file: cannot read",
        "postBackup[0].file post.yaml: action.exec.command[2]",
        "postBackup[1]: param Y: is neither declared nor used",
    ):
        assert problem in done.stderr
    assert not (stage.directory / "ran").exists()
    assert stage.lines == []
    written = json.loads(report.read_text())
    assert (written["exit_code"], written["error"]["code"], written["hooks"]) == (121, "invalid_plan", [])


@pytest.mark.parametrize(
    "arguments",
    [["--nope"], [], ["--phase", "preBackup", "--", "true"], ["--timeout", "5", "--", "true"], ["--", "true"]],
)
def test_121_for_usage(stage, arguments):
    path = stage.plan([], [stage.hook("thaw", "true")], kind="Restore")
    done = stage.run(path, *arguments)
    assert done.returncode == 121, done.stderr
    assert "Traceback" not in done.stderr


def test_121_where_the_report_cannot_be_written(stage):
    plan = stage.plan([stage.hook("pre", stage.note("pre"))], [])
    done = stage.run(plan, "--report", stage.directory / "none" / "report.json", "--", "true")
    assert done.returncode == 121
    assert "--report: cannot write" in done.stderr
    assert stage.lines == []


def test_122_where_a_thaw_would_find_nobody_and_nothing_is_frozen(stage):
    nobody = {"type": "Pod", "pod": {"selector": "app=bd", "strategy": "ExecuteOnAll"}}
    thaw = stage.hook("thaw", "true", executor=nobody)
    alarm = stage.hook("alarm", stage.note("alarm {{ .Status.Error }}"), executor=OPERATOR, executionPolicy="OnFailure")
    plan = stage.plan([stage.hook("freeze", stage.note("freeze"))], [thaw, alarm])
    done = stage.run(plan, "--", "true")
    assert (done.returncode, stage.lines) == (122, ["alarm a hook could not begin, and nothing was run"])
    assert "postBackup[0] thaw: selector 'app=bd' in namespace default matches no agent" in done.stderr


def test_124_where_nobody_listens_and_no_broker_is_needed_for_hooks_of_ones_own(stage):
    nowhere = ("--broker", f"mqtt://127.0.0.1:{free_port()}")
    plan = stage.plan([stage.hook("pre", "true")], stage.by_policy())
    done = stage.run(plan, *nowhere, "--", "touch", stage.directory / "ran")
    assert (done.returncode, stage.lines) == (124, [])
    assert "nothing ran" in done.stderr
    assert not (stage.directory / "ran").exists()
    plan = stage.plan([stage.hook("pre", "true", executor=OPERATOR)], stage.by_policy())
    assert stage.run(plan, *nowhere, "--", "true").returncode == 0


# -- the command's streams, descriptors and environment


def test_streams_are_the_commands_own(stage):
    plan = stage.plan([stage.hook("pre", "echo noise")], [stage.hook("post", "echo noise")])
    done = stage.run(plan, "--", "sh", "-c", "cat; printf 'no newline'; echo oops >&2", input="a\0b\n")
    assert (done.returncode, done.stdout) == (0, "a\0b\nno newline")
    assert "oops\n" in done.stderr


def test_a_descriptor_that_was_handed_in_reaches_the_command(stage):
    """restic --password-file <(...) names one of whoever called us."""
    plan = stage.plan([], [stage.hook("post", "true", executor=OPERATOR)])
    reading, writing = os.pipe()
    os.write(writing, b"s3cret\n")
    os.close(writing)
    try:
        done = stage.run(plan, "--", "cat", f"/dev/fd/{reading}", pass_fds=[reading])
    finally:
        os.close(reading)
    assert (done.returncode, done.stdout) == (0, "s3cret\n"), done.stderr


def test_options_of_the_command_are_its_own(stage):
    plan = stage.plan([], [stage.hook("post", "true", executor=OPERATOR)])
    done = stage.run(plan, "--", "printf", "%s|", "--phase", "--", "-n", "--help")
    assert (done.returncode, done.stdout) == (0, "--phase|--|-n|--help|")


def test_a_reader_that_is_gone_ends_the_command_by_sigpipe(stage):
    """Python ignores SIGPIPE; what it starts must not."""
    plan = stage.plan([], stage.by_policy())
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as broken:
        done = subprocess.run(
            [sys.executable, "-m", "agent", "around", plan, "--", "sh", "-c", "yes"],
            env=stage.cli.environment(),
            check=False,
            stdout=broken,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 128 + signal.SIGPIPE, done.stderr
    assert stage.lines == ["Always", "OnFailure"]


# -- signals


def test_a_signal_reaches_all_of_a_pipeline_and_post_hooks_begin_when_all_of_it_is_gone(stage):
    """Of `sh -c 'dump | gzip'` only sh is our child: a dump that goes on beside a thaw is not consistent."""
    one, two = stage.directory / "one", stage.directory / "two"
    deaf = f"trap '' TERM; echo $$ > {two}; while :; do sleep 600; done"
    (stage.directory / "dump").write_text(f"echo $$ > {one}; exec sleep 600\n")
    (stage.directory / "gzip").write_text(deaf + "\n")
    lives = f"p=$(cat $f); [ -e /proc/$p ] && ! grep -q '^State:.Z' /proc/$p/status && {stage.note('alive')}"
    post = f"for f in {one} {two}; do {lives}; done; {stage.note('post')}"
    plan = stage.plan([], [stage.hook("post", post, executor=OPERATOR)])
    pipeline = f"sh {stage.directory}/dump | sh {stage.directory}/gzip; true"
    running = stage.start(plan, "--grace", "500ms", "--", "sh", "-c", pipeline)
    poll(lambda: all(each.exists() and each.read_text() for each in (one, two)), "both run", 20)
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143
    assert stage.lines == ["post"]


def test_what_ignores_sigterm_is_killed_after_its_grace(stage):
    plan = stage.plan([], stage.by_policy())
    running = stage.start(plan, "--grace", "300ms", "--", "sh", "-c", f"trap '' TERM; {stage.note('command')}; {SLOW}")
    stage.until("command")
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(60) == 137
    assert stage.lines == ["command", "Always", "OnFailure"]
    assert "did not end within 300ms (--grace): killing it" in "".join(running.err)


def test_the_third_signal_kills_the_command(stage):
    plan = stage.plan([], stage.by_policy())
    text = f"trap '{stage.note('got')}' INT; {stage.note('command')}; while :; do sleep 600 & wait; done"
    running = stage.start(plan, "--", "sh", "-c", text)
    stage.until("command")
    for count in (1, 2):
        running.interrupt()
        stage.until("got", count)
    running.interrupt()
    assert running.wait(60) == 137
    assert stage.lines == ["command", "got", "got", "Always", "OnFailure"]


def test_sigusr1_is_the_commands_affair_and_ends_nobody_else(stage):
    """restic and dd tell their progress on it."""
    plan = stage.plan([], [stage.hook("post", f"{stage.note('post')}; sleep 1", executor=OPERATOR)])
    text = f"trap '{stage.note('usr1')}; kill $!' USR1; {stage.note('command')}; {SLOW}; exit 0"
    running = stage.start(plan, "--", "sh", "-c", text)
    stage.until("command")
    running.process.send_signal(signal.SIGUSR1)
    stage.until("post")
    running.process.send_signal(signal.SIGUSR1)
    assert running.wait(60) == 0, "".join(running.err)
    assert stage.lines == ["command", "usr1", "post"]


def test_while_post_hooks_run_the_first_signal_ends_nothing(stage):
    slow = f"{stage.note('begun')}; while [ ! -e {stage.directory}/go ]; do sleep 0.05; done; {stage.note('thawed')}"
    plan = stage.plan([stage.hook("freeze", "true")], [stage.hook("thaw", slow), *stage.by_policy()])
    running = stage.start(plan, "--", "true")
    stage.until("begun", 2)
    running.process.send_signal(signal.SIGTERM)
    poll(lambda: any("post hooks run to their end all the same" in line for line in running.err), "it says so")
    (stage.directory / "go").touch()
    assert running.wait(60) == 0, "".join(running.err)
    assert stage.lines == ["begun"] * 2 + ["thawed"] * 2 + ["Always", "OnSuccess"]


def test_the_second_ends_the_present_post_hook_and_the_next_still_runs(stage):
    plan = stage.plan([], [stage.hook("hangs", f"{stage.note('begun')}; {SLOW}"), *stage.by_policy()])
    running = stage.start(plan, "--", "true")
    stage.until("begun", 2)
    for said in ("post hooks run to their end", "ending the present post hook"):
        running.interrupt()
        poll(lambda said=said: any(said in line for line in running.err), said)
        time.sleep(0.6)  # what comes within half a second is one signal
    assert running.wait(60) == 125
    assert stage.lines == ["begun"] * 2 + ["Always", "OnSuccess"]


def test_the_third_runs_no_further_post_hook_and_says_what_may_be_frozen(stage):
    hangs = f"trap '' TERM; {stage.note('begun')}; while [ ! -e {stage.directory}/go ]; do sleep 0.05; done"
    plan = stage.plan([stage.hook("freeze", "true")], [stage.hook("thaw", hangs), *stage.by_policy()])
    report = stage.directory / "report.json"
    running = stage.start(plan, "--report", report, "--", "true")
    stage.until("begun", 2)
    for said in ("post hooks run to their end", "ending the present post hook", "no further post hook is run"):
        running.interrupt()
        poll(lambda said=said: any(said in line for line in running.err), said)
        time.sleep(0.6)  # what comes within half a second is one signal
    assert running.wait(60) == 125
    (stage.directory / "go").touch()
    assert stage.lines == ["begun"] * 2
    written = json.loads(report.read_text())
    assert [each["state"] for each in written["hooks"]] == ["succeeded", "failed", "not_run", "not_run", "skipped"]
    assert written["unreached"] == ["default/db-0", "default/db-1"]
    assert "may still be frozen" in "".join(running.err)


def test_a_hurried_double_interrupt_in_a_pre_hook_does_not_end_the_thaw(stage):
    slow = f"{stage.note('freezing')}; {SLOW}"
    thaw = f"{stage.note('thawing')}; while [ ! -e {stage.directory}/go ]; do sleep 0.05; done; {stage.note('thawed')}"
    plan = stage.plan([stage.hook("freeze", slow)], [stage.hook("thaw", thaw)])
    running = stage.start(plan, "--", "true")
    stage.until("freezing", 2)
    running.interrupt()
    running.interrupt()
    stage.until("thawing", 2)
    running.interrupt()
    poll(lambda: any("run to their end all the same" in line for line in running.err), "it says so")
    (stage.directory / "go").touch()
    assert running.wait(60) == 125
    assert stage.lines == ["freezing"] * 2 + ["thawing"] * 2 + ["thawed"] * 2


# -- agents and brokers that go away meanwhile


def frozen_world(tmp_path: Path, broker: Mosquitto) -> tuple[Stage, list[Command]]:
    stage = Stage(Cli(broker.url, "r", tmp_path), tmp_path)
    agents = [stage.cli.agent(pod) for pod in ("db-0", "db-1")]
    stage.cli.online("db-0", "db-1")
    return stage, agents


def test_a_thaw_waits_for_a_broker_that_was_restarted_and_for_every_agent_that_was_frozen(tmp_path):
    """mosquitto without persistence forgets everybody's presence: the first agent back must not be all of them."""
    home = tmp_path / "broker"
    home.mkdir()
    broker = Mosquitto(home, "persistence false")
    broker.start()
    stage, agents = frozen_world(tmp_path, broker)
    try:
        freeze, thaw = stage.hook("freeze", stage.note("freeze")), stage.hook("thaw", stage.note("thaw"))
        wait = f"{stage.note('command')}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
        report = tmp_path / "report.json"
        running = stage.start(stage.plan([freeze], [thaw]), "--report", report, "--", "sh", "-c", wait)
        stage.until("command")
        agents[1].process.send_signal(signal.SIGSTOP)
        broker.kill()
        (tmp_path / "go").touch()
        poll(lambda: '"stage": "post"' in report.read_text(), "post hooks have their turn, without a broker", 20)
        assert stage.lines == ["freeze"] * 2 + ["command"]
        broker.start()
        poll(lambda: any("waiting for the agents of default/db-1" in each for each in running.err), "it waits", 30)
        assert stage.lines == ["freeze"] * 2 + ["command"]
        agents[1].process.send_signal(signal.SIGCONT)
        assert running.wait(100) == 0, "".join(running.err)
        assert stage.lines == ["freeze"] * 2 + ["command"] + ["thaw"] * 2
    finally:
        agents[1].process.send_signal(signal.SIGCONT)
        stage.cli.close()
        broker.stop()


def test_a_broker_that_stays_away_is_123_and_the_error_says_who_may_be_frozen(tmp_path):
    home = tmp_path / "broker"
    home.mkdir()
    broker = Mosquitto(home)
    broker.start()
    stage, _ = frozen_world(tmp_path, broker)
    try:
        post = [stage.hook("thaw", stage.note("thaw")), *stage.by_policy()]
        wait = f"{stage.note('command')}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
        plan, report = stage.plan([stage.hook("freeze", stage.note("freeze"))], post), tmp_path / "report.json"
        running = stage.start(plan, "--reconnect-within", "1s", "--report", report, "--", "sh", "-c", wait)
        stage.until("command")
        broker.kill()
        (tmp_path / "go").touch()
        assert running.wait(100) == 123, "".join(running.err)
        assert stage.lines == ["freeze"] * 2 + ["command", "Always", "OnSuccess"]
        assert json.loads(report.read_text())["unreached"] == ["default/db-0", "default/db-1"]
        said = "no post hook succeeded in default/db-0, default/db-1: what a pre hook froze there may still be frozen"
        assert said in "".join(running.err)
    finally:
        stage.cli.close()
        broker.stop()


def test_one_agent_that_is_gone_keeps_nobody_else_frozen(cli, tmp_path):
    stage = Stage(cli, tmp_path)
    cli.agent("db-0")
    gone = cli.agent("db-1")
    cli.online("db-0", "db-1")
    freeze, thaw = stage.hook("freeze", stage.note("freeze")), stage.hook("thaw", stage.note("thaw $PODHOOK_POD"))
    wait = f"{stage.note('command')}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    plan, report = stage.plan([freeze], [thaw]), tmp_path / "report.json"
    running = stage.start(plan, "--reconnect-within", "1s", "--report", report, "--", "sh", "-c", wait)
    stage.until("command")
    gone.process.kill()
    gone.wait()
    poll(lambda: '"offline"' in cli("agents", "-o", "json").stdout, "the will is known")
    (tmp_path / "go").touch()
    assert running.wait(60) == 123, "".join(running.err)
    assert len([line for line in stage.lines if line.startswith("thaw")]) == 1
    written = json.loads(report.read_text())
    assert written["unreached"] == ["default/db-1"]
    assert written["hooks"][-1]["why"] == "succeeded, but not in default/db-1: no live agent there"


def test_a_thaw_in_one_pod_runs_where_the_freeze_was_although_another_is_the_first_by_name_now(cli, tmp_path):
    """A Deployment that grows during the backup: the new pod must not get the thaw of the old one."""
    stage = Stage(cli, tmp_path)
    cli.agent("db-0")
    cli.online("db-0")
    one = {"type": "Pod", "pod": {"selector": "app=db", "strategy": "ExecuteOnOne"}}
    freeze = stage.hook("freeze", stage.note("freeze $PODHOOK_POD"), executor=one)
    thaw = stage.hook("thaw", stage.note("thaw $PODHOOK_POD"), executor=one)
    wait = f"{stage.note('command')}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    report = tmp_path / "report.json"
    running = stage.start(stage.plan([freeze], [thaw]), "--report", report, "--", "sh", "-c", wait)
    stage.until("command")
    cli.agent("a-new")
    cli.online("a-new", "db-0")
    (tmp_path / "go").touch()
    assert running.wait(60) == 0, "".join(running.err)
    written = json.loads(report.read_text())
    assert [each["run"]["targets"][0]["pod"] for each in written["hooks"]] == ["db-0", "db-0"]
    assert written["unreached"] == []


def test_what_emptied_its_environment_and_lost_its_parent_is_gone_before_post_hooks_too(stage):
    """`sudo mysqldump` in a script: no mark of ours, and nobody between it and init once the script has ended."""
    file = stage.directory / "pid"
    inner = f"trap '' TERM; echo $$ > {file}; while :; do sleep 600; done"
    (stage.directory / "dump").write_text(inner + "\n")
    lives = f"p=$(cat {file}); [ -e /proc/$p ] && ! grep -q '^State:.Z' /proc/$p/status && {stage.note('alive')}"
    plan = stage.plan([], [stage.hook("post", f"{lives}; {stage.note('post')}", executor=OPERATOR)])
    running = stage.start(plan, "--grace", "300ms", "--", "sh", "-c", f"env -i sh {stage.directory}/dump; true")
    poll(lambda: file.exists() and file.read_text(), "it runs", 20)
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143
    assert stage.lines == ["post"]
