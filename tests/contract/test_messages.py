"""Messages: what does not fit is refused by name, and opening bytes raises two errors and no others."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.contract.errors import MalformedMessage, UnknownType
from agent.contract.events import Kinds, open_event
from agent.contract.messages import (
    COMMANDS,
    MESSAGES,
    REPLIES,
    Go,
    OutcomeMessage,
    Presence,
    Query,
    Targets,
    Trigger,
)
from tests.contract.samples import RUN, SAMPLES, TARGETS, UID, sealed

EVERYTHING = Kinds(frozenset(MESSAGES))
LIMIT_BYTES = 256 * 1024
TRIGGER = sealed(SAMPLES["trigger.v1-exec"])


def opened(payload, kinds=EVERYTHING, limit_bytes=LIMIT_BYTES):
    return open_event(payload, kinds, limit_bytes=limit_bytes)


def refused(payload, kinds=EVERYTHING):
    with pytest.raises(MalformedMessage) as caught:
        opened(payload if isinstance(payload, bytes) else json.dumps(payload).encode(), kinds)
    return str(caught.value)


def event(name, **data):
    """A sample's event, with other data."""
    document = json.loads(sealed(SAMPLES[name]))
    document["data"].update(data)
    return document


# The envelope.


def test_an_opened_event_says_who_when_and_what():
    trigger = opened(TRIGGER)
    assert (trigger.specversion, trigger.source, trigger.type) == ("1.0", "/agents/shop/db-0", Trigger.TYPE)
    assert trigger.data == SAMPLES["trigger.v1-exec"]
    assert trigger.data.trigger_id == f"{RUN}/1"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "payload of 0 bytes is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"{", "is not JSON"),
        (b"{} {}", "is not JSON"),
        (b'{"a": NaN}', "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON"),
        (b"[" * 10_000, "is not JSON"),
        (b"9" * 10_000, "is not JSON"),
        (b"[]", "payload is a JSON list, not an object"),
        (b"null", "payload is a JSON NoneType, not an object"),
        (b"{}", "payload has no CloudEvents attribute 'type'"),
        (b'{"type": 5}', "payload has no CloudEvents attribute 'type'"),
        (
            b'{"type": "dev.podhook.go.v1"}',
            "dev.podhook.go.v1: specversion: Field required; id: Field required",
        ),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_is_no_event_is_refused_in_words(payload, message):
    assert message in refused(payload)


def test_a_payload_that_is_too_large_is_not_even_parsed():
    with pytest.raises(MalformedMessage, match="payload of 11 bytes is too large; the limit is 10"):
        opened(b"not JSON :(", limit_bytes=10)
    assert opened(TRIGGER, limit_bytes=len(TRIGGER))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"specversion": "2.0"}, "specversion"),
        ({"id": ""}, "id"),
        ({"source": "x" * 1025}, "source"),
        ({"time": "2026-03-01T02:30:00"}, "time"),
        ({"time": 1772332200}, "time"),
        ({"datacontenttype": "text/plain"}, "datacontenttype"),
        ({"data": None}, "data"),
        ({"data": "x"}, "data"),
    ],
)
def test_a_broken_envelope_is_refused_at_its_attribute(change, place):
    assert f"{Trigger.TYPE}: {place}: " in refused({**json.loads(TRIGGER), **change})


def test_a_reader_refuses_what_it_does_not_read_by_name():
    with pytest.raises(
        UnknownType, match=r"unknown message type 'dev.podhook.trigger.v1' \(known: dev.podhook.go.v1\)"
    ):
        opened(TRIGGER, Kinds.of(Go))
    with pytest.raises(UnknownType, match=r"unknown message type 'com\.example\.other'"):
        opened(b'{"type": "com.example.other"}')


def test_an_older_major_version_asks_for_the_senders_upgrade():
    with pytest.raises(UnknownType, match=r"an older major version .*; upgrade its sender"):
        opened(b'{"type": "dev.podhook.go.v0"}')


