"""`query`, `runs`, `cancel` and `run --run-id`: the journals in the pods answer for a run, whoever began it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uuid_utils

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import LinkOptions, Publication
from agent.contract.actions import Action
from agent.contract.events import seal
from agent.contract.messages import Targets, Trigger
from agent.coordinator import Coordinator, HookCall, load_hooks
from tests.agents import light_agents
from tests.brokers import poll
from tests.cli.conftest import Cli, script

pytestmark = [pytest.mark.broker, pytest.mark.processes]

ONE = {"type": "Pod", "pod": {"selector": "app=db", "strategy": "ExecuteOnOne"}}
#: Of 2023, by the time that it carries.
OLD = "01890a5d-ac96-774b-bcce-b302099a8057"


def run_id_of(command) -> str:
    """The id that `podhook run` said when it began."""

    def said() -> list[str]:
        return [found[1] for line in command.err if (found := re.search(r"\(run ([0-9a-f-]{36})\)", line))]

    poll(said, "the run's id is said when it begins", 20)
    return said()[0]


def told(done) -> dict:
    return json.loads(done.stdout)


def outcomes(document: dict) -> dict[str, str | None]:
    return {each["pod"]: each["outcome"] for each in document["targets"]}


def ran(cli: Cli, *hooks, code: int = 0) -> str:
    """Run hooks to their end; the last run's id."""
    done = cli("run", cli.file(*hooks), "-o", "json", "-k")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["run_id"]


# -- query


def test_a_run_is_told_by_the_agents_to_whoever_asks(shared):
    run_id = ran(shared, "echo hello $PODHOOK_RUN_ID")
    done = shared("query", run_id, "-o", "json")
    document = told(done)
    assert (done.returncode, document["verdict"], document["hook"]) == (0, "succeeded", "hooks")
    assert (document["expected_targets"], document["strategy"]) == (2, "ExecuteOnAll")
    assert outcomes(document) == {"db-0": "succeeded", "db-1": "succeeded"}
    assert all(each["stdout"] == f"hello {run_id}\n" for each in document["targets"])
    table = shared("query", run_id)
    assert table.returncode == 0
    assert f"hooks: succeeded - 2 succeeded of 2 targets (run {run_id})" in table.stdout


def test_a_run_that_failed_somewhere_failed(shared):
    run_id = ran(shared, '[ "$(hostname)" = x ]', code=1)
    done = shared("query", run_id, "-o", "json")
    assert (done.returncode, told(done)["verdict"]) == (1, "failed")
    assert {each["exit_code"] for each in told(done)["targets"]} == {1}


def test_a_run_on_one_pod_needs_no_word_of_the_others(shared):
    run_id = ran(shared, script("true", ONE))
    done = shared("query", run_id, "-o", "json")
    assert (done.returncode, told(done)["verdict"]) == (0, "succeeded")
    assert (outcomes(told(done)), told(done)["expected_targets"]) == ({"db-0": "succeeded"}, 2)


def test_what_still_runs_is_told_and_has_an_exit_code_of_its_own(cli):
    cli.agent("db-0")
    cli.online("db-0")
    running = cli.start("run", cli.file("sleep 60"))
    run_id = run_id_of(running)
    poll(lambda: any("started" in line for line in running.err), "it runs", 20)
    done = cli("query", run_id, "-o", "json")
    assert (done.returncode, told(done)["verdict"]) == (5, "running")
    assert [(each["outcome"], each["state"]) for each in told(done)["targets"]] == [(None, "started")]
    assert "started" in cli("query", run_id).stdout


@pytest.mark.parametrize("arguments", [["query"], ["cancel"], ["run", "--run-id"]], ids=["query", "cancel", "resume"])
def test_a_run_that_nobody_knows_is_said_to_be_unknown(shared, arguments):
    nobodys = str(uuid_utils.uuid7())
    done = shared(*arguments, nobodys, "-o", "json")
    assert (done.returncode, told(done)["verdict"], told(done)["targets"]) == (3, "not_found", [])
    assert f"knows run {nobodys}" in shared(*arguments, nobodys).stdout


