"""The life of an agent: presence, SIGTERM, what is missing when it starts, and a hundred of them."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sqlite3
from pathlib import Path

import pytest

from agent.bus.types import Publication
from agent.contract.messages import OutcomeMessage, Started
from agent.coordinator import Coordinator, HookCall, Verdict, load_hooks
from tests.agents import TRUE, AgentProcess, Stage, code, left_running, light_agents, online, shell, stage_on
from tests.brokers import Mosquitto
from tests.proxy import Proxy

pytestmark = [pytest.mark.broker, pytest.mark.processes]

EXEC_ON_ALL = """
action: {exec: {command: [/bin/true]}}
executor: {type: Pod, pod: {selector: app=db, strategy: ExecuteOnAll}}
"""


# -- presence


async def test_presence_says_who_is_online_with_its_labels(any_stage: Stage) -> None:
    agent = await any_stage.agent()
    presence = any_stage.client.said(agent)[-1]
    assert presence is not None
    assert (presence.state, presence.labels, presence.pod_uid) == ("online", {"app": "db"}, agent.uid)
    assert (presence.containers, presence.unsigned, presence.problems) == (["app"], True, [])


async def test_changed_labels_are_announced(stage: Stage) -> None:
    agent = await stage.agent()
    agent.labels_file.write_text('app="db"\ntier="primary"\n', encoding="utf-8")
    changed = {"app": "db", "tier": "primary"}
    await stage.client.presence(agent, lambda said: said is not None and said.labels == changed, "the new labels")


async def test_labels_that_cannot_be_read_are_said_and_the_old_ones_kept(stage: Stage) -> None:
    agent = await stage.agent()
    agent.labels_file.write_text("app=db\n", encoding="utf-8")
    presence = await stage.client.presence(agent, lambda said: said is not None and said.problems, "a problem")
    assert presence is not None
    assert presence.labels == {"app": "db"}
    assert "labels file, line 1" in presence.problems[0]
    await stage.client.works(agent)


async def test_a_goodbye_of_somebody_else_is_corrected(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    after = len(client.said(agent))
    await client.link.publish(Publication(client.topics.presence("shop", agent.pod), b"", retain=True))
    await client.presence(agent, online, "said again", after=after)


# -- SIGTERM


async def test_sigterm_takes_no_new_work_and_lets_the_running_end(stage: Stage) -> None:
    agent, tally, client = await stage.agent(grace_seconds=30), stage.tally(), stage.client
    running = await client.trigger(agent, shell(f"until [ -e {tally.path}.go ]; do sleep 0.02; done; echo done"))
    await client.reply(Started, running)
    agent.signal(signal.SIGTERM)
    await agent.logged("agent.stopping")
    late = await client.trigger(agent, tally.action())
    assert code(await client.outcome(late)) == "stopping"
    tally.path.with_name(tally.path.name + ".go").touch()
    outcome = await client.outcome(running)
    assert (outcome.outcome, outcome.stdout.text) == ("succeeded", "done\n")
    assert await agent.exited() == 0, agent.tail()
    assert tally.runs == 0
    await client.presence(agent, lambda said: said is None, "cleared")


async def test_sigterm_ends_what_runs_longer_than_the_grace(any_stage: Stage) -> None:
    agent, client = await any_stage.agent(grace_seconds=0.2), any_stage.client
    sent = await client.trigger(agent, shell("setsid sleep 60 & sleep 60 & wait"))
    await any_stage.until(lambda: len(left_running(sent.run_id)) >= 3, "the shell and both of its children run")
    assert await agent.terminate() == 0, agent.tail()
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("interrupted", "agent_stopped")
    assert left_running(sent.run_id) == [], "something of it stays"
    assert len(client.heard(OutcomeMessage, sent.run_id)) == 1


async def test_sigterm_without_a_broker_ends_promptly(stage: Stage) -> None:
    agent = stage.make(broker_url="mqtt://127.0.0.1:9")
    agent.start()
    await agent.logged("broker.disconnected")
    assert await agent.terminate() == 0, agent.tail()


async def test_sigterm_beside_a_broker_that_is_silent_ends_within_bounds(stage: Stage) -> None:
    agent, client = await stage.agent(grace_seconds=0.1), stage.client
    sent = await client.trigger(agent, shell("exec sleep 60"))
    await client.reply(Started, sent)
    stage.broker.freeze()
    try:
        agent.signal(signal.SIGTERM)
        assert await agent.exited(within_seconds=15) == 0, agent.tail()  # Kubernetes gives 30 s, with a grace of 15
    finally:
        stage.broker.thaw()
    await stage.start(agent)
    assert code(await client.outcome(sent)) == "agent_stopped"


async def test_an_outcome_that_sigterm_could_not_deliver_comes_after_the_restart(stage: Stage) -> None:
    agent, client = await stage.agent(grace_seconds=0.1), stage.client
    sent = await client.trigger(agent, shell("sleep 60"))
    await client.reply(Started, sent)
    stage.broker.stop()
    assert await agent.terminate() == 0, agent.tail()
    stage.broker.start()
    await stage.start(agent)
    assert code(await client.outcome(sent)) == "agent_stopped"


# -- what is missing


async def test_an_agent_without_a_broker_stays_up_and_serves_when_it_comes(mosquitto: Mosquitto, stage: Stage) -> None:
    agent = stage.make()
    mosquitto.stop()
    agent.start()
    await agent.logged("broker.disconnected")
    mosquitto.start()
    await stage.client.presence(agent, online, "online when the broker came")
    await stage.client.works(agent)


async def test_without_a_state_directory_it_refuses_says_so_and_recovers(stage: Stage) -> None:
    blocked = stage.directory / "blocked"
    blocked.write_text("a file where a directory should be")
    agent, tally, client = await stage.agent(state_dir=blocked / "state"), stage.tally(), stage.client
    presence = client.said(agent)[-1]
    assert presence is not None
    assert any(f"cannot use state directory {blocked}/state" in each for each in presence.problems), presence.problems
    sent = await client.trigger(agent, tally.action())
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "journal_unavailable")
    assert outcome.error is not None
    assert f"cannot use state directory {blocked}/state" in outcome.error.message, outcome.error.message
    assert agent.alive, agent.tail()
    blocked.unlink()
    blocked.mkdir()
    await client.presence(agent, lambda said: said is not None and not said.problems, "mended")
    await client.works(agent)
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=2)) == "before_journal"
    assert tally.runs == 0, "a refused id was run later"


async def test_what_a_busy_journal_made_it_refuse_stays_refused(stage: Stage) -> None:
    """An older journal that could not be opened at first: what was refused meanwhile is on no record."""
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    await agent.terminate()
    (path,) = agent.state.glob("*.sqlite3")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as journal:
        (version,) = journal.execute("PRAGMA user_version").fetchone()
        journal.execute("PRAGMA user_version = 999")  # as after a downgrade: not ours to open
        await stage.start(agent)
        sent = await client.trigger(agent, tally.action())
        assert code(await client.outcome(sent)) == "journal_unavailable"
        journal.execute(f"PRAGMA user_version = {version}")
    await client.presence(
        agent, lambda said: said is not None and not said.problems, "mended", after=len(client.said(agent))
    )
    await client.again(agent, sent)
    assert code(await client.outcome(sent, count=2)) == "journal_unavailable", "a refused id turned into a yes"
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_a_second_agent_on_the_same_journal_stays_off_the_bus_until_the_first_is_gone(stage: Stage) -> None:
    first, tally, client = await stage.agent(), stage.tally(), stage.client
    second = stage.make(first.pod, state_dir=first.state, pod_uid=first.uid)
    second.start()
    await second.logged("problem")
    assert (await client.run(first, tally.action())).outcome == "succeeded"
    assert tally.runs == 1
    assert second.log("broker.connected") == [], "two agents answer for one pod"
    first.kill()
    await second.logged("broker.connected")
    assert (await client.run(second, tally.action())).outcome == "succeeded", second.tail()


async def test_two_agents_of_one_pod_with_journals_of_their_own_do_not_both_stay(stage: Stage) -> None:
    """The same uid twice is a mistake in somebody's set-up: the later-born one stays, as with a replaced pod."""
    first, tally, client = await stage.agent(), stage.tally(), stage.client
    second = await stage.agent(first.pod, pod_uid=first.uid)
    await first.logged("agent.replaced")
    await first.logged("agent.away")
    assert (await client.run(second, tally.action())).outcome == "succeeded"
    assert tally.runs == 1, "a hook ran twice"


