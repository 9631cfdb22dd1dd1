"""The wire format changes on purpose or not at all.

Each file in golden/ is one payload, laid out to be read in a diff; without the layout it is exactly the bytes
that are sent. Agents and coordinators of different versions live side by side: a change here must suit both.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from agent.contract.errors import MalformedMessage, UnknownType
from agent.contract.events import Kinds, open_event, seal
from agent.contract.messages import MESSAGES, Message
from tests.contract.samples import SAMPLES, sealed

GOLDEN = Path(__file__).parent / "golden"
HOW_TO_REGENERATE = "If that was meant: PODHOOK_GOLDEN=write pytest tests/contract/test_golden.py, and read the diff."
EVERYTHING = Kinds(frozenset(MESSAGES))
LIMIT_BYTES = 256 * 1024


def pretty(payload: bytes) -> str:
    """Lay a payload out for people; keys stay in their order."""
    return json.dumps(json.loads(payload), indent=2, ensure_ascii=False) + "\n"


def compact(text: str) -> bytes:
    """Take the layout away again: what is left are the bytes on the wire."""
    return json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False).encode()


def golden(name: str) -> str:
    path = GOLDEN / f"{name}.json"
    assert path.is_file(), f"{path.name} is missing. {HOW_TO_REGENERATE}"
    return path.read_text(encoding="utf-8")


def opened(payload: bytes):
    return open_event(payload, EVERYTHING, limit_bytes=LIMIT_BYTES)


def resealed(payload: bytes) -> bytes:
    event = opened(payload)
    return seal(event.data, source=event.source, time=event.time, event_id=event.id)


@pytest.fixture(scope="module", autouse=True)
def _regenerate_if_asked():
    if os.environ.get("PODHOOK_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        for path in GOLDEN.glob("*.json"):
            path.unlink()
        for name, message in SAMPLES.items():
            (GOLDEN / f"{name}.json").write_text(pretty(sealed(message)), encoding="utf-8")


@pytest.mark.parametrize("name", SAMPLES)
def test_the_wire_format_did_not_change(name):
    expected, actual = golden(name), pretty(sealed(SAMPLES[name]))
    diff = "".join(
        difflib.unified_diff(
            expected.splitlines(keepends=True),
            actual.splitlines(keepends=True),
            f"golden/{name}.json",
            "sent now",
        )
    )
    if diff:
        pytest.fail(f"the wire format of {name} changed:\n{diff}\n{HOW_TO_REGENERATE}", pytrace=False)
    sent = sealed(SAMPLES[name])
    if compact(expected) != sent:
        pytest.fail(
            f"the bytes of {name} changed:\n{compact(expected)!r}\n{sent!r}\n{HOW_TO_REGENERATE}",
            pytrace=False,
        )


@pytest.mark.parametrize("name", SAMPLES)
def test_what_was_sent_by_this_version_opens_and_means_the_same(name):
    payload = compact(golden(name))
    assert opened(payload).data == SAMPLES[name]
    assert resealed(payload) == payload, "reading it and sending it again does not give the same bytes"


def test_every_message_type_has_a_golden_file_and_no_file_is_left_over():
    assert {message.TYPE for message in SAMPLES.values()} == set(MESSAGES)
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(SAMPLES), HOW_TO_REGENERATE
    for name, message in SAMPLES.items():
        assert f"dev.podhook.{name.split('-')[0]}" == message.TYPE, f"{name}.json is named after another type"


def fields_set(value, seen):
    if isinstance(value, BaseModel):
        seen.setdefault(type(value), set()).update(n for n in type(value).model_fields if getattr(value, n) is not None)
        for name in type(value).model_fields:
            fields_set(getattr(value, name), seen)
    elif isinstance(value, list):
        for item in value:
            fields_set(item, seen)


def test_every_field_of_every_message_is_in_a_golden_file():
    seen: dict[type[BaseModel], set[str]] = {}
    for message in SAMPLES.values():
        fields_set(message, seen)
    missing = {
        model.__name__: sorted(model.model_fields.keys() - fields)
        for model, fields in seen.items()
        if model.model_fields.keys() - fields
    }
    assert not missing, f"give these a value in samples.py, so that their wire names are kept: {missing}"


def objects(node, path=()):
    """Paths to every JSON object in a payload."""
    if isinstance(node, dict):
        yield path
        for key, inner in node.items():
            yield from objects(inner, (*path, key))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from objects(inner, (*path, index))


def with_field(payload: bytes, path, name, value) -> bytes:
    document = json.loads(payload)
    node = document
    for step in path:
        node = node[step]
    node[name] = value
    return json.dumps(document).encode()


#: An older agent that ignored a field of an action would run something else; labels and params are maps.
STRICT = ("action", "undo", "labels", "params")


@pytest.mark.parametrize("name", SAMPLES)
def test_fields_that_a_newer_sender_adds_are_kept_and_ignored(name):
    payload = compact(golden(name))
    news = {"since": "v1.9", "list": [1, 2.5, True], "ü": {}}
    for path in objects(json.loads(payload)):
        if not any(step in STRICT for step in path):
            event = opened(with_field(payload, path, "added_later", news))
            kept = event
            for step in path:
                kept = kept[step] if isinstance(step, int) else getattr(kept, step)
            assert kept.model_extra == {"added_later": news}, f"lost at {path}"
            if "data" in path:
                again = seal(event.data, source=event.source, time=event.time, event_id=event.id)
                assert b"added_later" in again, f"not passed on from {path}"


@pytest.mark.parametrize("name", [name for name, message in SAMPLES.items() if getattr(message, "action", None)])
def test_an_unknown_field_of_an_action_is_refused_by_name(name):
    payload = compact(golden(name))
    for path in objects(json.loads(payload)):
        if "action" in path or "undo" in path:
            with pytest.raises(MalformedMessage) as caught:
                opened(with_field(payload, path, "added_later", 1))
            place = ".".join(map(str, (*path, "added_later")))
            assert str(caught.value) == f"dev.podhook.trigger.v1: {place}: unknown field"


@pytest.mark.parametrize("message_type", MESSAGES)
def test_a_newer_major_version_is_refused_with_the_upgrade_it_needs(message_type):
    newer = message_type.replace(".v1", ".v2")
    with pytest.raises(UnknownType) as caught:
        opened(with_field(b"{}", (), "type", newer))
    assert str(caught.value) == (
        f"message type '{newer}' is of a newer major version than this podhook speaks ({message_type}); "
        "upgrade this podhook"
    )


def test_samples_are_messages():
    assert all(isinstance(message, Message) for message in SAMPLES.values())
