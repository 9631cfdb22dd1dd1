"""Bytes to commands: whatever they are, a command comes out, or an error that names what is wrong."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.contract.errors import BadInput, MalformedMessage, UnknownType
from agent.contract.messages import COMMANDS, MAX_COMMAND_BYTES
from agent.pod.identity import Identity
from agent.sidecar import inbox
from agent.sidecar.inbox import Command
from agent.sidecar.trust import ANYBODY, Trust
from tests.contract.samples import QUERY, SAMPLES, sealed

IDENTITY = Identity("shop", "db-0", "uid")
ANYBODY_IS_TRUSTED = Trust("shop", None, allow_unsigned=True)
NOW = datetime(2026, 11, 22, tzinfo=UTC)
TRIGGER = sealed(SAMPLES["trigger.v1-exec"])
COMMAND_SAMPLES = [name for name, message in SAMPLES.items() if isinstance(message, COMMANDS)]
OTHER_SAMPLES = [name for name in SAMPLES if name not in COMMAND_SAMPLES]


def open_command(payload: bytes, **more: int) -> Command:
    return inbox.open_command(payload, ANYBODY_IS_TRUSTED, IDENTITY, NOW, **more)


def altered(change) -> bytes:
    """The trigger with something changed in its JSON."""
    event = json.loads(TRIGGER)
    change(event)
    return json.dumps(event).encode()


def data(**fields: Any) -> bytes:
    return altered(lambda event: event["data"].update(fields))


def action(**fields: Any) -> bytes:
    return data(action=fields, guard=None)


def refused(payload: bytes, kind: type[BadInput] = MalformedMessage, **more: int) -> str:
    with pytest.raises(BadInput) as caught:
        open_command(payload, **more)
    assert isinstance(caught.value, kind)
    return str(caught.value)


@pytest.mark.parametrize("name", COMMAND_SAMPLES)
def test_every_command_is_opened_and_known_by_the_hash_of_its_bytes(name):
    payload = sealed(SAMPLES[name])
    assert open_command(payload) == Command(
        SAMPLES[name], hashlib.sha256(payload).hexdigest(), QUERY, "/agents/shop/db-0", ANYBODY
    )


def test_the_same_command_in_other_bytes_has_another_hash():
    assert open_command(TRIGGER).hash != open_command(TRIGGER + b" ").hash


@pytest.mark.parametrize("name", OTHER_SAMPLES)
def test_what_agents_say_is_no_command(name):
    message = refused(sealed(SAMPLES[name]), UnknownType)
    assert message.startswith(f"unknown message type '{SAMPLES[name].TYPE}' (known: dev.podhook.cancel.v1, ")


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "payload of 0 bytes is not JSON: "),
        (TRIGGER[:-1], f"payload of {len(TRIGGER) - 1} bytes is not JSON: "),
        (TRIGGER[: len(TRIGGER) // 2], "bytes is not JSON: "),
        (TRIGGER + b"}", "is not JSON: Extra data"),
        (b"\xff\xfe{}", "payload of 4 bytes is not JSON: "),
        (TRIGGER.replace(b"nightly", b"night\xffy"), "is not JSON: not UTF-8: byte 288 is 0xff"),
        (b'{"type": NaN}', "is not JSON: "),
        (b"[" * 100_000, "payload of 100000 bytes is not JSON: nested deeper than 64"),
        (b"null", "payload is a JSON NoneType, not an object with CloudEvents attributes"),
        (b"[]", "payload is a JSON list, not an object with CloudEvents attributes"),
        (b'"trigger"', "payload is a JSON str, not an object"),
        (b"{}", "payload has no CloudEvents attribute 'type'"),
        (b'{"type": 1}', "payload has no CloudEvents attribute 'type'"),
        (altered(lambda event: event.pop("id")), "dev.podhook.trigger.v1: id: Field required"),
        (altered(lambda event: event.pop("data")), "dev.podhook.trigger.v1: data: Field required"),
        (altered(lambda event: event.update(specversion="2.0")), "dev.podhook.trigger.v1: specversion: "),
        (altered(lambda event: event["data"].pop("deadline")), "dev.podhook.trigger.v1: data.deadline: Field required"),
        (data(run_id="1"), "data.run_id: '1' is not a UUID in lower case"),
        (data(attempt=0), "data.attempt: Input should be greater than or equal to 1"),
        (data(attempt="1"), "data.attempt: Input should be a valid integer"),
        (
            TRIGGER.replace(b'"attempt":1', b'"attempt":1' + b"0" * 5000),
            "is not JSON: a number of 5001 digits; the limit is 4300",
        ),
        (TRIGGER.replace(b'"attempt":1', b'"attempt":1' + b"0" * 4000), "data.attempt: "),
        (data(timeout_seconds=0), "data.timeout_seconds: Input should be greater than 0"),
        (data(coordinator="a/b"), "data.coordinator: 'a/b' cannot be a topic level"),
        (data(deadline="2026-03-01T02:30:00"), "data.deadline: Input should have timezone info"),
        (data(deadline="9999-12-31T23:59:59Z"), "data.deadline: the year 9999 is out of range"),
        (data(action=None), "data: give either an inline action or the name of a catalogue hook"),
        (
            action(exec={"command": ["true"]}, tcpSocket={"port": 1}),
            "data.action: has 2 actions (exec, tcpSocket); a hook runs exactly one: split it into 2 hooks",
        ),
        (action(), "data.action: has no action; give one of exec, httpGet, httpPost, tcpSocket"),
        (action(tcpSocket={"port": 70000}), "data.action.tcpSocket.port: is not a port; the range is 1 to 65535"),
        (action(exec={}), "data.action.exec.command: Field required"),
        (action(exec={"command": []}), "data.action.exec.command: List should have at least 1 item"),
        (action(exec={"command": ["a\0b"]}), "data.action.exec.command.0: has a NUL character"),
        (action(exec={"command": ["true"], "usr": "root"}), "data.action.exec.usr: unknown field"),
    ],
)
def test_what_is_wrong_is_named(payload, says):
    assert says in refused(payload)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dev.podhook.explode.v1", "unknown message type 'dev.podhook.explode.v1' (known: dev.podhook.cancel.v1, "),
        (
            "dev.podhook.trigger.v2",
            (
                "message type 'dev.podhook.trigger.v2' is of a newer major version than this podhook speaks "
                "(dev.podhook.trigger.v1); upgrade this podhook"
            ),
        ),
        ("dev.podhook.trigger.v0", "is of an older major version"),
        ("", "unknown message type ''"),
        ("x" * 10_000, "unknown message type 'xxx"),
    ],
)
def test_a_type_that_is_not_spoken_is_named(name, says):
    message = refused(altered(lambda event: event.update(type=name)), UnknownType)
    assert says in message
    assert len(message) < 1000


def test_unknown_fields_of_a_newer_sender_are_no_reason_to_refuse():
    payload = altered(lambda event: (event.update(newer=[1]), event["data"].update(newer={"a": None})))
    assert open_command(payload).data.run_id == SAMPLES["trigger.v1-exec"].run_id


def test_a_payload_over_the_limit_is_refused_before_it_is_read():
    assert refused(b"x" * 10_000_000) == (f"payload of 10000000 bytes is too large; the limit is {MAX_COMMAND_BYTES}")
    assert refused(b"", oversize_bytes=10_000_000) == (
        f"payload is too large: the packet has 10000000 bytes; the limit is {MAX_COMMAND_BYTES}"
    )


def test_a_payload_at_the_limit_is_read():
    assert open_command(TRIGGER + b" " * (MAX_COMMAND_BYTES - len(TRIGGER))).data == SAMPLES["trigger.v1-exec"]
    assert "too large" in refused(TRIGGER + b" " * (MAX_COMMAND_BYTES - len(TRIGGER) + 1))


def test_an_error_is_short_whatever_was_sent():
    many = {f"wrong{number}" * 50: number for number in range(1000)}
    assert len(refused(action(exec={"command": ["true"], **many}))) < 1000


def opened_or_named(payload: bytes) -> None:
    try:
        command = open_command(payload)
    except BadInput as error:
        message = str(error)
        assert message.encode(), "the error cannot be written down"
        assert len(message) < 1000
    else:
        assert isinstance(command.data, COMMANDS)


@given(st.binary(max_size=300))
@example(b'{"type":"\\ud800"}')
@example(b"\x00" * 64)
def test_arbitrary_bytes_are_a_command_or_bad_input(payload):
    opened_or_named(payload)


@given(st.integers(0, len(TRIGGER) - 1), st.binary(max_size=4), st.integers(0, 4))
def test_a_damaged_trigger_is_a_command_or_bad_input(at, inserted, dropped):
    opened_or_named(TRIGGER[:at] + inserted + TRIGGER[at + dropped :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, inner in items for place in places(inner, (*path, key))]


@settings(max_examples=300)
@given(st.sampled_from(COMMAND_SAMPLES), st.data())
def test_any_json_in_any_field_is_a_command_or_bad_input(name, drawn):
    event = json.loads(sealed(SAMPLES[name]))
    *path, last = drawn.draw(st.sampled_from(places(event)))
    inner = event
    for key in path:
        inner = inner[key]
    inner[last] = drawn.draw(JSON)
    opened_or_named(json.dumps(event).encode())