@pytest.mark.parametrize("arguments", [["query"], ["cancel"], ["run", "--run-id"]], ids=["query", "cancel", "resume"])
def test_a_run_from_before_the_agents_memory_is_not_said_to_be_unknown(shared, arguments):
    """It may have run, so a script must not take it for "nothing was triggered"."""
    done = shared(*arguments, OLD, "-o", "json")
    assert (done.returncode, told(done)["verdict"]) == (1, "incomplete"), done.stderr
    assert "cannot tell" in shared(*arguments, OLD).stdout


@pytest.mark.parametrize("arguments", [["query"], ["cancel"], ["run", "--run-id"]], ids=["query", "cancel", "resume"])
def test_what_is_no_run_id_is_refused(shared, arguments):
    done = shared(*arguments, "yesterday")
    assert done.returncode == 2
    assert "'yesterday' is not a UUID" in done.stderr


def test_a_target_that_is_gone_leaves_the_run_incomplete(cli):
    cli.agent("db-0")
    gone = cli.agent("db-1")
    cli.online("db-0", "db-1")
    run_id = ran(cli, "true")
    gone.process.kill()
    poll(lambda: "offline" in cli("agents").stdout, "the will speaks", 20)
    done = cli("query", run_id, "-o", "json")
    assert (done.returncode, told(done)["verdict"]) == (1, "incomplete"), "fewer outcomes than targets succeeded"
    assert (outcomes(told(done)), told(done)["offline"]) == ({"db-0": "succeeded"}, ["default/db-1"])
    cli("agents", "--prune")  # also when nobody remembers that it ever was
    assert told(cli("query", run_id, "-o", "json"))["verdict"] == "incomplete"


async def test_all_50_outcomes_are_there_after_the_coordinator_was_killed_in_the_middle(cli, tmp_path: Path) -> None:
    """SIGKILL while all of them run: the agents go on, and their journals answer."""
    async with light_agents(cli.url, cli.root, tmp_path, 50):
        running = cli.start("run", cli.file("sleep 1; echo done"), "-n", "shop", "--expect", "50")
        run_id = await asyncio.to_thread(run_id_of, running)
        await asyncio.to_thread(
            poll, lambda: sum("started" in line for line in running.err) >= 25, "half of them run", 30
        )
        assert not any("succeeded" in line for line in running.err), "too late for the middle"
        running.process.send_signal(signal.SIGKILL)
        assert await asyncio.to_thread(running.wait) == -signal.SIGKILL

        def asked() -> bool:
            nonlocal done
            done = cli("query", run_id, "-o", "json")
            return told(done)["verdict"] != "running"

        done = None
        await asyncio.to_thread(poll, asked, "they end", 30)
        document = told(done)
        assert (done.returncode, document["verdict"], document["expected_targets"]) == (0, "succeeded", 50), done.stderr
        assert len(document["targets"]) == 50
        assert {(each["outcome"], each["stdout"]) for each in document["targets"]} == {("succeeded", "done\n")}


# -- runs


def test_runs_are_listed_newest_first(shared):
    older, newer = ran(shared, "true"), ran(shared, "exit 3", code=1)
    found = [json.loads(line) for line in shared("runs", "-o", "json").stdout.splitlines()]
    ids = [each["run_id"] for each in found]
    assert ids.index(newer) < ids.index(older)
    told_of = {each["run_id"]: each for each in found}
    assert (told_of[older]["verdict"], told_of[older]["states"]) == ("succeeded", {"succeeded": 2})
    assert (told_of[newer]["verdict"], told_of[newer]["known_targets"]) == ("failed", 2)
    [line] = shared("runs", "--limit", "1", "-o", "json").stdout.splitlines()
    assert json.loads(line)["run_id"] == newer
    table = shared("runs").stdout
    assert older in table
    assert "2/2" in table


def test_no_runs_are_told_as_such(cli):
    cli.agent("db-0")
    cli.online("db-0")
    done = cli("runs")
    assert (done.returncode, "no runs" in done.stdout) == (0, True)
    assert cli("runs", "-o", "json").stdout == ""


# -- run --run-id