def test_every_message_is_a_command_a_reply_or_presence():
    assert set(MESSAGES.values()) == {*COMMANDS, *REPLIES, Presence}
    assert len(MESSAGES) == len(COMMANDS) + len(REPLIES) + 1
    assert all(name.startswith("dev.podhook.") and name.endswith(".v1") for name in MESSAGES)


# Their fields.


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("trigger.v1-exec", {"run_id": RUN.upper()}, "data.run_id"),
        ("trigger.v1-exec", {"run_id": RUN + "\n"}, "data.run_id"),
        ("trigger.v1-exec", {"attempt": 0}, "data.attempt"),
        ("trigger.v1-exec", {"attempt": 1001}, "data.attempt"),
        ("trigger.v1-exec", {"attempt": "1"}, "data.attempt"),
        ("trigger.v1-exec", {"attempt": True}, "data.attempt"),
        ("trigger.v1-exec", {"coordinator": "a/b"}, "data.coordinator"),
        ("trigger.v1-exec", {"coordinator": "+"}, "data.coordinator"),
        ("trigger.v1-exec", {"pod_uid": ""}, "data.pod_uid"),
        ("trigger.v1-exec", {"timeout_seconds": 0}, "data.timeout_seconds"),
        ("trigger.v1-exec", {"timeout_seconds": 604801}, "data.timeout_seconds"),
        ("trigger.v1-exec", {"timeout_seconds": "5"}, "data.timeout_seconds"),
        ("trigger.v1-exec", {"issued_at": "2026-03-01T02:30:00"}, "data.issued_at"),
        ("trigger.v1-exec", {"deadline": "9999-12-31T23:59:59Z"}, "data.deadline"),
        ("trigger.v1-exec", {"deadline": "0001-01-01T00:00:00+23:00"}, "data.deadline"),
        ("trigger.v1-exec", {"deadline": 1772332200}, "data.deadline"),
        ("trigger.v1-exec", {"targets": {"count": 0, "hash": TARGETS.hash}}, "data.targets.count"),
        ("trigger.v1-exec", {"targets": {"count": 1, "hash": "sha256:x"}}, "data.targets.hash"),
        ("trigger.v1-exec", {"capture": {"limit_bytes": 65537}}, "data.capture.limit_bytes"),
        ("trigger.v1-exec", {"capture": {"limit_bytes": -1}}, "data.capture.limit_bytes"),
        ("trigger.v1-exec", {"guard": {"undo": {}, "ttl_seconds": 5}}, "data.guard.undo"),
        ("trigger.v1-exec", {"wait_for_go": "yes"}, "data.wait_for_go"),
        ("trigger.v1-exec", {"action": {"httpGet": {"port": "web"}}}, "data.action.httpGet.port"),
        ("trigger.v1-exec", {"hook": {"name": "freeze"}}, "data"),
        ("trigger.v1-exec", {"action": None}, "data"),
        ("renew.v1", {"ttl_seconds": -1}, "data.ttl_seconds"),
        ("heartbeat.v1", {"running_seconds": -1}, "data.running_seconds"),
        ("accepted.v1", {"namespace": "Shop"}, "data.namespace"),
        ("accepted.v1", {"pod": "db/0"}, "data.pod"),
        ("accepted.v1", {"trigger_hash": "AB" * 32}, "data.trigger_hash"),
        ("output.v1", {"stream": "stdin"}, "data.stream"),
        ("outcome.v1", {"outcome": "exploded"}, "data.outcome"),
        ("outcome.v1", {"duration_seconds": -1}, "data.duration_seconds"),
        ("outcome.v1", {"error": {"code": "", "message": ""}}, "data.error.code"),
        ("outcome.v1", {"error": {"code": "x", "message": "x" * 8193}}, "data.error.message"),
        ("outcome.v1", {"stdout": {"total_bytes": -1}}, "data.stdout.total_bytes"),
        ("guard.v1", {"state": "sleeping"}, "data.state"),
        (
            "report.v1",
            {"attempts": [{"attempt": 1, "state": "lost", "trigger_hash": ""}]},
            "data.attempts.0.state",
        ),
        ("presence.v1", {"state": "away"}, "data.state"),
        ("query.v1", {"query_id": "x"}, "data.query_id"),
        ("query.v1", {"deadline": None}, "data"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_at_its_place(name, data, place):
    assert f": {place}: " in refused(event(name, **data))


@pytest.mark.parametrize("name", ["heartbeat.v1", "outcome.v1"])
def test_a_duration_is_a_number_that_can_be_written(name):
    field = "running_seconds" if name == "heartbeat.v1" else "duration_seconds"
    payload = json.dumps(event(name, **{field: 12345})).replace("12345", "1e999").encode()
    assert "1e999 is out of range" in refused(payload)


def test_several_reasons_come_in_one_message_of_bounded_length():
    document = event("trigger.v1-exec")
    document["data"] = {field: [] for field in Trigger.model_fields}
    message = refused(document)
    assert "run_id" in message
    assert "attempt" in message
    assert "more)" in message
    assert len(message) < 1000
    long = refused(event("trigger.v1-exec", action={"x" * 10_000: 1}))
    assert len(long) < 1000, "the message repeats the input without a bound"


def test_a_trigger_has_an_action_or_the_name_of_a_hook():
    both = event("trigger.v1-exec", hook={"name": "freeze"})
    assert "give either an inline action or the name of a catalogue hook" in refused(both)


def test_only_a_query_that_settles_needs_the_whole_attempt():
    assert Query(query_id=RUN, coordinator="c", run_id=RUN).settle is False
    message = refused(event("query.v1", pod_uid=None))
    assert "a query that settles names run_id, attempt, pod_uid, issued_at and deadline" in message


def test_the_hash_of_targets_knows_the_set_and_not_its_order():
    one, two = ("shop", "db-0", UID), ("shop", "db-1", "u2")
    assert Targets.of([one, two]) == Targets.of([two, one])
    assert Targets.of([one, two]).count == 2
    assert Targets.of([one]).hash != Targets.of([two]).hash
    # Fixed for good: a coordinator that resumes a run compares it with what agents have on disk.
    assert Targets.of([one]).hash == "sha256:66a81eccf5e523ef1fb56d01b74cd297a81b11a488db8098fc7e3102132b8c00"


# Whatever the bytes are.


def open_or_refuse(payload):
    message = ""
    try:
        opened(payload)
    except (MalformedMessage, UnknownType) as error:
        message = str(error)
    assert len(message) < 2000, "the message repeats the input without a bound"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary() | st.text().map(str.encode) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"type":"' + b"a" * 100_000 + b'"}')
