"""Real agents and real coordinators through the shipped brokers, over TLS: all that podhook needs is allowed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.bus.types import Publication
from agent.contract.topics import Topics
from tests.agents import AgentProcess, until
from tests.broker.raw import Raw
from tests.broker.shipped import Shipped, podhook
from tests.broker.stage import link
from tests.broker.test_certificates import certified
from tests.brokers import poll

__all__ = ["certified"]
pytestmark = [pytest.mark.broker, pytest.mark.processes]

HOOK = """\
action: {exec: {command: [/bin/sh, -c, "echo quiet; echo $PODHOOK_RUN_ID"]}}
executor: {type: Pod, pod: {selector: app=db, strategy: ExecuteOnAll}}
"""
#: What an agent's log must not have: a broker that said no.
BAD_EVENTS = ("presence.refused_by_broker", "outcome.refused_by_broker", "command.refused", "command.crashed")


def make_agent(home: Path, namespace: str, pod: str, **settings: str) -> AgentProcess:
    made = AgentProcess(home / f"{namespace}-{pod}", settings.pop("BROKER"), "podhook", namespace, pod, **settings)
    made.settings["CONTAINER"] = "app"
    return made


@pytest.fixture
async def agents(shipped: Shipped, tmp_path: Path) -> AsyncIterator[dict[str, AgentProcess]]:
    """An agent in each namespace, each with its namespace's credentials."""
    made = {each: make_agent(tmp_path, each, "db-0", **shipped.settings(each)) for each in ("shop", "billing")}
    for each in made.values():
        each.start()
        await each.logged("broker.connected")
    yield made
    for each in made.values():
        if each.alive:
            await each.terminate()
        print(each.tail())


def as_coordinator(broker: Shipped, name: str) -> dict[str, str]:
    """The environment of a coordinator's command."""
    return {f"PODHOOK_{key}": value for key, value in broker.settings(f"coordinator_{name}").items()}


def run_hook(directory: Path, env: dict[str, str], *options: str, code: int = 0) -> list[dict[str, object]]:
    """`podhook run`, as JSON."""
    hook = directory / "hook.yaml"
    hook.write_text(HOOK, encoding="utf-8")
    done = podhook("run", hook, "-o", "json", "--start-within", "5s", *options, env=env, code=code)
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_a_hook_runs_through_the_shipped_broker(shipped, agents, tmp_path):
    nightly = as_coordinator(shipped, "nightly")
    await presence_is_there(nightly, ["billing", "shop"])
    (run,) = run_hook(tmp_path, nightly, "-n", "shop", "--expect", "1")
    assert run["verdict"] == "succeeded"
    run_id = str(run["run_id"])
    assert run_id in podhook("query", run_id, "-n", "shop", "-o", "json", env=nightly).stdout
    assert run_id in podhook("runs", "-n", "shop", "-o", "json", env=nightly).stdout
    podhook("cancel", run_id, "-n", "shop", env=nightly)  # it may not ask the others
    (both,) = run_hook(tmp_path, as_coordinator(shipped, "everywhere"), "-A", "--expect", "2")
    assert both["verdict"] == "succeeded"
    podhook("check", "--broker", shipped.url, env=nightly)
    for each in agents.values():
        assert [line for event in BAD_EVENTS for line in each.log(event)] == [], each.tail()
        assert await each.terminate() == 0
    await presence_is_there(nightly, [])


async def presence_is_there(env: dict[str, str], namespaces: list[str]) -> None:
    """Exactly the agents of these namespaces are online."""

    def online() -> list[str]:
        lines = podhook("agents", "-o", "json", env=env).stdout.splitlines()
        found = [each for line in lines for each in (json.loads(line) if line.startswith("[") else [json.loads(line)])]
        return sorted(each["namespace"] for each in found if each["state"] == "online")

    await until(lambda: online() == namespaces, f"online are {namespaces}", 60)


@pytest.mark.parametrize("shipped", ["mosquitto"], indirect=True)  # 3.1.1 has no refusal, and is waited for in vain
async def test_a_coordinator_of_one_namespace_is_told_that_it_may_not_command_another(shipped, agents, tmp_path):
    monthly = as_coordinator(shipped, "monthly")
    (run,) = run_hook(tmp_path, monthly, "-n", "shop", "--timeout", "1s", code=1)
    assert run["verdict"] == "failed"
    assert "access rules" in json.dumps(run)
    assert agents["shop"].log("attempt.started") == []
    (good,) = run_hook(tmp_path, monthly, "-n", "billing", "--expect", "1")
    assert good["verdict"] == "succeeded"


