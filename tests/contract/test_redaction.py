"""Redaction: every occurrence goes, whatever it is disguised as and wherever a chunk or a cut falls."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.outcomes import OutputBuffer
from agent.contract.redaction import MARK, MIN_BYTES, Redactor

SECRET = "p'ss \"w\\r/d$&+ü"


def redact(text: bytes, *values: bytes) -> bytes:
    return Redactor(values).data(text)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        (b"the password is hunter2.", [b"hunter2"], b"the password is [redacted]."),
        (b"hunter2hunter2 hunter2", [b"hunter2"], b"[redacted][redacted] [redacted]"),
        (b"nothing", [b"hunter2"], b"nothing"),
        (b"", [b"hunter2"], b""),
        (b"abc true default", [b"abc", b"true", b"Default"], b"abc true default"),  # too short, or plain words
        (b"a longer-secret here", [b"secret", b"longer-secret"], b"a [redacted] here"),
        (b"secret longer-secret", [b"longer-secret", b"secret"], b"[redacted] [redacted]"),
        (b"abcdefghi", [b"abcdef", b"defghi"], b"[redacted]"),  # two that overlap: nothing of either stays
        (b"xxaaaaaaaxx", [b"aaaa"], b"xx[redacted]xx"),
        (b"\xff\xfeBINARY\xff", [b"\xfeBIN"], b"\xff[redacted]ARY\xff"),
        (b"value", [b"  value\n"], b"[redacted]"),
        (b"p%40ssword", [b"p@ssword"], b"[redacted]"),
        (b"p@ssword", [b"p%40ssword"], b"[redacted]"),
    ],
)
def test_redaction(text: bytes, values: list[bytes], expected: bytes) -> None:
    assert redact(text, *values) == expected


@pytest.mark.parametrize(
    "disguised",
    [
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        quote(SECRET, safe="").lower(),
        shlex.quote(SECRET),
        repr(SECRET),
        repr(SECRET.encode()),
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        SECRET.replace("'", "''"),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
    ],
)
def test_its_usual_disguises(disguised: str) -> None:
    said = Redactor([SECRET.encode()]).text(f"<{disguised}>")
    assert "[redacted]" in said
    for part in ("p'ss", "ss%20", "w\\r", "7373", "cCdzcyA"):
        assert part not in said


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_what_a_shell_traces(shell: str) -> None:
    for value in (SECRET, "plain-one", "it's", "tab\there", "new\nline-of-it"):
        ran = subprocess.run([shell, "-xc", ': "$S" x"$S"y'], env={"S": value}, capture_output=True, check=True)
        assert value.encode() not in ran.stderr or redact(ran.stderr, value.encode()) != ran.stderr
        assert b"[redacted]" in redact(ran.stderr, value.encode()), ran.stderr


@given(st.binary(max_size=20), st.text("abcXYZ09_", min_size=9, max_size=30), st.binary(max_size=20))
def test_base64_of_a_text_around_it(before: bytes, value: str, after: bytes) -> None:
    encoded = base64.b64encode(before + value.encode() + after)
    said = redact(encoded, value.encode())
    assert MARK in said
    left = len(said.replace(MARK, b""))
    assert left <= len(base64.b64encode(before)) + len(base64.b64encode(after)) + 4, "what is left is what stood around"


def test_each_line_of_a_key() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
    said = Redactor([key.encode()]).text("key: hkiG9w0BAQEFAASC, and before MIIEvQIBADANBgkq")
    assert said == "key: [redacted], and before [redacted]"


VALUES = st.lists(st.binary(min_size=MIN_BYTES, max_size=12), min_size=1, max_size=4)


@given(VALUES, st.lists(st.one_of(st.binary(max_size=9), st.integers(0, 3)), max_size=12), st.lists(st.integers(0, 30)))
def test_chunks_change_nothing_and_no_value_stays(
    values: list[bytes], parts: list[bytes | int], sizes: list[int]
) -> None:
    text = b"".join(part if isinstance(part, bytes) else values[part % len(values)] for part in parts)
    redactor = Redactor(values)
    whole = redactor.data(text)
    stream, said, at = redactor.stream(), b"", 0
    for size in sizes:
        said += stream.write(text[at : at + size])
        at += size
    said += stream.write(text[at:]) + stream.end()
    assert said == whole
    for value in values:
        known = redactor.patterns  # plain words are not among them
        assert value not in known or all(value not in piece for piece in whole.split(MARK))


@given(st.integers(0, 11), st.integers(0, 20))
def test_of_a_stream_that_was_cut_the_beginning_of_a_secret_goes_too(kept: int, before: int) -> None:
    value = b"correct-hors"
    said = Redactor([value]).data(b"x" * before + value[:kept], cut=True)
    assert said == b"x" * before + (MARK if kept >= MIN_BYTES else value[:kept])
    assert Redactor([value]).data(b"x" + value[:kept]) == b"x" + value[:kept], "it ended by itself: nothing was begun"


@given(st.integers(1, 12), st.integers(0, 20), st.booleans())
def test_of_a_stream_that_began_before_the_end_of_a_secret_goes_too(gone: int, after: int, shorter: bool) -> None:
    value = b"correct-hors"
    rest = value[gone:]
    redactor = Redactor([value, b"rect"] if shorter else [value])  # another secret may stand within the first
    said = redactor.data(rest + b"x" * after, begun=True)
    assert said == (b"" if len(rest) >= MIN_BYTES else rest) + b"x" * after
    assert redactor.data(value + b"x", begun=True) == MARK + b"x", "a whole one is one"
    if not shorter:
        assert redactor.data(rest + b"x") == rest + b"x", "nothing stood before it"


@given(st.integers(0, 300))
def test_a_secret_on_the_cut_of_what_is_kept_leaves_no_part_behind(before: int) -> None:
    value = b"correct-horse-battery-staple"
    stream, buffer = Redactor([value]).stream(), OutputBuffer(128)
    for byte in b"." * before + value + b"." * 300:
        buffer.write(stream.write(bytes([byte])))
    buffer.write(stream.end())
    text = buffer.captured().text
    assert not any(value[at : at + 4].decode() in text for at in range(len(value) - 3))


def test_a_text_that_is_no_utf_8_comes_through() -> None:
    half = "half \ud800 pair"
    assert Redactor([b"secret"]).text(half) == half
    assert Redactor().text(half) == half
    assert "secret" not in Redactor([b"secret"]).text(f"{half} secret")


def test_it_does_not_tell_what_it_knows() -> None:
    assert "hunter2" not in repr(Redactor([b"hunter2"]))


def test_a_container_that_prints_one_letter_for_ever_costs_no_memory():
    """Values of one letter hit everywhere, and each hit overlaps the next: a stretch is one, however long."""
    stream = Redactor([b"a" * size for size in range(4, 34)]).stream()
    assert len(stream._patterns) > 30
    stream._buffer += b"a" * 64 * 1024
    assert len(stream._spans()) <= len(stream._patterns)
    assert Redactor([b"a" * 4, b"a" * 9]).data(b"x" + b"a" * 100_000 + b"y") == b"x[redacted]y"


def test_hits_that_touch_but_do_not_overlap_are_marked_each():
    assert Redactor([b"abcd"]).data(b"abcdabcd") == b"[redacted][redacted]"
