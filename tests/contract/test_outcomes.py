"""Output within bounds: nothing uncounted, no character split, and an outcome that always fits."""

from __future__ import annotations

import base64
import itertools
import os
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.contract.errors import ErrorCode
from agent.contract.messages import CapturedStream, ErrorDetail, OutcomeMessage
from agent.contract.outcomes import (
    MIN_OUTCOME_LIMIT_BYTES,
    OutputBuffer,
    captured_stream,
    failure,
    fit,
    without_output,
)
from agent.contract.states import Outcome
from tests.contract.samples import SAID_BY, sealed

CUT = re.compile(r"\n\[\.\.\. (\d+) bytes cut \.\.\.\]\n")


def written(pieces, limit_bytes):
    buffer = OutputBuffer(limit_bytes)
    for piece in pieces:
        buffer.write(piece)
    return buffer


def is_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# What is kept.


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(0, 200))
def test_a_buffer_keeps_the_first_quarter_and_the_last_three_and_counts_everything(pieces, limit_bytes):
    whole = b"\xff".join(pieces)  # never UTF-8 in the middle: base64 shows exactly which bytes were kept
    buffer = written([b"\xff", whole, b"\xff"], limit_bytes)
    everything = b"\xff" + whole + b"\xff"
    assert buffer.total_bytes == len(everything)
    captured = buffer.captured()
    assert captured.total_bytes == len(everything)
    assert captured.truncated == (len(everything) > limit_bytes)
    if captured.encoding == "base64":
        head = limit_bytes // 4
        kept = everything[:head] + everything[len(everything) - (limit_bytes - head) :]
        assert base64.b64decode(captured.text) == (kept if captured.truncated else everything)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8), st.integers(0, 200))
def test_it_does_not_matter_in_which_pieces_the_output_came(data, cuts, limit_bytes):
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    assert written(pieces, limit_bytes).captured() == written([data], limit_bytes).captured()


def test_of_32_kib_the_first_8_and_the_last_24_are_kept():
    data = os.urandom(50_000).hex().encode()
    captured = written([data[i : i + 4096] for i in range(0, len(data), 4096)], 32 * 1024).captured()
    head, count, tail = CUT.split(captured.text)
    assert (head.encode(), tail.encode()) == (data[: 8 * 1024], data[-24 * 1024 :])
    assert int(count) == captured.total_bytes - 32 * 1024


def test_a_buffer_of_no_bytes_keeps_none_and_still_counts():
    captured = written([b"secret", b"more"], 0).captured()
    assert (captured.total_bytes, captured.truncated) == (10, True)
    assert CUT.fullmatch(captured.text)
    assert written([], 0).captured() == CapturedStream()


def test_memory_stays_within_the_limit_and_one_write():
    buffer = OutputBuffer(1000)
    for _ in range(100):
        buffer.write(b"x" * 777)
    assert len(buffer._head) + len(buffer._tail) <= 1000


# How it travels.


@given(st.binary(max_size=200) | st.text().map(str.encode))
@example(b"\xed\xa0\x80")
def test_base64_is_used_exactly_when_the_bytes_are_not_utf8(data):
    stream = captured_stream(data)
    assert (stream.encoding == "utf-8") == is_text(data)
    sent = stream.text.encode() if stream.encoding == "utf-8" else base64.b64decode(stream.text)
    assert sent == data
    assert (stream.total_bytes, stream.truncated) == (len(data), False)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1), st.integers(0, 60))
@example("é" * 50, 5)
@example("𝄞" * 50, 7)
@example("a€" * 50, 9)
def test_a_cut_never_splits_a_character(text, limit_bytes):
    data = text.encode()
    stream = written([data], limit_bytes).captured()
    assert stream.encoding == "utf-8", "text became base64 because it was cut"
    if not stream.truncated:
        assert stream.text == text
        return
    head, count, tail = CUT.split(stream.text)
    assert text.startswith(head)
    assert text.endswith(tail)
    kept = len(head.encode()) + len(tail.encode())
    assert int(count) == len(data) - kept, "the line in the middle miscounts"
    assert kept > limit_bytes - 7, "more was dropped than the halves of two characters"


@given(st.binary(min_size=1), st.binary(min_size=1), st.integers(1, 10**6))
def test_a_cut_stream_is_text_or_base64_of_all_that_was_kept(head, tail, cut_bytes):
    stream = captured_stream(head, tail, cut_bytes=cut_bytes)
    assert stream.truncated
    assert stream.total_bytes == len(head) + len(tail) + cut_bytes
    if stream.encoding == "base64":
        assert base64.b64decode(stream.text) == head + tail
        assert not (is_text(head) and is_text(tail)), "text travels as base64"