async def test_the_name_of_an_agents_session_is_nowhere_to_be_read(shipped, agents, tmp_path):
    """What guards a session where clients have passwords: nothing on the broker's topics says its client id."""
    eyes = []
    for user in ("coordinator_everywhere", "coordinator_nightly", "billing", "shop"):
        raw = Raw(shipped.as_user(user, shipped.protocols[0]))
        raw.subscribe(
            "#", "$SYS/#", Topics().presences(), f"podhook/v1/runs/{user}/#", "podhook/v1/agents/shop/+/commands"
        )
        eyes.append(raw)
    run_hook(tmp_path, as_coordinator(shipped, "everywhere"), "-A", "--expect", "2")
    agents["shop"].kill()  # its will, too
    agents["shop"].start()
    await until(lambda: len(agents["shop"].log("broker.connected")) == 2, "it is back", agents=[agents["shop"]])
    run_hook(tmp_path, as_coordinator(shipped, "nightly"), "-n", "shop", "--expect", "1")
    suffix = next(iter(agents["shop"].state.glob("*.lock"))).read_text()
    assert len(suffix) == 12, "where the journal keeps the end of the client id"
    said = [(topic, body) for each in eyes for topic, body, _ in each.messages]
    assert len(said) > 10
    assert [topic for topic, body in said if suffix.encode() in body or suffix in topic] == []
    assert suffix not in agents["shop"].log_file.read_text()
    for each in eyes:
        each.end()


# -- credentials that change


async def test_a_password_is_changed_while_everybody_runs(shipped, agents, tmp_path):
    shop = agents["shop"]
    old = shipped.as_user("shop", shipped.protocols[0]).credentials()[1]
    shipped.issue("shop")
    assert shipped.as_user("shop").credentials()[1] != old
    shipped.reload()
    await until(lambda: len(shop.log("broker.connected")) == 2, "the agent comes back by itself", agents=[shop])
    assert len(shop.log("agent.starting")) == 1
    (run,) = run_hook(tmp_path, as_coordinator(shipped, "nightly"), "-n", "shop", "--expect", "1")
    assert run["verdict"] == "succeeded"


async def test_a_user_that_is_removed_is_cut_and_stays_out(shipped, tmp_path):
    shipped.issue("gone")
    shipped.reload()
    agent = make_agent(tmp_path, "gone", "db-0", **shipped.settings("gone"))
    agent.start()
    try:
        await agent.logged("broker.connected")
        shipped.issue("gone", "--remove")
        shipped.reload()
        await until(
            lambda: any("refused the connection" in each["reason"] for each in agent.log("broker.disconnected")),
            "the agent is told no",
            agents=[agent],
        )
        assert agent.alive, "a sidecar stays up"
    finally:
        agent.kill()
        async with link(
            shipped.as_user("coordinator_everywhere")
        ) as pruning:  # nobody else may clear what it left behind
            await pruning.wait_up(20)
            await pruning.publish(Publication(Topics().presence("gone", "db-0"), b"", retain=True))


async def test_rules_change_and_the_password_stays(shipped, agents, tmp_path):
    shipped.issue("yearly", "--coordinator", "-n", "billing")
    shipped.reload()
    yearly = as_coordinator(shipped, "yearly")
    (run,) = run_hook(tmp_path, yearly, "-n", "billing", "--expect", "1")
    assert run["verdict"] == "succeeded"
    shipped.issue("yearly", "--coordinator", "-n", "shop", "--keep-password")
    shipped.reload()
    (run,) = run_hook(tmp_path, yearly, "-n", "shop", "--expect", "1")
    assert run["verdict"] == "succeeded"
    users = ("billing", "coordinator_yearly", "coordinator_monthly")
    billing, refused, allowed = (Raw(shipped.as_user(user, shipped.protocols[0])) for user in users)
    topic = Topics().commands("billing", "x")
    billing.subscribe(topic)
    refused.publish(topic, b"no")
    allowed.publish(topic, b"yes")
    assert billing.heard(b"yes")
    assert [body for _, body, _ in billing.messages] == [b"yes"]
    for each in (billing, refused, allowed):
        each.end()


# -- certificates


async def test_a_hook_runs_with_certificates_only(certified, tmp_path):
    here = certified.authority.directory

    def files(user: str) -> dict[str, str]:
        return {
            "BROKER_CA_FILE": str(certified.authority.ca),
            "BROKER_CERT_FILE": str(here / f"{user}.crt"),
            "BROKER_KEY_FILE": str(here / f"{user}.key"),
        }

    agent = make_agent(tmp_path, "shop", "db-1", BROKER=certified.url, **files("shop.db-1"))
    agent.start()
    try:
        await agent.logged("broker.connected")
        url = certified.url.replace("mqtts://", "mqtts://coordinator_nightly@")
        env = {f"PODHOOK_{key}": value for key, value in {"BROKER": url, **files("coordinator_nightly")}.items()}
        (run,) = run_hook(tmp_path, env, "-n", "shop", "--expect", "1")
        assert run["verdict"] == "succeeded"
        os.kill(certified.pid, signal.SIGHUP)
        poll(lambda: agent.alive, "the agent lives")
        assert [line for event in BAD_EVENTS for line in agent.log(event)] == [], agent.tail()
        assert "problem" not in {each["event"] for each in agent.log()}, agent.tail()
    finally:
        await agent.terminate()
