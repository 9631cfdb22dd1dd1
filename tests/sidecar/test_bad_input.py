"""Bytes that are no command: a named error in the log, an agent that stays up, and nothing that comes for ever."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.bus.link import Link
from agent.bus.types import Delivery
from agent.sidecar.app import Agent
from tests.agents import TRUE, AgentProcess, Client, Json, Stage, light_settings, until

DEEP = 100_000


def changed(client: Client, agent: AgentProcess, change: Callable[[Json], None]) -> bytes:
    """A good trigger's payload, changed as JSON."""
    event = json.loads(client.make(agent, TRUE).payload)
    change(event)
    return json.dumps(event).encode()


def in_text(client: Client, agent: AgentProcess, old: str, new: str) -> bytes:
    """A good trigger's payload, changed as text; `old` must be in it."""
    text = client.make(agent, TRUE).payload.decode()
    assert old in text
    return text.replace(old, new, 1).encode()


def action(event: Json, document: Json) -> None:
    event["data"]["action"] = document


#: name -> (payload, the error's type, what its text must have)
BAD: dict[str, tuple[Callable[[Client, AgentProcess], bytes], str, str]] = {
    "malformed JSON": (lambda *_: b'{"type": nonsense}', "MalformedMessage", "is not JSON"),
    "empty": (lambda *_: b"", "MalformedMessage", "is not JSON"),
    "truncated": (lambda c, a: c.make(a, TRUE).payload[:-40], "MalformedMessage", "is not JSON"),
    "invalid UTF-8": (lambda *_: b'{"type": "\xff\xfe"}', "MalformedMessage", "is not JSON"),
    "not an object": (lambda *_: b"[1, 2]", "MalformedMessage", "payload is a JSON list"),
    "unknown type": (
        lambda c, a: changed(c, a, lambda e: e.update(type="dev.podhook.dance.v1")),
        "UnknownType",
        "'dev.podhook.dance.v1'",
    ),
    "a reply": (
        lambda c, a: changed(c, a, lambda e: e.update(type="dev.podhook.outcome.v1")),
        "UnknownType",
        "'dev.podhook.outcome.v1'",
    ),
    "newer major version": (
        lambda c, a: changed(c, a, lambda e: e.update(type="dev.podhook.trigger.v2")),
        "UnknownType",
        "newer major version",
    ),
    "two actions": (
        lambda c, a: changed(c, a, lambda e: action(e, {**TRUE, "tcpSocket": {"port": 1}})),
        "invalid_action",
        "has 2 actions (exec, tcpSocket)",
    ),
    "port 70000": (
        lambda c, a: changed(c, a, lambda e: action(e, {"tcpSocket": {"port": 70000}})),
        "invalid_action",
        "data.action.tcpSocket.port",
    ),
    "missing command": (
        lambda c, a: changed(c, a, lambda e: action(e, {"exec": {}})),
        "invalid_action",
        "data.action.exec.command",
    ),
    "unknown field of an action": (
        lambda c, a: changed(c, a, lambda e: action(e, {"exec": {"command": ["/bin/true"], "sudo": True}})),
        "invalid_action",
        "unknown field",
    ),
    "no action": (lambda c, a: changed(c, a, lambda e: action(e, {})), "invalid_action", "data.action"),
    "deep nesting": (lambda *_: b"[" * DEEP + b"]" * DEEP, "MalformedMessage", "is not JSON"),
    "deep nesting within a trigger": (
        lambda c, a: in_text(c, a, '"attempt":1', '"deep":' + "[" * 1000 + "]" * 1000 + ',"attempt":1'),
        "MalformedMessage",
        "",
    ),
    "an integer of 100 digits": (
        lambda c, a: in_text(c, a, '"attempt":1', '"attempt":' + "9" * 100),
        "MalformedMessage",
        "data.attempt",
    ),
    "a timeout of 100 digits": (
        lambda c, a: in_text(c, a, '"timeout_seconds":30', '"timeout_seconds":' + "9" * 100),
        "invalid_action",
        "data.timeout_seconds",
    ),
    "a lone surrogate": (
        lambda c, a: in_text(c, a, '"/bin/true"', '"/bin/\\ud800"'),
        "MalformedMessage",
        "is not JSON",
    ),
    "a lone surrogate in the type": (lambda *_: b'{"type": "\\udfff"}', "MalformedMessage", "is not JSON"),
    "a NUL in a command": (
        lambda c, a: in_text(c, a, '"/bin/true"', '"/bin/\\u0000"'),
        "invalid_action",
        "data.action.exec.command.0",
    ),
    "a year 9999": (
        lambda c, a: changed(c, a, lambda e: e["data"].update(deadline="9999-12-31T23:59:59Z")),
        "invalid_action",
        "data.deadline",
    ),
    "a time without an offset": (
        lambda c, a: changed(c, a, lambda e: e["data"].update(deadline="2026-03-01T00:00:00")),
        "invalid_action",
        "data.deadline",
    ),
    "a run id that is a topic": (
        lambda c, a: changed(c, a, lambda e: e["data"].update(run_id="../#")),
        "MalformedMessage",
        "data.run_id",
    ),
    "a coordinator that is a wildcard": (
        lambda c, a: changed(c, a, lambda e: e["data"].update(coordinator="+")),
        "MalformedMessage",
        "data.coordinator",
    ),
}
#: Larger than an agent takes. With MQTT 5 the broker knows that and keeps it to itself; with 3.1.1 the agent says so.
TOO_LARGE = {
    "900 KB": (lambda *_: b"x" * 900_000, "MalformedMessage", "is too large"),
    "just over the limit": (lambda *_: b"x" * (256 * 1024 + 1), "MalformedMessage", "the limit is 262144"),
}


