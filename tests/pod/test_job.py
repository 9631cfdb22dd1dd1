"""What the agent asks the launcher for: each field checked, each refusal names its field, nothing else is raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.pod.job import MAX_PID, NO_ID, Job, parse_job, parse_request, parse_user

GOOD: dict[str, Any] = {
    "op": "start",
    "id": 1,
    "generation": 0,
    "container": "mysql",
    "pid": 7,
    "started": 1234,
    "argv": ["mysqldump", ""],
    "environment": [["A", "1"], ["B", "x=y"], ["A", ""]],
    "inherit": True,
    "fallback": False,
    "user": "",
}
MARK = 42
OWN = {**GOOD, "container": None, "pid": 0, "started": 0}


def test_a_job_is_what_was_asked_for():
    assert parse_job(GOOD, MARK) == Job(
        container=b"mysql",
        pid=7,
        started=1234,
        argv=[b"mysqldump", b""],
        environment=[(b"A", b"1"), (b"B", b"x=y"), (b"A", b"")],
        inherit=True,
        fallback=False,
        user=b"",
        mark=MARK,
    )


def test_in_the_agents_own_container_nothing_is_entered():
    assert parse_job(OWN, MARK)[:3] == (None, 0, 0)


def test_a_request_without_a_container_means_the_agents_own():
    del (request := dict(OWN))["container"]
    assert parse_job(request, MARK).container is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("pid", 1), ("pid", MAX_PID), ("started", 0), ("started", 1 << 63)],
)
def test_numbers_at_their_bounds_are_taken(field, value):
    assert getattr(parse_job({**GOOD, field: value}, MARK), field) == value


def test_text_that_is_no_utf8_comes_as_it_was():
    """JSON has no bytes: what Python reads from the system as surrogates goes back to the same bytes."""
    assert parse_job({**GOOD, "argv": ["\udcff", "größe"]}, MARK).argv == [b"\xff", "größe".encode()]


NO_NUMBER = [True, False, 1.0, 7.5, float("nan"), float("inf"), "7", "", None, [], [7], {}, -1, 10**5000]
NO_FLAG = [0, 1, "true", "false", "", None, [], {}, 1.0]
NO_LIST = [None, "mysqldump", {}, {"0": "a"}, 0, True, 1.5]
NO_TEXT = [None, 0, 1, True, 1.5, [], ["a"], {}, "a\0", "\0", "\ud800", "a\udc00", "\udfff"]
NO_PAIR = [
    *([], ["A"], ["A", "1", "2"], "AB", None, 7, {}, {"A": "1"}, [["A", "1"]], ["", "1"], ["A=", "1"], ["=", "1"]),
    *(["=A", "1"], ["A=B", "1"], ["A\0", "1"], ["A", "1\0"], ["A", 1], ["A", None], [1, "A"], ["A", ["1"]]),
    *(["\ud800", "1"], ["A", "\ud800"], [True, "1"]),
]
WRONG = [
    *(("container", value) for value in NO_TEXT if value is not None),
    *(("pid", value) for value in [*NO_NUMBER, 0, MAX_PID + 1, 1 << 63]),
    *(("started", value) for value in [*NO_NUMBER, (1 << 63) + 1]),
    *(("argv", value) for value in [*NO_LIST, [], *([value] for value in NO_TEXT), ["a", ["b"]], [[["a"]]]]),
    *(("environment", value) for value in [*NO_LIST, *([pair] for pair in NO_PAIR), [["A", "1"], ["B"]]]),
    *(("inherit", value) for value in NO_FLAG),
    *(("fallback", value) for value in NO_FLAG),
    *(("user", value) for value in NO_TEXT),
    *(("look", value) for value in NO_FLAG),
]


def shown(value: object) -> str:
    return "huge" if isinstance(value, int) and value > 1 << 64 else ascii(value)


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field} {shown(value)}" for field, value in WRONG])
def test_what_is_wrong_is_refused_by_the_fields_name(field, value):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is what this is about)
        parse_job({**GOOD, field: value}, MARK)
    assert field in str(caught.value), f"{caught.value!r} does not say that it is {field}"


@pytest.mark.parametrize("field", sorted({*Job._fields} - {"mark", "look"}))
def test_what_is_missing_is_refused_by_the_fields_name(field):
    request = {key: value for key, value in GOOD.items() if key != field}
    if field == "container":
        request["user"] = "mysql"  # without one it is the agent's own, where there is no choice of users
    with pytest.raises(ValueError, match=field if field != "container" else "user: in the agent's own container"):
        parse_job(request, MARK)


LOOK = {**GOOD, "argv": [], "look": True}


def test_who_only_looks_has_no_command():
    assert parse_job(LOOK, MARK)._replace(look=False, argv=[b"x"]) == parse_job({**GOOD, "argv": ["x"]}, MARK)
    assert parse_job({**GOOD, "look": False}, MARK) == parse_job(GOOD, MARK)


@pytest.mark.parametrize("changes", [{"argv": ["true"]}, {"container": None, "pid": 0}])
def test_who_looks_and_runs_or_looks_at_the_agent_is_refused(changes):
    with pytest.raises(ValueError, match=r"^look: into a container, and with no command$"):
        parse_job({**LOOK, **changes}, MARK)


def test_in_the_agents_own_container_there_is_no_other_user():
    with pytest.raises(ValueError, match=r"user: in the agent's own container there is only one"):
        parse_job({**OWN, "user": "root"}, MARK)


TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ALMOST = st.fixed_dictionaries(
    {
        "container": st.just("mysql") | st.none() | TEXT | JSON,
        "pid": st.integers(-2, MAX_PID + 2) | JSON,
        "started": st.integers(0, 1 << 64) | JSON,
        "argv": st.lists(TEXT, max_size=3) | st.lists(JSON, max_size=2) | JSON,
        "environment": st.lists(st.lists(TEXT, min_size=2, max_size=2), max_size=3) | st.lists(JSON) | JSON,
        "inherit": st.booleans() | JSON,
        "fallback": st.booleans() | JSON,
        "user": st.just("") | TEXT | JSON,
        "look": st.booleans() | JSON,
    }
)


@given(ALMOST | st.dictionaries(st.sampled_from(sorted(GOOD)), JSON))
@example(GOOD)
@example(OWN)
@example(LOOK)
def test_any_request_is_a_job_that_the_kernel_can_take_or_a_value_error(request):
    try:
        job = parse_job(json.loads(json.dumps(request)), MARK)
    except ValueError:
        return
    assert bool(job.argv) != job.look
    words = [*job.argv, *(part for pair in job.environment for part in pair), job.user, job.container or b""]
    assert all(type(word) is bytes and b"\0" not in word for word in words), words
    assert all(name and b"=" not in name for name, _ in job.environment), job.environment
    assert type(job.inherit) is type(job.fallback) is bool
    assert (0 if job.container is None else 1) <= job.pid <= MAX_PID
    assert 0 <= job.started <= 1 << 63
    assert job.mark == MARK
    assert not (job.container is None and job.user)


# --- users


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        (b"root", (0, 0)),
        (b"0", (0, 33)),
        (b"00", (0, 33)),
        (b"0:0", (0, 0)),
        (b"01", (1, 33)),
        (b"999", (999, 33)),
        (b"999:1000", (999, 1000)),
        (b"007:010", (7, 10)),
        (b"4294967294", (NO_ID - 1, 33)),
        (b"4294967294:4294967294", (NO_ID - 1, NO_ID - 1)),
    ],
)
def test_a_user_is_root_or_numbers_and_the_group_is_the_containers_unless_given(user, ids):
    assert parse_user(user, 33) == ids


@pytest.mark.parametrize(
    "user",
    [
        b"mysql",
        b"Root",
        b"root ",
        b" root",
        b"",
        b"1 ",
        b"-1",
        b"+1",
        b"1_0",
        b"0x0",
        b"1.0",
        "\N{ARABIC-INDIC DIGIT ONE}".encode(),
        "\N{SUPERSCRIPT TWO}".encode(),
    ],
)
def test_any_other_name_is_for_the_containers_passwd(user):
    assert parse_user(user, 33) is None


@pytest.mark.parametrize(
    "user",
    [
        *(b"4294967295", b"4294967296", b"1:4294967295", b"4294967295:1", b"18446744073709551615"),
        *(b":", b"1:", b":1", b"root:", b"root:0", b"root:root", b"mysql:1", b"1:mysql", b"1:2:3", b"1:-1", b"-1:1"),
        *(b"1: 1", "1:\N{ARABIC-INDIC DIGIT ONE}".encode(), "\N{ARABIC-INDIC DIGIT ONE}:1".encode()),
        pytest.param(b"9" * 5000, id="5000 digits"),
        pytest.param(b"1:" + b"9" * 5000, id="a group of 5000 digits"),
        pytest.param(b"0" * 5000, id="5000 zeros"),
    ],
)
def test_what_is_no_id_is_refused_and_never_stays_root(user):
    with pytest.raises(ValueError):  # noqa: PT011 (only the type matters to the child)
        parse_user(user, 33)


@given(st.binary(max_size=12) | st.from_regex(rb"\A[0-9]{1,12}(:[0-9]{0,12})?\Z"), st.integers(0, NO_ID - 1))
def test_no_user_is_ever_minus_one(user, group):
    """-1 means "as it is" to setresuid(2): whoever got that would stay root."""
    try:
        ids = parse_user(user, group)
    except ValueError:
        return
    assert ids is None or all(0 <= each < NO_ID for each in ids), f"{user!r} became {ids}"
    assert user == b"root" or user[:1].isdigit() or ids is None


# --- packets


def test_a_packet_is_an_operation_with_the_number_of_its_attempt():
    assert parse_request(b'{"op": "left", "id": 0, "n": 3}') == {"op": "left", "id": 0, "n": 3}


@pytest.mark.parametrize(
    "packet",
    [
        *(b"", b" ", b"\0", b"{", b"start", b"null", b"[]", b"7", b'"start"', b"{}", b'{"id": 1}', b"\xff\xfe{}"),
        *(b'{"op": null, "id": 1}', b'{"op": ["start"], "id": 1}', b'{"op": 1, "id": 1}', b'{"op": "start"}'),
        *(b'{"op": "kill", "id": "1"}', b'{"op": "kill", "id": true}', b'{"op": "kill", "id": 1.0}'),
        *(b'{"op": "kill", "id": -1}', b'{"op": "kill", "id": 9223372036854775809}', b'{"op": "kill", "id": [1]}'),
        *(b'{"op": "kill", "id": NaN}', b'{"op": "kill", "id": 1} {}', b'\xff{"op": "kill", "id": 1}'),
        pytest.param(b'{"op": "kill", "id": ' + b"9" * 5000 + b"}", id="5000 digits"),
    ],
)
def test_a_packet_that_is_none_is_a_value_error(packet):
    with pytest.raises(ValueError):  # noqa: PT011 (only the type matters to the launcher)
        parse_request(packet)


def test_a_packet_as_deep_as_it_can_be_is_one_of_the_errors_that_the_launcher_expects():
    with pytest.raises((ValueError, RecursionError)):
        parse_request(b"[" * 196_608)


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_packet_is_a_request_or_a_value_error(packet):
    try:
        request = parse_request(packet)
    except ValueError:
        return
    assert type(request["op"]) is str
    assert type(request["id"]) is int
    assert request["id"] >= 0
