"""When a broker is to be told: never in the middle of a change or while something is missing, and always in the end."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bus.reload.changes import EMPTIED_LOOKS, EMPTY, STABLE_LOOKS, Changes


def files(**content: str) -> dict[str, bytes]:
    return {name: hashlib.sha256(text.encode()).digest() for name, text in content.items()}


def told(looks: list[dict[str, bytes] | None]) -> list[int]:
    """At which looks (from 0) the broker is told; None is a look that failed."""
    changes, found = Changes(), []
    for number, look in enumerate(looks):
        if look is None:
            changes.unreadable()
        else:
            changes.look(look)
        if changes.due:
            changes.took()
            found.append(number)
    return found


A, B, C = files(acl="a", passwords="p"), files(acl="b", passwords="p"), files(acl="c", passwords="p")
NO_ACL, NO_ACL_ELSE = files(passwords="p"), files(passwords="q")
EMPTIED = files(acl="", passwords="p")


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ([A, A, A, A], [1]),  # at the start: nobody knows what changed before
        ([{}, {}], [1]),
        ([A, B, B, B], [2]),  # a change in the middle of the first looks
        ([A, A, B, B, B], [1, 3]),
        ([A, A, B, C, C, C], [1, 4]),  # still being written at the first look
        ([A, A, B, A, A, A], [1]),  # and back
        ([A, A, B, A, B, A, B, B], [1, 7]),
        ([A, A, None, A, A], [1]),  # for a moment not to be read
        ([A, A, B, None, B, B], [1, 5]),  # what was seen before proves nothing
        ([None, None, A, A], [3]),
        ([A, A, NO_ACL, NO_ACL, NO_ACL, A, A], [1]),  # for a moment missing
        ([A, A, NO_ACL, NO_ACL, NO_ACL, B, B], [1, 6]),
        ([A, A, *[NO_ACL] * 50], [1]),  # for good: somebody has to look
        ([A, A, *[NO_ACL_ELSE] * 50], [1]),  # and nothing else is read either
        ([A, NO_ACL, NO_ACL, NO_ACL], []),  # not even at the start
        ([A, A, {**A, **files(more="m")}, {**A, **files(more="m")}], [1, 3]),  # one more
        ([A, A, *[EMPTIED] * 5, B, B], [1, 8]),  # emptied, then written
        ([A, A, *[EMPTIED] * EMPTIED_LOOKS], [1, 1 + EMPTIED_LOOKS]),  # meant: the last user is gone
        ([EMPTIED, EMPTIED], [1]),  # empty from the start
        ([*[EMPTIED] * 2, A, A], [1, 3]),
    ],
)
def test_when_the_broker_is_told(looks, expected):
    assert told(looks) == expected


def test_who_could_not_be_told_is_told_later_once():
    changes = Changes()
    for _ in range(5):
        changes.look(A)
    assert changes.due
    changes.look(A)
    assert changes.due, "it stays due until somebody says that it was done"
    changes.took()
    changes.look(A)
    assert not changes.due


def test_what_changed_and_what_is_gone_is_named():
    changes = Changes()
    for look in (A, A):
        changes.look(look)
    assert changes.changed == ("acl", "passwords")
    changes.took()
    changes.look(B)
    assert (changes.changed, changes.gone) == (("acl",), ())
    changes.look(NO_ACL_ELSE)
    assert (changes.changed, changes.gone) == (("passwords",), ("acl",))


LOOKS = st.lists(
    st.one_of(st.none(), st.dictionaries(st.sampled_from("ab"), st.sampled_from([b"1", b"2", EMPTY]), max_size=2)),
    max_size=40,
)


@given(LOOKS)
def test_nobody_is_told_in_the_middle_of_a_change_or_while_something_is_missing(looks):
    known: set[str] = set()
    for at in told(looks):
        assert looks[at] is not None
        assert looks[at] == looks[at - 1]
    for number, look in enumerate(looks):
        known |= (look or {}).keys()
        if look is None or known - look.keys():
            assert number not in told(looks)


@given(LOOKS, st.dictionaries(st.sampled_from("ab"), st.sampled_from([b"1", b"2", EMPTY]), min_size=2, max_size=2))
def test_in_the_end_the_broker_has_read_what_is_there_and_is_told_no_more(looks, final):
    """Whatever happened before, as long as nothing is missing now."""
    changes = Changes()
    read: dict[str, bytes] | None = None
    for look in [*looks, *[final] * EMPTIED_LOOKS]:
        if look is None:
            changes.unreadable()
        else:
            changes.look(look)
        if changes.due:
            changes.took()
            read = look
    assert read == final
    for _ in range(2 * EMPTIED_LOOKS):
        changes.look(final)
        assert not changes.due


def test_a_change_counts_by_the_second_equal_look():
    """The numbers in the table above hang on it."""
    assert (STABLE_LOOKS, EMPTIED_LOOKS) == (2, 10)
