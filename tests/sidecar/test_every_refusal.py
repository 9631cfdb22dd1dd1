"""Every refusal is `rejected`, names the rule that it breaks, and has a line in the audit. All of them, by their codes.

Agents without a process or a broker of their own: what they say is caught where it would leave.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.contract.actions import Action
from agent.contract.errors import UNVERIFIED, ErrorCode, JournalUnavailable
from agent.contract.events import seal
from agent.contract.messages import Cancel, CatalogueHook, Go, Guard, Ready, Trigger
from agent.contract.signing.envelope import Typ, sign
from agent.contract.signing.peeking import peek
from agent.journal import record
from tests.agents import PROJECT, TRUE, Json, until
from tests.contract.signing.keys import pair
from tests.security.test_addresses import Listener, redirect
from tests.sidecar.bench import Bench, bench

METADATA = "169.254.169.254"
POLICY = """
containers: {app: {commands: [{command: [/bin/true]}]}}
http: [{hosts: [127.0.0.1], ports: [%d], paths: [/begin]}]
tcp: [{hosts: [localhost], ports: [1]}]
catalogue: {freeze: {params: {db: {type: string, pattern: "[a-z]+"}}, action: {exec: {command: [/bin/true, "${db}"]}}}}
"""


# -- one way to each of them


async def unsigned(one: Bench) -> Trigger:
    trigger = one.trigger()
    return await one.refused(trigger, seal(trigger, source="/t", time=one.now(), event_id="1"))


async def bad_signature(one: Bench) -> Trigger:
    trigger = one.trigger()
    return await one.refused(trigger, one.signed(trigger)[:-8] + b"AAAAAAAA")


async def unknown_key(one: Bench) -> Trigger:
    trigger = one.trigger()
    return await one.refused(trigger, one.signed(trigger, "stranger"))


async def key_not_allowed(one: Bench) -> Trigger:
    trigger = one.trigger()
    return await one.refused(trigger, one.signed(trigger, "lab"))


async def wrong_audience(one: Bench) -> Trigger:
    trigger = one.trigger()
    return await one.refused(trigger, one.signed(trigger, audience="shop/db-1/x"))


async def key_just_trusted(one: Bench) -> Trigger:
    trigger = one.trigger()
    one.trust("late")
    return await one.refused(trigger, one.signed(trigger, "late"))


async def wrong_pod_uid(one: Bench) -> Trigger:
    trigger = one.trigger(pod_uid="another")
    return await one.refused(trigger, one.signed(trigger, audience="shop/db-0/another"))


async def id_reused(one: Bench) -> Trigger:
    trigger = one.trigger()
    await one.give(one.signed(trigger))
    await until(lambda: one.outcomes(trigger.run_id), "it ran")
    one.link.said.clear()
    return await one.refused(trigger.model_copy(update={"name": "other"}))


async def stale_attempt(one: Bench) -> Trigger:
    second = one.trigger(attempt=2)
    await one.give(one.signed(second))
    await until(lambda: one.outcomes(second.run_id), "it ran")
    one.link.said.clear()
    return await one.refused(second.model_copy(update={"attempt": 1}))


async def attempt_running(one: Bench) -> Trigger:
    first = one.trigger(wait_for_go=True)
    await one.give(one.signed(first))
    return await one.refused(first.model_copy(update={"attempt": 2}))


async def busy(one: Bench) -> Trigger:
    for _ in range(one.settings.max_concurrent):
        await one.give(one.signed(one.trigger(wait_for_go=True)))
    return await one.refused(one.trigger())


async def stopping(one: Bench) -> Trigger:
    one.attempts.stopping = True
    return await one.refused(one.trigger())


async def journal_unavailable(one: Bench) -> Trigger:
    one.agent._journal_failed(JournalUnavailable("no room on the disk"))
    return await one.refused(one.trigger())


async def journal_full(one: Bench) -> Trigger:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "MAX_ROWS", 0)
        return await one.refused(one.trigger())


async def expired_in_waiting(one: Bench) -> Trigger:
    """It was accepted, and no go came by its deadline."""
    return await one.refused(one.trigger(wait_for_go=True, deadline=0.05))


async def expired_by_a_late_go(one: Bench) -> Trigger:
    trigger = one.trigger(wait_for_go=True)
    await one.give(one.signed(trigger))
    pod_uid, past = one.settings.pod_uid, one.now() - timedelta(seconds=1)
    await one.give(one.signed(Go(run_id=trigger.run_id, attempt=1, pod_uid=pod_uid, start_by=past)))
    return trigger


async def stopped_in_waiting(one: Bench) -> Trigger:
    trigger = await one.refused(one.trigger(wait_for_go=True))
    await one.attempts.drain(0, 1)
    return trigger


async def redirected(one: Bench) -> Trigger:
    """The policy allows /begin; the answer leads to /latest."""
    async with Listener(redirect("307 Temporary Redirect", "/latest")).serving() as listener:
        path = one.directory / "policy.yaml"
        path.write_text(POLICY % listener.port, encoding="utf-8")
        one.agent._look_at_files()
        trigger = one.trigger({"httpGet": {"host": "127.0.0.1", "port": listener.port, "path": "/begin"}})
        await one.give(one.signed(trigger))
        await until(lambda: one.outcomes(trigger.run_id), "it ended")
        assert listener.asked == ["GET /begin HTTP/1.1"]
    return trigger


async def at_the_socket(one: Bench) -> Trigger:
    """A rule has the name; where it leads is known at the socket only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", (METADATA, 1))])
        trigger = await one.refused(one.trigger({"tcpSocket": {"host": "localhost", "port": 1}}))
        await until(lambda: one.outcomes(trigger.run_id), "it ended")
    return trigger