def test_a_run_whose_coordinator_died_is_gathered_to_its_end_and_not_triggered_again(cli):
    cli.agent("db-0")
    cli.online("db-0")
    tally = cli.directory / "tally"
    file = cli.file(f"echo ran >> {tally}; sleep 2; echo done")
    running = cli.start("run", file)
    run_id = run_id_of(running)
    poll(tally.exists, "it runs", 20)
    running.process.send_signal(signal.SIGKILL)
    done = cli("run", file, "--run-id", run_id, "-o", "json")
    assert (done.returncode, told(done)["verdict"]) == (0, "succeeded"), done.stderr
    assert told(done)["targets"][0]["stdout"] == "done\n"
    assert "nothing is triggered" in done.stderr
    assert tally.read_text() == "ran\n"


def test_gathering_a_run_that_lives_does_not_disturb_it(cli):
    """A retry of a coordinator that is alive, and a pod whose turn has not come: both are waited for."""
    for pod in ("db-0", "db-1"):
        cli.agent(pod)
    cli.online("db-0", "db-1")
    flag = cli.directory / "failed"
    text = f"mkdir {flag} 2>/dev/null && exit 1; sleep 1; echo done"
    running = cli.start("run", cli.file(text), "--max-parallel", "1", "--max-retry", "3", "-o", "json")
    run_id = run_id_of(running)
    poll(flag.exists, "the first attempt failed", 20)
    gathered = cli("run", "--run-id", run_id, "-o", "json", within_seconds=90)
    assert running.wait() == 0
    assert outcomes(json.loads("".join(running.out))) == {"db-0": "succeeded", "db-1": "succeeded"}
    assert (gathered.returncode, outcomes(told(gathered))) == (0, {"db-0": "succeeded", "db-1": "succeeded"})


async def two_attempts(cli: Cli, action: dict) -> str:
    """Triggers of attempt 1 and, at once, attempt 2 of a new run on db-0; its id."""
    run_id, now = str(uuid_utils.uuid7()), datetime.now(UTC)
    async with Coordinator(cli.url, topic_root=cli.root) as coordinator:
        [there] = await coordinator.agents()
    async with Link(parse_broker(cli.url), LinkOptions("two-attempts")) as link:
        await link.wait_up(5)
        for attempt in (1, 2):
            trigger = Trigger(
                run_id=run_id,
                attempt=attempt,
                coordinator="test",
                pod_uid=there.pod_uid,
                targets=Targets.of([("default", "db-0", there.pod_uid)]),
                action=Action.model_validate(action),
                issued_at=now,
                deadline=now + timedelta(seconds=60),
            )
            payload = seal(trigger, source="/test", time=now, event_id=str(uuid_utils.uuid7()))
            await link.publish(Publication(f"{cli.root}/v1/agents/default/db-0/commands", payload))
    return run_id


def test_a_target_whose_retry_was_refused_is_told_as_what_runs_or_ran(cli):
    """Attempt 2 is refused because attempt 1 runs: neither has it ended, nor did nothing run."""
    cli.agent("db-0")
    cli.online("db-0")
    tally = cli.directory / "tally"
    run_id = asyncio.run(two_attempts(cli, script(f"echo ran >> {tally}; sleep 60")["action"]))
    poll(tally.exists, "it runs", 20)
    asked = cli("query", run_id, "-o", "json")
    assert (asked.returncode, told(asked)["verdict"], told(asked)["targets"][0]["state"]) == (5, "running", "started")
    ended = cli("cancel", run_id, "-o", "json")
    assert (ended.returncode, outcomes(told(ended))) == (0, {"db-0": "cancelled"}), ended.stdout
    assert told(ended)["targets"][0]["notes"] == ["attempt 2 was rejected"]


def test_what_says_nothing_to_a_run_that_is_gathered_is_refused(shared):
    done = shared("run", "--run-id", OLD, "--timeout", "3s")
    assert done.returncode == 2
    assert "--timeout has no meaning with --run-id" in done.stderr


