"""`podhook run` as a script meets it: exit codes, what is on which stream, Ctrl-C, a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from datetime import UTC, datetime

import psutil
import pytest

from agent.cli.running import Executed, exit_code
from agent.contract.states import Outcome
from agent.coordinator import RunResult, Verdict
from tests.brokers import Mosquitto, free_port, mosquitto_binary, poll
from tests.cli.conftest import clean_environment, script

pytestmark = [pytest.mark.broker, pytest.mark.processes]


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


# -- exit codes


def test_0_when_the_hook_succeeded(shared):
    done = shared("run", shared.file("echo fine"))
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    assert "fine" in done.stdout


def test_1_when_a_pod_failed_and_the_table_says_why(shared):
    done = shared("run", shared.file("echo tablespace is read-only >&2; exit 3"))
    assert done.returncode == 1
    for pod in ("db-0", "db-1"):
        [row] = [line for line in done.stdout.splitlines() if f"default/{pod}" in line]
        assert re.search(r"failed .* exited with code 3; tablespace is read-only", row)
    assert "hooks: failed - 2 failed in" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a FILE of hooks, or --run-id"),
        (["none.yaml"], "cannot read none.yaml: No such file or directory"),
        (["{file}", "--timeout", "300"], "write 300s"),
        (["{file}", "--timeout", "soon"], "--timeout 'soon' is not a duration"),
        (["{file}", "--timeout", "0s"], "timeout: must be more than 0s"),
        (["{file}", "--param", "x"], "--param 'x': write NAME=VALUE"),
        (["{file}", "--param", "BD=x"], "param BD: is neither declared nor used"),
        (["{file}", "--max-retry", "-1"], "--max-retry"),
        (["{file}", "--max-parallel", "0"], "--max-parallel"),
        (["{file}", "--namespace", "No_Name"], "is not a Kubernetes name"),
        (["{file}", "--namespace", "a", "--all-namespaces"], "contradict each other"),
        (["{file}", "--selector", "a in"], "cannot read 'a in'"),
        (["{file}", "--strategy", "ExecuteOnSome"], "ExecuteOnSome"),
        (["{file}", "--broker", "http://x"], "write mqtt://HOST:PORT"),
        (["{file}", "-o", "xml"], "xml"),
    ],
)
def test_2_for_usage_with_the_next_step(shared, arguments, said):
    file = str(shared.file("true"))
    done = shared("run", *(argument.format(file=file) for argument in arguments))
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_2_for_an_invalid_file_with_every_problem_and_nothing_is_run(shared, tmp_path):
    bad = {"action": {"exec": {"comand": ["true"]}}, "executor": {"type": "Pods"}}
    done = shared("run", shared.file(f"touch {tmp_path}/ran", bad))
    assert done.returncode == 2
    for problem in ("document 2: action.exec.comand: unknown field; did you mean 'command'?", "did you mean 'Pod'?"):
        assert problem in done.stderr
    assert not (tmp_path / "ran").exists()


def test_2_for_a_problem_in_the_last_call_before_the_first_is_run(shared, tmp_path):
    last = {"action": {"exec": {"command": ["true"]}, "containerName": "db"}, "executor": {"type": "Operator"}}
    done = shared("run", shared.file(f"touch {tmp_path}/ran", last))
    assert done.returncode == 2
    assert "hooks#2: action.containerName: is 'db', and the Operator executor runs commands" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_3_when_nobody_is_selected(shared):
    done = shared("run", shared.file("true"), "--selector", "app=none")
    assert done.returncode == 3
    assert "nothing was triggered" in done.stdout
    assert "`podhook agents`" in done.stdout
    allowed = shared("run", shared.file("true"), "--selector", "app=none", "--allow-empty")
    assert (allowed.returncode, "that was allowed" in allowed.stdout) == (0, True)


def test_3_when_another_number_is_expected(shared):
    done = shared("run", shared.file("true"), "--expect", "1", "-o", "json")
    assert done.returncode == 3
    [run] = json_lines(done.stdout)
    assert (run["verdict"], run["error"]["code"], run["targets"]) == ("not_started", "unexpected_count", [])
    assert shared("run", shared.file("true"), "--expect", "2").returncode == 0


def test_3_when_an_agent_is_missing_and_0_without_it_where_that_is_allowed(cli):
    cli.agent("db-0")
    gone = cli.agent("db-1")
    cli.online("db-0", "db-1")
    gone.process.kill()
    gone.wait()
    poll(lambda: '"offline"' in cli("agents", "-o", "json").stdout, "the will is known")
    done = cli("run", cli.file("true"))
    assert done.returncode == 3
    assert "default/db-1" in done.stdout
    allowed = cli("run", cli.file("true"), "--allow-missing")
    assert allowed.returncode == 0
    assert "note: went on without 1 selected pods whose agent is offline: default/db-1" in allowed.stdout


def test_4_when_nobody_listens(shared):
    port = free_port()
    done = shared("run", shared.file("true"), "--broker", f"mqtt://127.0.0.1:{port}")
    assert done.returncode == 4
    assert f"cannot reach the broker at mqtt://127.0.0.1:{port}: 127.0.0.1:{port}: Connection refused" in done.stderr


def test_4_when_the_broker_refuses_the_password_which_is_never_shown(shared, tmp_path):
    passwords = tmp_path / "passwords"
    subprocess.run([mosquitto_binary("mosquitto_passwd"), "-c", "-b", passwords, "ann", "right"], check=True)
    broker = Mosquitto(tmp_path, f"password_file {passwords}", anonymous=False)
    broker.start()
    try:
        wrong = shared("run", shared.file("true"), "--broker", broker.url.replace("//", "//ann:s3cret@"))
        secret = tmp_path / "secret"
        secret.write_text("right\n")
        url = broker.url.replace("//", "//ann@")
        right = shared("run", shared.file("true"), "--broker", url, "--broker-password-file", secret, "--allow-empty")
    finally:
        broker.stop()
    assert wrong.returncode == 4
    assert "refused the connection" in wrong.stderr
    assert "s3cret" not in wrong.stderr + wrong.stdout
    assert right.returncode == 0


@pytest.mark.parametrize(
    ("verdicts", "interrupted", "code"),
    [
        (["succeeded", "succeeded"], False, 0),
        (["succeeded", "failed", "not_started"], False, 1),
        (["succeeded", "not_started"], False, 3),
        (["succeeded"], True, 130),  # it had ended before the cancel came; what was to follow was not run
        (["failed", "cancelled"], True, 130),
        ([], True, 130),
    ],
)
def test_the_exit_code_is_the_worst_of_all_verdicts_and_an_interrupt_is_never_hidden(verdicts, interrupted, code):
    runs = [RunResult("r", "h", Verdict(verdict), datetime.now(UTC), 0) for verdict in verdicts]
    assert exit_code(Executed(tuple(runs), interrupted)) == code


# -- Ctrl-C


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_130_when_interrupted_and_every_pods_state_is_told(shared, tmp_path, number):
    marks = tmp_path / "marks"
    text = f"trap 'echo stopped >> {marks}; exit 9' TERM; echo begun >> {marks}; sleep 600 & wait"
    command = shared.start("run", shared.file(text, "true"), "-o", "json")
    poll(lambda: marks.exists() and marks.read_text().count("begun") == 2, "both run")
    command.process.send_signal(number)
    assert command.wait() == 130
    [run] = json_lines("".join(command.out))
    assert run["verdict"] == "cancelled"
    assert {each["pod"]: each["outcome"] for each in run["targets"]} == {"db-0": "cancelled", "db-1": "cancelled"}
    assert marks.read_text().count("stopped") == 2
    errors = "".join(command.err)
    assert "stopping what was started" in errors
    assert "1 more hook not run" in errors
    assert "--keep-going" not in errors


def test_130_in_a_table_too(shared, tmp_path):
    command = shared.start("run", shared.file(f"touch {tmp_path}/$$; sleep 600"))
    poll(lambda: len(list(tmp_path.iterdir())) >= 2, "both run")
    command.interrupt()
    assert command.wait() == 130
    rows = [line for line in command.out if line.strip().startswith("default/db-")]
    assert len(rows) == 2
    assert all("cancelled" in row for row in rows)
    assert "Traceback" not in "".join(command.err)


def test_130_although_keep_going_and_nothing_more_is_run(shared, tmp_path):
    """Also where the command does not let itself be stopped at once."""
    begun = tmp_path / "begun"
    text = f"trap '' TERM; touch {begun}; sleep 1; echo done"
    command = shared.start("run", shared.file(text, f"touch {tmp_path}/second"), "-o", "json", "--keep-going")
    poll(begun.exists, "it runs")
    command.interrupt()
    assert command.wait() == 130
    assert len(json_lines("".join(command.out))) == 1
    assert not (tmp_path / "second").exists()


def test_130_before_the_targets_are_known_and_nothing_is_triggered(shared, tmp_path):
    command = shared.start("run", shared.file(f"touch {tmp_path}/ran"), "--expect", "7", "-o", "json")
    poll(lambda: psutil.Process(command.process.pid).net_connections("tcp"), "it talks to the broker", 20)
    time.sleep(1)  # it waits up to 5 s for five more pods
    command.interrupt()
    assert command.wait() == 130
    assert not (tmp_path / "ran").exists()
    for run in json_lines("".join(command.out)):  # none, if that was before it was let in
        assert (run["verdict"], run["targets"]) == ("cancelled", [])


def test_a_second_interrupt_waits_no_longer(cli, tmp_path):
    agent = cli.agent("db-0")
    cli.online("db-0")
    command = cli.start("run", cli.file(f"touch {tmp_path}/begun; exec sleep 3"))
    poll((tmp_path / "begun").exists, "it runs")
    agent.process.send_signal(signal.SIGSTOP)
    try:
        command.interrupt()
        poll(lambda: any("stopping" in line for line in command.err), "it waits")
        before = time.monotonic()
        command.interrupt()
        assert command.wait() == 130
        assert time.monotonic() - before < 5
    finally:
        agent.process.send_signal(signal.SIGCONT)
    assert "lost" in "".join(command.out)
    assert "unknown" in "".join(command.out)


# -- streams


KEYS = {
    "namespace",
    "pod",
    "pod_uid",
    "outcome",
    "attempt",
    "exit_code",
    "signal",
    "http_status",
    "stdout",
    "stderr",
    "stdout_bytes",
    "stderr_bytes",
    "truncated",
    "duration_ms",
    "error",
}


def test_json_is_one_object_a_hook_on_standard_output_and_events_are_on_standard_error(shared):
    done = shared("run", shared.file("echo one", "echo two >&2; exit 4"), "-o", "json")
    first, second = json_lines(done.stdout)
    assert {"run_id", "hook", "verdict", "started_at", "duration_ms", "targets"} <= first.keys()
    assert [run["hook"] for run in (first, second)] == ["hooks#1", "hooks#2"]
    assert [run["verdict"] for run in (first, second)] == ["succeeded", "failed"]
    for target in first["targets"]:
        assert target.keys() >= KEYS
        assert (target["outcome"], target["stdout"], target["exit_code"], target["error"]) == (
            "succeeded",
            "one\n",
            0,
            None,
        )
    assert {target["error"]["code"] for target in second["targets"]} == {"exit_code"}
    for word in ("selected 2 pods", "default/db-0 triggered", "default/db-1 started", "default/db-0 succeeded"):
        assert word in done.stderr


def test_without_a_terminal_events_are_one_line_each_without_escapes(shared):
    done = shared("run", shared.file("true"))
    assert "\x1b" not in done.stdout + done.stderr
    for line in done.stderr.splitlines():
        assert re.fullmatch(r" *\d+\.\d{3}s hooks (default/db-[01] )?\S.*", line), line


def test_a_message_that_lies_about_its_sender_does_not_spoil_standard_output(shared, tmp_path):
    """What the library logs goes to standard error."""
    import asyncio

    from agent.bus.broker import parse_broker
    from agent.bus.link import Link
    from agent.bus.types import LinkOptions, Publication

    async def disturb():
        async with Link(parse_broker(shared.url), LinkOptions("disturb")) as link:
            await link.wait_up(5)
            await link.publish(Publication(f"{shared.root}/v1/agents/default/liar/presence", b"{}", retain=True))
            try:
                return await asyncio.to_thread(shared, "run", shared.file("true"), "-o", "json")
            finally:
                await link.publish(Publication(f"{shared.root}/v1/agents/default/liar/presence", b"", retain=True))

    done = asyncio.run(disturb())
    assert len(json_lines(done.stdout)) == 1
    assert "reply.refused" in done.stderr


# -- several hooks


def test_the_first_hook_that_fails_ends_the_run(shared, tmp_path):
    done = shared("run", shared.file("true", "exit 1", f"touch {tmp_path}/third"), "-o", "json")
    assert done.returncode == 1
    assert [run["verdict"] for run in json_lines(done.stdout)] == ["succeeded", "failed"]
    assert "1 more hook not run; --keep-going runs them all the same" in done.stderr
    assert not (tmp_path / "third").exists()


def test_keep_going_runs_them_all_and_still_says_1(shared, tmp_path):
    done = shared("run", shared.file("exit 1", f"touch {tmp_path}/second"), "--keep-going", "-o", "json")
    assert done.returncode == 1
    assert [run["verdict"] for run in json_lines(done.stdout)] == ["failed", "succeeded"]
    assert (tmp_path / "second").exists()


def test_a_dash_reads_standard_input(shared):
    done = shared("run", "-", "-o", "json", stdin=json.dumps(script("echo in")))
    assert done.returncode == 0, done.stderr
    assert json_lines(done.stdout)[0]["hook"] == "stdin"


# -- options


def test_the_broker_comes_from_the_environment_and_the_flag_wins(shared):
    nowhere = f"mqtt://127.0.0.1:{free_port()}"
    env = clean_environment(PODHOOK_BROKER=nowhere, PODHOOK_TOPIC_ROOT=shared.root)
    assert shared("run", shared.file("true"), env=env).returncode == 4
    assert shared("run", shared.file("true"), "--broker", shared.url, env=env).returncode == 0
    env["PODHOOK_BROKER"] = shared.url
    assert shared("run", shared.file("true"), env=env).returncode == 0


def test_one_namespace_is_meant_unless_another_is_named(shared):
    assert shared("run", shared.file("true"), "-n", "lab").returncode == 3
    done = shared("run", shared.file("true"), "-n", "lab", "-n", "default", "-o", "json")
    assert len(json_lines(done.stdout)[0]["targets"]) == 2
    assert shared("run", shared.file("true"), "-A").returncode == 0


def test_params_timeout_strategy_and_retries_reach_the_run(shared, tmp_path):
    text = f"echo $PODHOOK_TRIGGER_ID >> {tmp_path}/runs; echo ${{WHAT}}; sleep ${{LONG:=0}}"
    one = ("--strategy", "ExecuteOnOne", "-o", "json")
    done = shared("run", shared.file(text), "--param", "WHAT=a=b c", *one)
    [target] = json_lines(done.stdout)[0]["targets"]
    assert (target["pod"], target["stdout"]) == ("db-0", "a=b c\n")
    more = ("--param", "LONG=600", "--timeout", "300ms", "--max-retry", "1")
    done = shared("run", shared.file(text), "-p", "WHAT=x", *more, *one)
    [target] = json_lines(done.stdout)[0]["targets"]
    assert (done.returncode, target["outcome"], target["attempt"]) == (1, "timed_out", 2)
    assert len((tmp_path / "runs").read_text().splitlines()) == 3


def test_max_parallel_and_max_errors_reach_the_run(shared):
    bounds = ("--max-parallel", "1", "--max-errors", "0")
    done = shared("run", shared.file("exit 1"), *bounds, "-o", "json")
    assert [each["outcome"] for each in json_lines(done.stdout)[0]["targets"]] == ["failed", "unreachable"]
    assert json_lines(done.stdout)[0]["targets"][1]["error"]["code"] == "stopped_after_errors"


# -- a terminal


def on_terminal(cli, arguments, *, columns=100, term="xterm-256color", stdout=None):
    """Run it under a pseudo-terminal; returns (exit code, everything that was drawn)."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        env=cli.environment(TERM=term),
        stdin=follower,
        stdout=stdout or follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    drawn, deadline = b"", time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            if select.select([leader], [], [], 0.1)[0]:
                try:
                    data = os.read(leader, 65536)
                except OSError:  # EIO: the last writer is gone
                    break
                if not data:
                    break
                drawn += data
        return process.wait(10), drawn.decode(errors="replace")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(leader)