def no_room(agent: AgentProcess, limit_bytes: int) -> None:
    """From now on the agent's files cannot grow beyond this: writes fail as on a full disk (EFBIG)."""
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))


async def test_a_full_disk_refuses_and_an_outcome_of_that_time_is_recorded_later(stage: Stage) -> None:
    agent, tally, client = await stage.agent(), stage.tally(), stage.client
    running = await client.trigger(agent, shell(f"until [ -e {tally.path}.go ]; do sleep 0.02; done; exit 7"))
    await client.reply(Started, running)
    no_room(agent, 12 * 1024)  # the journal is larger than that by now; the log is not
    refused = await client.trigger(agent, tally.action())
    assert code(await client.outcome(refused)) == "journal_unavailable", agent.tail()
    tally.path.with_name(tally.path.name + ".go").touch()
    assert (await client.outcome(running)).exit_code == 7, "an outcome needs no disk to be said"
    after = len(client.said(agent))
    no_room(agent, resource.RLIM_INFINITY)
    early = code(await client.run(agent, tally.action("exit 0"), issued_in=-1))
    assert early in ("journal_unavailable", "before_journal"), "a yes before the floor was raised"
    await client.presence(agent, lambda said: said is not None and not said.problems, "mended", after=after)
    await client.works(agent)
    (attempt,) = (await client.ask_about(agent, running)).attempts
    assert attempt.state == "failed", f"the journal still has it as {attempt.state}"
    await client.again(agent, refused)
    assert code(await client.outcome(refused, count=2)) == "journal_unavailable"
    assert tally.runs == 0, agent.tail()