@example(b'{"type":"dev.podhook.go.v1","type":"dev.podhook.renew.v1"}')
@example(b'{"a":' * 5000)
def test_any_bytes_are_an_event_or_one_of_two_errors(payload):
    open_or_refuse(payload)


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_a_damaged_payload_is_an_event_or_one_of_two_errors(name, data):
    payload = sealed(SAMPLES[name])
    start = data.draw(st.integers(0, len(payload)))
    insert = data.draw(st.binary(max_size=3) | st.sampled_from([b'"', b"{", b"[", b",", b"null", b"1e999", b"\\u0000"]))
    open_or_refuse(payload[:start] + insert + payload[start + data.draw(st.integers(0, 8)) :])


@given(st.sampled_from(sorted(SAMPLES)), JSON, st.data())
def test_any_value_in_any_field_is_an_event_or_one_of_two_errors(name, value, data):
    document = json.loads(sealed(SAMPLES[name]))
    field = data.draw(st.sampled_from(sorted(document["data"])))
    document["data"][field] = value
    open_or_refuse(json.dumps(document).encode())


@given(st.text(max_size=300), st.integers(0, 2**40), st.booleans())
def test_output_travels_unchanged_whatever_it_holds(text, total_bytes, truncated):
    stream = {"text": text, "total_bytes": total_bytes, "truncated": truncated}
    sample = SAMPLES["outcome.v1"]
    message = OutcomeMessage.model_validate({**sample.model_dump(), "stdout": stream})
    assert opened(sealed(message)).data == message