def of(code: str, action: Json | None = TRUE, **changes: Any) -> Case:
    """A trigger that is refused for what it says."""
    settings = {name: changes.pop(name) for name in ("policy", "secrets_dir") if name in changes}
    rule, container = changes.pop("rule", None), changes.pop("container", None)

    async def play(one: Bench) -> Trigger:
        return await one.refused(one.trigger(action, **changes))

    return Case(code, play, settings, rule, container)


@dataclass(frozen=True)
class Case:
    """`code` is what it comes out as; `rule`, `container`: what the audit names beside it. `late`: it began first."""

    code: str
    play: Callable[[Bench], Awaitable[Trigger]]
    settings: Json = field(default_factory=dict)
    rule: str | None = None
    container: str | None = None
    late: bool = False


AS_USER = {"exec": {"command": ["/bin/true"], "user": "mysql"}}
SECRET = {"exec": {"command": ["/bin/true"], "env": [{"name": "A", "valueFrom": {"file": "nobody"}}]}}
CALL = CatalogueHook(name="freeze", params={"db": "shop"})
CASES: dict[str, Case] = {
    "unsigned": Case("unsigned", unsigned),
    "signature": Case("bad_signature", bad_signature),
    "stranger's key": Case("unknown_key", unknown_key),
    "key of another namespace": Case("key_not_allowed", key_not_allowed),
    "audience": Case("wrong_audience", wrong_audience),
    "key trusted since": Case("key_just_trusted", key_just_trusted, container="app"),
    "pod uid": Case("wrong_pod_uid", wrong_pod_uid),
    "older than the journal": of("before_journal", issued=-300),
    "from the future": of("clock_skew", issued=60, deadline=120),
    "too late": of("expired", issued=-0.001, deadline=-0.001),
    "no go": Case("expired", expired_in_waiting, late=True),
    "a late go": Case("expired", expired_by_a_late_go, late=True),
    "deadline": of("deadline_too_far", deadline=1000),
    "other content": Case("id_reused", id_reused),
    "lower attempt": Case("stale_attempt", stale_attempt, container="app"),
    "another attempt": Case("attempt_running", attempt_running, container="app"),
    "busy": Case("busy", busy, {"max_concurrent": 1}, container="app"),
    "stopping": Case("stopping", stopping, container="app"),
    "stopped while it waits": Case("stopping", stopped_in_waiting, late=True),
    "broken journal": Case("journal_unavailable", journal_unavailable, container="app"),
    "full journal": Case("journal_full", journal_full, container="app"),
    "no such container": of("unknown_container", {**TRUE, "containerName": "mysq"}, container="mysq"),
    "container that cannot be entered": of("container_not_enterable", {**TRUE, "containerName": "mysql"}),
    "port's name": of("unknown_port", {"tcpSocket": {"port": "mysql"}, "containerName": "app"}),
    "no catalogue": of("unknown_hook", None, hook=CALL, rule="no policy"),
    "no such hook": of("unknown_hook", None, hook=CatalogueHook(name="x"), policy=POLICY % 1, rule="catalogue"),
    "parameters": of(
        "invalid_params",
        None,
        hook=CatalogueHook(name="freeze", params={"db": "X"}),
        policy=POLICY % 1,
        rule="catalogue.freeze",
    ),
    "policy: command": of(
        "policy_denied",
        {"exec": {"command": ["/bin/false"]}},
        policy=POLICY % 1,
        rule="containers.app.commands",
        container="app",
    ),
    "policy: timeout": of(
        "policy_denied", None, hook=CALL, policy=POLICY % 1 + "limits: {timeout: 5s}", rule="limits.timeout",
        container="app",
    ),
    "policy: request": of("policy_denied", {"httpGet": {"host": "h", "port": 1}}, policy=POLICY % 1, rule="http"),
    "policy: redirect": Case("policy_denied", redirected, {"policy": POLICY % 1}, rule="http", late=True),
    "broken policy": of("policy_unavailable", policy="nonsense: 1", rule="PODHOOK_POLICY"),
    "address": of("address_refused", {"tcpSocket": {"host": METADATA, "port": 80}}, rule="no policy"),
    "address at the socket": Case("address_refused", at_the_socket, {"policy": POLICY % 1}, rule="tcp[0]", late=True),
    "guard": of("unsupported", guard=Guard(undo=Action.model_validate(TRUE), ttl_seconds=60)),
    "user": of("unsupported", AS_USER),
    "secret": of("secret_unavailable", SECRET, container="app"),
}  # fmt: skip
#: What is said otherwise than by a trigger's refusal: each has a test of its own below.
ELSEWHERE = {"replayed", "invalid_action", "agent_restarted_before_start"}
#: Said by the coordinator, of its own Job: no agent refuses anything.
OF_A_JOB = {"job_refused"}


