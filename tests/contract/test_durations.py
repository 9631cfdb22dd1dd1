"""Durations: what Go reads we read, what Go would refuse we refuse with the text to write instead."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.contract.durations import MAX_SECONDS, format_duration, parse_duration
from agent.contract.errors import BadInput


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h30m10s", 5410),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        ("10μs", 1e-5),
        ("7ns", 7e-9),
        (".5s", 0.5),
        ("5.s", 5),
        ("+30s", 30),
        ("30m1h", 5400),
        ("1s1s", 2),
        ("0", 0),
        ("+0", 0),
        ("-0", 0),
        ("0s", 0),
        (f"{MAX_SECONDS}s", MAX_SECONDS),
    ],
)
def test_reads_what_go_reads(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("300", "write 300s"),
        ("1.5", "write 1.5s"),
        ("+5", "write +5s"),
        ("00", "write 00s"),
        ("-5s", "is negative"),
        ("-5", "is negative"),
        ("", "such as 30s, 5m or 1h30m"),
        ("s", "such as 30s"),
        ("5 m", "such as 30s"),
        ("5d", "such as 30s"),
        ("5M", "such as 30s"),
        ("5min", "such as 30s"),
        ("1e3s", "such as 30s"),
        ("٣s", "such as 30s"),
        ("5s\n", "such as 30s"),
        ("1" * 100 + "s", "such as 30s"),
        (f"{MAX_SECONDS + 1}s", "292 years"),
    ],
)
def test_refuses_the_rest_and_says_what_to_write(text, advice):
    with pytest.raises(BadInput) as caught:
        parse_duration(text)
    assert advice in str(caught.value)


@given(st.text() | st.text("0123456789.+-hmsuµn", max_size=100))
@example("1" * 100_000)
def test_any_text_is_seconds_or_bad_input_with_a_short_message(text):
    seconds, message = 0.0, ""
    try:
        seconds = parse_duration(text)
    except BadInput as error:
        message = str(error)
    assert 0 <= seconds <= MAX_SECONDS
    assert len(message) < 300, "the message repeats the input without a bound"


@given(st.integers(0, MAX_SECONDS * 1000))
def test_what_is_written_reads_back_to_the_millisecond(milliseconds):
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=0.0005)


@given(st.floats(0, 1))
def test_what_is_below_a_second_reads_back_to_a_tenth_of_its_unit(seconds):
    tolerance = 0.0001 if seconds >= 0.001 else 1e-7
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=tolerance)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (5, "5s"),
        (1.5, "1.5s"),
        (60, "1m"),
        (59.9999, "1m"),
        (61, "1m1s"),
        (3600, "1h"),
        (3601, "1h1s"),
        (5400, "1h30m"),
        (0.25, "250ms"),
        (0.00025, "250us"),
    ],
)
def test_writes_durations_as_kubernetes_shows_them(seconds, text):
    assert format_duration(seconds) == text
