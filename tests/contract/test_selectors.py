"""Label selectors: Kubernetes' forms and meaning, and no other error than BadInput."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.contract.errors import BadInput
from agent.contract.selectors import parse_selector

POD = {"app": "web", "env": "dev", "kubernetes.io/tier": "db", "empty": ""}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("app=web", True),
        ("app==web", True),
        ("app=db", False),
        ("app=web,env=dev", True),
        ("env=dev, app=web", True),
        (" app = web , env = dev ", True),
        ("app=web,env=prod", False),
        ("app!=db", True),
        ("app!=web", False),
        ("gone!=x", True),
        ("app in (web,db)", True),
        ("app in ( web , db )", True),
        ("app in(db)", False),
        ("app notin (db)", True),
        ("app notin (web,db)", False),
        ("gone notin (x)", True),
        ("gone in (x)", False),
        ("app in (web,db),env notin (prod,test)", True),
        ("app", True),
        ("gone", False),
        ("!gone", True),
        ("! gone", True),
        ("!app", False),
        ("kubernetes.io/tier=db", True),
        ("empty=", True),
        ("empty in ()", True),
        ("app=", False),
        ("", True),
        ("   ", True),
        ("in in (x)", False),
    ],
)
def test_selects_what_kubernetes_would_select(text, selected):
    assert parse_selector(text).matches(POD) is selected


@pytest.mark.parametrize(
    "text",
    [
        *(",", "app=web,", ",app=web", "a=b,,c=d", "=b", "a=b=c", "a==b=c", "!a=b", "a!", "!!a", "!", "a b"),
        *("a in b", "a in (b", "a in b)", "a in ((b))", "in (b)", "a not in (b)", "a>1", "-a=b", "a=-b"),
        *("a/b/c=d", "/a=b", "A.b/c/", "ä=b", "a=" + "b" * 64, "a" * 64, "a=b;c=d", "a='b'"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_part_and_the_forms(text):
    with pytest.raises(BadInput, match=r"cannot read .* in selector .*write a=b, a!=b"):
        parse_selector(text)


def test_a_selector_has_a_longest_length():
    with pytest.raises(BadInput, match="4097 characters is too long; the limit is 4096"):
        parse_selector("a" * 4097)


ALPHABET = st.text("ab=!,() inot./-\n\t9", max_size=60)


@given(st.text() | ALPHABET, st.dictionaries(st.text(), st.text(), max_size=3))
@example("a in (" * 800, {})
@example("a " * 2000, {})
@example(" " * 4000 + "in", {})
def test_any_text_is_a_selector_or_bad_input(text, labels):
    selector, message = None, ""
    try:
        selector = parse_selector(text)
    except BadInput as error:
        message = str(error)
    assert len(message) < 600, "the message repeats the input without a bound"
    assert selector is None or str(selector) == text
    assert selector is None or selector.matches(labels) in (True, False)


@given(ALPHABET)
def test_spaces_around_a_selector_change_nothing(text):
    try:
        expected = parse_selector(text).requirements
    except BadInput:
        return
    assert parse_selector(f"  {text} ").requirements == expected


@given(st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.from_regex(r"[a-z]{1,3}", fullmatch=True))
def test_not_equal_selects_exactly_what_equal_does_not(key, value):
    for labels in ({}, {key: value}, {key: value + "x"}):
        assert parse_selector(f"{key}={value}").matches(labels) != parse_selector(f"{key}!={value}").matches(labels)