def test_results_that_nobody_reads_do_not_change_the_exit_code(shared):
    command = [sys.executable, "-m", "agent", "query", str(uuid_utils.uuid7())]
    piped = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=shared.environment(), cwd=shared.directory
    )
    piped.stdout.close()
    assert piped.wait(30) == 3


def test_ctrl_c_cancels_a_run_that_is_gathered(cli):
    cli.agent("db-0")
    cli.online("db-0")
    running = cli.start("run", cli.file("sleep 60"))
    run_id = run_id_of(running)
    poll(lambda: any("started" in line for line in running.err), "it runs", 20)
    running.process.send_signal(signal.SIGKILL)
    gathering = cli.start("run", "--run-id", run_id, "-o", "json")
    poll(lambda: any("selected" in line for line in gathering.err), "it is gathered", 20)
    gathering.interrupt()
    assert gathering.wait() == 130
    assert outcomes(json.loads("".join(gathering.out))) == {"db-0": "cancelled"}


# -- cancel


def test_a_run_is_cancelled_by_somebody_else_and_its_own_coordinator_hears_it(cli):
    cli.agent("db-0")
    cli.agent("db-1")
    cli.online("db-0", "db-1")
    running = cli.start("run", cli.file("sleep 60"), "--max-retry", "3", "-o", "json")
    run_id = run_id_of(running)
    poll(lambda: sum("started" in line for line in running.err) == 2, "both run", 20)
    done = cli("cancel", run_id, "-o", "json")
    assert (done.returncode, outcomes(told(done))) == (0, {"db-0": "cancelled", "db-1": "cancelled"}), done.stderr
    assert running.wait() == 1
    assert outcomes(json.loads("".join(running.out))) == {"db-0": "cancelled", "db-1": "cancelled"}


def test_a_cancelled_run_starts_on_no_further_pod_and_not_again(cli):
    for pod in ("db-0", "db-1", "db-2"):
        cli.agent(pod)
    cli.online("db-0", "db-1", "db-2")
    tally = cli.directory / "tally"
    file = cli.file(f"echo ran >> {tally}; sleep 60")
    running = cli.start("run", file, "--max-parallel", "1", "--max-retry", "5", "-o", "json")
    run_id = run_id_of(running)
    poll(tally.exists, "the first runs", 20)
    assert cli("cancel", run_id).returncode == 0
    assert running.wait() == 1
    result = json.loads("".join(running.out))
    assert sorted(outcomes(result).values()) == ["cancelled", "unreachable", "unreachable"], result
    assert tally.read_text() == "ran\n"


def test_what_is_cancelled_before_it_was_triggered_never_starts(cli):
    """The trigger is still on its way: whoever cancels reaches the agents first."""
    cli.agent("db-0")
    cli.online("db-0")
    run_id, tally = str(uuid_utils.uuid7()), cli.directory / "tally"
    done = cli("cancel", run_id)
    assert (done.returncode, "knows run" in done.stdout) == (3, True)

    async def run():
        async with Coordinator(cli.url, topic_root=cli.root) as coordinator:
            hook = load_hooks(json.dumps(script(f"echo ran >> {tally}")), name="late")[0]
            return await coordinator.run(HookCall(hook), run_id=run_id)

    result = asyncio.run(run())
    assert [str(each.result.outcome) for each in result.targets] == ["cancelled"]
    assert not tally.exists()


def test_cancelling_a_run_that_has_ended_changes_nothing(shared):
    run_id = ran(shared, "true")
    done = shared("cancel", run_id, "-o", "json")
    assert (done.returncode, told(done)["verdict"]) == (0, "succeeded")
    assert told(shared("query", run_id, "-o", "json"))["verdict"] == "succeeded"


def test_who_cannot_confirm_a_cancel_is_named(cli):
    cli.agent("db-0")
    gone = cli.agent("db-1")
    cli.online("db-0", "db-1")
    run_id = ran(cli, "true")
    gone.process.kill()
    poll(lambda: "offline" in cli("agents").stdout, "the will speaks", 20)
    done = cli("cancel", run_id)
    assert done.returncode == 1
    assert "did not confirm that nothing of the run starts there any more: default/db-1" in done.stdout