def screen_of(drawn, columns):
    """What is left on the screen: enough of a terminal for what rich draws."""
    rows, row = [""], 0
    for piece in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", drawn):
        if piece == "\n":
            row += 1
            if row == len(rows):
                rows.append("")
        elif piece == "\r":
            continue
        elif piece.startswith("\x1b["):
            count = int(re.sub(r"\D", "", piece) or 1)
            if piece.endswith("A"):
                row = max(0, row - count)
            elif piece.endswith("K"):
                rows[row] = ""
        else:
            rows[row] += piece
    return [line for line in rows if line.strip()]


@pytest.mark.parametrize("columns", [100, 30])
def test_on_a_terminal_a_live_view_shows_each_pod_and_leaves_a_clean_screen(shared, columns):
    code, drawn = on_terminal(shared, ["run", shared.file("sleep 1; echo fine")], columns=columns)
    assert code == 0
    assert "started" in drawn
    assert drawn.count("default/db-0") > 2  # drawn again and again
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1  # the cursor is back
    left = "\n".join(screen_of(drawn, columns))
    assert "started" not in left
    if columns == 100:
        assert left.count("default/db-0") == 1
        assert "hooks: succeeded - 2 succeeded" in left


def test_on_a_terminal_results_can_still_be_taken_from_standard_output(shared, tmp_path):
    with (tmp_path / "out.json").open("wb") as out:
        code, drawn = on_terminal(shared, ["run", shared.file("sleep 0.5"), "-o", "json"], stdout=out)
    [run] = json_lines((tmp_path / "out.json").read_text())
    assert (code, run["verdict"]) == (0, "succeeded")
    assert "default/db-1" in drawn
    assert screen_of(drawn, 100) == []