@pytest.mark.broker
@pytest.mark.processes
@pytest.mark.parametrize("name", [*BAD, *TOO_LARGE])
async def test_bad_input_is_named_and_a_good_trigger_works_right_after(stage: Stage, name: str) -> None:
    agent, client = await stage.agent(BROKER_PROTOCOL="3.1.1" if name in TOO_LARGE else "auto"), stage.client
    make, error, text = (BAD | TOO_LARGE)[name]
    await client.send_bytes(agent, make(client, agent))
    await client.works(agent)
    assert agent.alive, f"{name} ended the agent\n{agent.tail()}"
    refused = agent.log("command.refused")
    codes = [each["code"].replace("InvalidTrigger", "MalformedMessage") for each in refused]
    assert codes == [error], f"{refused}\n{agent.tail()}"
    assert text in refused[0]["error"], f"{refused}\n{agent.tail()}"
    assert len(refused[0]["error"]) < 1000, "the log repeats the payload"
    assert agent.log("command.crashed") == [], agent.tail()


@pytest.mark.broker
@pytest.mark.processes
async def test_a_trigger_that_cannot_be_understood_is_answered_so_that_nobody_waits_for_silence(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = client.make(agent, TRUE)
    newer = changed(client, agent, lambda e: action(e, {"exec": {"command": ["/bin/true"], "nice": 5}}))
    newer_id = json.loads(newer)["data"]["run_id"]
    payload = newer.replace(newer_id.encode(), sent.run_id.encode())
    await client.send_bytes(agent, payload)
    outcome = await client.outcome(sent)
    assert (outcome.outcome, outcome.error and outcome.error.code) == ("rejected", "invalid_action"), agent.tail()
    assert "data.action.exec.nice" in (outcome.error.message if outcome.error else "")
    assert outcome.trigger_hash == hashlib.sha256(payload).hexdigest(), "the answer speaks of other bytes"


@pytest.mark.broker
@pytest.mark.processes
async def test_bad_input_does_not_come_for_ever(any_stage: Stage) -> None:
    """All of it at once; then the agent dies, and nothing of it is delivered to the next one."""
    agent, client = await any_stage.agent(), any_stage.client
    told = len(BAD | TOO_LARGE) if str(any_stage.broker) == "nats-server" else len(BAD)
    for number, (make, _, _) in enumerate(TOO_LARGE.values(), start=1):
        await client.send_bytes(agent, make(client, agent))  # it ends connections, and what is under way comes again
        if told > len(BAD):  # mosquitto passes none of them on
            await until(lambda so_far=number: len(agent.log("command.refused")) == so_far, "it was read away")
    for make, _, _ in BAD.values():
        await client.send_bytes(agent, make(client, agent))
    await client.works(agent)
    assert len(agent.log("command.refused")) == told, agent.tail()
    agent.kill()
    await any_stage.start(agent)
    await client.works(agent)
    assert len(agent.log("command.refused")) == told, f"delivered again\n{agent.tail()}"
    assert len(agent.log("agent.starting")) == 2


# -- anything at all


@dataclass
class FakeDelivery(Delivery):
    """Counts its acknowledgements."""

    acknowledged: int = 0

    def ack(self) -> None:
        self.acknowledged += 1


class Handler:
    """An agent's handler of commands, with a real journal and no broker."""

    def __init__(self, directory: Path) -> None:
        self._runner = asyncio.Runner()
        self.settings = light_settings("mqtt://127.0.0.1:9", "t-bad-input", directory, "db-0")
        self.agent = self._runner.run(self._make())

    async def _make(self) -> Agent:
        agent = Agent(self.settings)
        await agent._open_journal()
        return agent

    async def _handle(self, delivery: Delivery) -> None:
        link = Link(self.settings.parsed_broker(), self.agent._link_options())
        async with asyncio.TaskGroup() as group:
            attempts, _ = self.agent._wire(link, group)
            await self.agent._command(delivery, attempts)

    def give(self, payload: bytes, oversize_bytes: int = 0) -> None:
        """Hand it a payload: it must come back without an error, acknowledged once."""
        delivery = FakeDelivery("t-bad-input/commands", payload, 1, retain=False, oversize_bytes=oversize_bytes)
        self._runner.run(self._handle(delivery))
        assert delivery.acknowledged == 1, f"acknowledged {delivery.acknowledged} times: {payload!r}"

    def close(self) -> None:
        self._runner.run(self.agent._journal.close())
        self._runner.close()


@contextmanager
def handler_in(directory: Path) -> Iterator[Handler]:
    handler = Handler(directory)
    try:
        yield handler
    finally:
        handler.close()


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Handler]:
    with handler_in(tmp_path_factory.mktemp("handler")) as made:
        yield made


FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@FAST
@given(payload=st.binary(max_size=2000))
def test_any_bytes_are_acknowledged_and_never_raise(handler: Handler, payload: bytes) -> None:
    handler.give(payload)


@FAST
@given(document=JSON)
def test_any_json_is_acknowledged_and_never_raises(handler: Handler, document: Any) -> None:
    handler.give(json.dumps(document).encode())


def command(kind: str, uid: str) -> Json:
    """A good command of each kind; its trigger names a container that is not there, so nothing ever runs."""
    at, later = "2026-03-01T00:00:00Z", "2026-03-01T00:05:00Z"
    run_id = "01890a5d-ac96-774b-bcce-b302099a8057"
    of_attempt = {"run_id": run_id, "attempt": 1, "pod_uid": uid, "deadline": later}
    data: dict[str, Json] = {
        "trigger": {
            **of_attempt,
            "coordinator": "c",
            "targets": {"count": 1, "hash": "sha256:" + "0" * 64},
            "action": {**TRUE, "containerName": "nobody"},
            "issued_at": at,
        },
        "go": {**of_attempt, "start_by": later},
        "cancel": of_attempt,
        "renew": {**of_attempt, "ttl_seconds": 5},
        "release": of_attempt,
        "query": {**of_attempt, "query_id": run_id, "coordinator": "c", "settle": True, "issued_at": at},
    }
    return {
        "specversion": "1.0",
        "id": "1",
        "source": "/t",
        "type": f"dev.podhook.{kind}.v1",
        "time": at,
        "data": data[kind],
    }


@settings(FAST, max_examples=300)
@given(kind=st.sampled_from(["trigger", "go", "cancel", "renew", "release", "query"]), data=st.data())
def test_any_command_with_a_part_replaced_is_acknowledged(handler: Handler, kind: str, data: st.DataObject) -> None:
    event = command(kind, handler.settings.pod_uid)
    part = data.draw(st.sampled_from([event, event["data"]]))
    name = data.draw(st.sampled_from(sorted(part)))
    if data.draw(st.booleans()):
        part[name] = data.draw(JSON)
    else:
        del part[name]
    payload = json.dumps(event).encode()
    handler.give(payload[: data.draw(st.integers(0, len(payload)))] if data.draw(st.booleans()) else payload)


def test_a_body_that_was_thrown_away_is_acknowledged(handler: Handler) -> None:
    handler.give(b"", oversize_bytes=10_000_000)


def test_a_fault_of_our_own_is_acknowledged_too(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("agent.sidecar.app.open_command", broken)
    handler.give(b"{}")
