"""JSON that means one thing to every reader."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.strict_json import MAX_DEPTH, MAX_DIGITS, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": 1, "a": 1}', "member 'a' is given twice"),
        (b'[{"b": {"a": 1, "c": 2, "a": 3}}]', "member 'a' is given twice"),
        (b'{"a": 1, "\\u0061": 2}', "member 'a' is given twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[Infinity]", "Infinity is not JSON"),
        (b"-Infinity", "-Infinity is not JSON"),
        (b'{"a": 1e999}', "1e999 is out of range"),
        (b"-1e999", "-1e999 is out of range"),
        (b"[" * (MAX_DEPTH + 1) + b"1" + b"]" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH}"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, f"nested deeper than {MAX_DEPTH}"),
        (b"[" * 100_000, f"nested deeper than {MAX_DEPTH}"),
        (b"1" * (MAX_DIGITS + 1), f"a number of {MAX_DIGITS + 1} digits"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b'"\xff"', "not UTF-8: byte 1 is 0xff"),
        ("{}".encode("utf-16"), "not UTF-8"),
        ("\N{BYTE ORDER MARK}{}".encode(), "BOM"),
        (b"{} {}", "Extra data"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_ambiguous_is_refused_in_words(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(text)


def test_as_deep_as_allowed_is_read():
    deepest = json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) == deepest
    assert parse(b"[" + b",".join([b"{}"] * 1000) + b"]") == [{}] * 1000, "wide is not deep"


@given(JSON)
def test_all_other_json_is_read_as_it_is(value):
    assert parse(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_bytes_are_json_or_a_value_error(text):
    try:
        value = parse(text)
    except ValueError:
        return
    assert not (isinstance(value, float) and math.isnan(value))