async def test_a_cancel_needs_no_journal(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    running = await client.trigger(agent, shell("sleep 60"))
    await client.reply(Started, running)
    no_room(agent, 12 * 1024)
    await client.cancel(agent, running)
    assert (await client.outcome(running)).outcome == "cancelled", agent.tail()


async def test_what_the_broker_does_not_keep_is_said_in_presence(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, "max_inflight_messages 5")
    broker.start()
    try:
        async with stage_on(broker, tmp_path) as stage:
            agent = await stage.agent()
            presence = await stage.client.presence(agent, lambda said: said and said.problems, "the problem is said")
            assert presence is not None
            assert "at most 5 unacknowledged messages" in presence.problems[0]
    finally:
        broker.stop()


async def test_a_broker_without_what_agents_need_is_named_in_the_log(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, "retain_available false")
    broker.start()
    try:
        async with stage_on(broker, tmp_path) as stage:
            agent = stage.make()
            agent.start()
            refused = await agent.logged("broker.disconnected")
            assert "podhook cannot do without retained messages" in refused["reason"]
            assert agent.alive
    finally:
        broker.stop()


# -- the log, and many


async def test_every_line_of_the_log_is_json(stage: Stage, proxy: Proxy) -> None:
    agent = await stage.agent(broker_url=f"mqtt://127.0.0.1:{proxy.port}")
    proxy.cut()
    await agent.logged("broker.disconnected")
    lines = agent.log_file.read_text().splitlines()
    assert [line for line in lines if not isinstance(_json(line), dict)] == []


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


async def test_a_hundred_agents_answer_one_hook(stage: Stage, tmp_path: Path) -> None:
    (hook,) = load_hooks(EXEC_ON_ALL)
    async with (
        light_agents(stage.broker.url, stage.root, tmp_path, 100) as agents,
        Coordinator(stage.broker.url, topic_root=stage.root, connect_seconds=60) as coordinator,
    ):
        for agent in agents:
            await stage.client.presence(agent, online, "online")
        run = await coordinator.run(HookCall(hook, namespaces=frozenset({"shop"}), expect=100))
    assert run.verdict is Verdict.SUCCEEDED, run
    assert [each.result.outcome for each in run.targets].count("succeeded") == 100
    assert {each.target.pod_uid for each in run.targets} == {agent.uid for agent in agents}


async def test_the_agent_survives_a_broker_that_restarts(any_stage: Stage) -> None:
    agent, client = await any_stage.agent(), any_stage.client
    any_stage.broker.restart()
    await any_stage.until(lambda: len(agent.log("broker.connected")) >= 2, "connected again")
    await client.link.wait_up(20)
    assert (await client.run(agent, TRUE)).outcome == "succeeded", agent.tail()