# An outcome that fits.


def outcome(**fields):
    return OutcomeMessage(**SAID_BY, outcome=Outcome.FAILED, exit_code=1, **fields)


def size_of(message):
    return len(sealed(message))


STREAMS = (st.binary(max_size=3000) | st.text(max_size=2000).map(str.encode)).flatmap(
    lambda data: st.sampled_from([data * n for n in (1, 3, 40)])
)


@given(
    st.tuples(STREAMS, STREAMS),
    st.integers(0, 64 * 1024),
    st.text(max_size=60).map(lambda text: (text * 500)[:8192]),
    st.lists(st.text(max_size=50).map(lambda text: (text * 100)[:2048]), max_size=8),
    st.integers(MIN_OUTCOME_LIMIT_BYTES, 40_000),
)
def test_a_fitted_outcome_never_exceeds_the_limit_and_still_says_how_it_ended(
    streams, capture, why, notes, limit_bytes
):
    message = outcome(
        stdout=written([streams[0]], capture).captured(),
        stderr=written([streams[1]], capture).captured(),
        error=ErrorDetail(code="exit_code", message=why),
        notes=notes,
    )
    fitted = fit(message, size_of, limit_bytes)
    assert size_of(fitted) <= limit_bytes
    assert (fitted.trigger_id, fitted.pod_uid, fitted.exit_code) == (message.trigger_id, message.pod_uid, 1)
    assert (fitted.outcome, fitted.error.code) == (Outcome.FAILED, "exit_code")
    assert why.startswith(fitted.error.message)
    for name in ("stdout", "stderr"):
        before, after = getattr(message, name), getattr(fitted, name)
        assert after.total_bytes == before.total_bytes, f"{name}: bytes are no longer counted"
        assert after == before or after.truncated, f"{name}: was cut and does not say so"


def test_an_outcome_that_fits_is_left_alone():
    message = outcome(stdout=captured_stream(b"x" * 100))
    assert fit(message, size_of, size_of(message)) is message


def test_output_goes_before_the_reason():
    error = ErrorDetail(code="exit_code", message="because " * 500)
    message = outcome(stdout=captured_stream(b"x" * 50_000), notes=["note"], error=error)
    fitted = fit(message, size_of, 10_000)
    assert fitted.error == error
    assert fitted.notes == ["note"]
    assert 0 < len(fitted.stdout.text) < 5000


def test_what_was_cut_before_and_is_cut_again_counts_all_that_is_missing():
    data = b"0123456789" * 100_000
    once = written([data], 32 * 1024).captured()
    fitted = fit(outcome(stdout=once), size_of, 12_000).stdout
    head, count, tail = CUT.split(fitted.text)
    assert len(head) + int(count) + len(tail) == fitted.total_bytes == len(data)
    assert data.startswith(head.encode())
    assert data.endswith(tail.encode())


def test_a_line_like_ours_in_the_output_is_not_taken_for_ours():
    fake = b"\n[... 5 bytes cut ...]\n"
    once = written([fake * 4000], 32 * 1024).captured()
    fitted = fit(outcome(stdout=once), size_of, 12_000).stdout
    (real,) = [found for found in CUT.finditer(fitted.text) if found[1] != "5"]
    assert len(fitted.text) - len(real[0]) + int(real[1]) == fitted.total_bytes
    assert real.start() == 2048, "the head that was kept is not the first quarter of 8 KiB"


@pytest.mark.parametrize("capture", range(16 * 1024 - 40, 16 * 1024 + 40, 3))
def test_no_piece_of_an_older_cut_is_left_in_the_text(capture):
    once = written([b"x" * 100_000], capture).captured()
    message = outcome(stdout=once, stderr=captured_stream(b"y" * 60_000))
    fitted = fit(message, size_of, 36_000).stdout
    assert set("".join(CUT.split(fitted.text)[::2])) == {"x"}


def test_the_last_resort_keeps_sizes_and_no_output():
    message = outcome(stdout=captured_stream(b"x" * 100), stderr=captured_stream(b""))
    bare = without_output(message)
    assert bare.stdout == CapturedStream(total_bytes=100, truncated=True)
    assert bare.stderr == CapturedStream()


@pytest.mark.parametrize("message", ["no such file: b\udcff", "x" * 100_000, "\udcff" * 8000, ""])
def test_a_failure_can_always_be_sent(message):
    result = failure(Outcome.FAILED, ErrorCode.NOT_FOUND, message)
    assert (result.outcome, result.error.code) == (Outcome.FAILED, "not_found")
    sealed(outcome(error=result.error))