def test_a_dumb_terminal_gets_lines(shared):
    code, drawn = on_terminal(shared, ["run", shared.file("true")], term="dumb")
    assert code == 0
    assert "\x1b" not in drawn
    assert "default/db-0 succeeded" in drawn


def test_output_of_a_hook_cannot_draw_on_the_terminal(shared):
    evil = shared.file("printf '\\033[2Jcleared [bold]\\n'; exit 1")
    code, drawn = on_terminal(shared, ["run", evil])
    assert code == 1
    assert "\x1b[2J" not in drawn
    assert "[bold]" in drawn


def test_every_outcome_has_a_colour():
    from agent.cli.view import _STYLES

    assert set(_STYLES) == set(Outcome)


def test_a_reader_that_is_gone_does_not_decide_which_hooks_run(shared, tmp_path):
    """`podhook run freeze-and-thaw.yaml | head -1` must still thaw."""
    for output in ("table", "json"):
        ran = tmp_path / output
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as broken:
            done = subprocess.run(
                [sys.executable, "-m", "agent", "run", shared.file("true", f"touch {ran}"), "-o", output],
                env=shared.environment(),
                cwd=shared.directory,
                check=False,
                stdout=broken,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
        assert ran.exists(), f"-o {output}: the second hook did not run: {done.stderr}"
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_a_broken_setting_in_kubernetes_is_no_crash_loop(cli):
    """A container that ends and ends takes its pod's readiness, and with it the database's."""
    command = cli.start("agent", env=cli.environment(KUBERNETES_SERVICE_HOST="10.0.0.1", PODHOOK_GRACE_SECONDS="15s"))
    poll(lambda: "Waiting for SIGTERM" in "".join(command.err), "it says what is wrong")
    assert "PODHOOK_GRACE_SECONDS" in "".join(command.err)
    assert command.process.poll() is None
    command.process.send_signal(signal.SIGTERM)
    assert command.wait() == 0


# -- the agents' own catalogue


def test_a_hook_of_the_agents_catalogues_is_run_by_name(cli, tmp_path):
    policy, out = tmp_path / "policy.yaml", tmp_path / "out"
    policy.write_text(
        "inline: false\ncatalogue: {note: {params: {word: {type: string, pattern: '[a-z]+'}}, "
        f"action: {{exec: {{command: [/bin/sh, -c, 'echo \"$1\" >> \"$2\"', sh, '${{word}}', {out}]}}}}}}}}\n"
    )
    for pod in ("db-0", "db-1"):
        cli.agent(pod, POLICY=policy)
    cli.online("db-0", "db-1")
    run = ("run", "--catalogue", "note", "-l", "app=db", "--strategy", "ExecuteOnAll", "-o", "json")
    done = cli(*run, "-p", "word=hello")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hook"] == "note"
    assert out.read_text() == "hello\nhello\n"
    done = cli(*run, "-p", "word=NO")
    assert done.returncode == 1
    assert {each["error"]["code"] for each in json.loads(done.stdout)["targets"]} == {"invalid_params"}
    done = cli("run", cli.file("true"))
    assert done.returncode == 1
    assert "policy: inline: is false" in done.stdout + done.stderr
    assert cli("run", "--catalogue", "note", cli.file("true")).returncode == 2
    assert "--selector" in cli("run", "--catalogue", "note").stderr