def documented() -> set[str]:
    """The codes that docs/errors.md has under `rejected`."""
    text = (PROJECT / "docs" / "errors.md").read_text(encoding="utf-8")
    section = text.split("\n## `rejected`")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE))


def test_there_is_a_way_to_each_code() -> None:
    assert {each.code for each in CASES.values()} | ELSEWHERE | OF_A_JOB == documented()
    source = (PROJECT / "agent" / "contract" / "errors.py").read_text(encoding="utf-8")
    block = source.split("# rejected: ")[1].split("# failed: ")[0]
    assert set(re.findall(r'= "([a-z_]+)"', block)) == documented(), "the enum and the document differ"


@pytest.mark.parametrize("name", CASES)
async def test_it_is_rejected_names_its_rule_and_is_audited(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    async with bench(tmp_path, **case.settings) as one:
        trigger = await case.play(one)
        await until(lambda: one.outcomes(trigger.run_id), "its outcome")
        (outcome,) = one.outcomes(trigger.run_id)
        assert outcome.error is not None
        assert (outcome.outcome, outcome.error.code, outcome.error.rule) == ("rejected", case.code, case.rule)
        assert len(outcome.error.message) > 20, "it does not say why"

        def lines() -> list[Json]:
            kind = {"audit": "outcome"} if case.late else {"audit": "decision", "decision": "refused"}
            ours = [each for each in one.audit() if each.get("run_id") == trigger.run_id]
            return [each for each in ours if kind.items() <= each.items() and each.get("command") != "go"]

        await until(lines, "its line in the audit")
        (line,) = lines()
        assert (line["code"], line.get("rule")) == (case.code, case.rule)
        assert line["reason"] == outcome.error.message[:500] + ("..." if len(outcome.error.message) > 500 else "")
        if case.late:
            assert line["outcome"] == "rejected"
            return
        vouched = case.code not in UNVERIFIED - {ErrorCode.WRONG_AUDIENCE}
        assert (line["key_id"] != "unsigned") == vouched, "a key is named that nobody vouched for, or none"
        if case.container is not None:
            assert line["container"] == case.container


async def test_a_copy_of_a_command_that_acted_is_audited(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        trigger = one.trigger(wait_for_go=True)
        cancel = Cancel(run_id=trigger.run_id, attempt=1, pod_uid=trigger.pod_uid, deadline=trigger.deadline)
        payload = one.signed(cancel)
        await one.give(payload)
        await one.give(payload)
        await until(lambda: len(one.audit()) == 2, "both are audited")
        again = one.audit()[1]
        assert (again["decision"], again["command"], again["code"]) == ("refused", "cancel", "replayed")
        assert again["key_id"] == pair("nightly").kid


async def test_a_trigger_that_cannot_be_understood_is_rejected_and_audited(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        trigger = one.trigger()
        said = peek(one.signed(trigger)).replace(b'"exec":', b'"dance":')
        await one.give(sign(said, pair("nightly"), Typ.COMMAND))
        await until(lambda: one.outcomes(trigger.run_id) and one.audit(), "it is told")
        (outcome,), (line,) = one.outcomes(trigger.run_id), one.audit()
        assert outcome.error is not None
        assert (outcome.outcome, outcome.error.code, line["code"]) == ("rejected", "invalid_action", "invalid_action")
        assert "dance" in line["reason"]


async def test_what_waited_for_go_while_the_agent_restarted_is_rejected_and_audited(tmp_path: Path) -> None:
    async with bench(tmp_path) as one:
        trigger = one.trigger(wait_for_go=True)
        await one.give(one.signed(trigger))
        await until(lambda: any(isinstance(each, Ready) for each in one.link.said), "it waits")
        left = [live.task for live in one.attempts._executions.live.values() if live.task is not None]
        for task in left:  # as SIGKILL does it
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    async with bench(tmp_path) as again:
        await again.outbox.flush()
        (outcome,) = again.outcomes(trigger.run_id)
        assert outcome.error is not None
        assert (outcome.outcome, outcome.error.code) == ("rejected", "agent_restarted_before_start")
        await until(lambda: [each for each in again.audit() if each["audit"] == "outcome"], "it is audited")
        [line] = [each for each in again.audit() if each["audit"] == "outcome"]
        assert (line["code"], line["recovered"]) == ("agent_restarted_before_start", True)
        assert "it did not run" in line["reason"]
