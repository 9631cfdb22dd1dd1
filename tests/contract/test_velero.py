"""Velero's annotations: its documented examples, what its code makes of odd ones, and where we say no instead."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.contract.messages import MAX_TIMEOUT_SECONDS
from agent.contract.velero import PodCommand, command_annotation, read_annotations

PRE, POST, OLD = "pre.hook.backup.velero.io/", "post.hook.backup.velero.io/", "hook.backup.velero.io/"

#: "Hook Example with fsfreeze" of Velero's documentation.
NGINX = {
    PRE + "command": '["/sbin/fsfreeze", "--freeze", "/var/log/nginx"]',
    PRE + "container": "fsfreeze",
    POST + "command": '["/sbin/fsfreeze", "--unfreeze", "/var/log/nginx"]',
    POST + "container": "fsfreeze",
}


def read(annotations, when="pre", **more):
    command, problems = read_annotations(annotations, when, **more)
    assert (command is None) or not problems
    return command if not problems else [str(each) for each in problems]


def pre(**parts):
    return {PRE + name.replace("_", "-"): value for name, value in parts.items()}


def test_the_documented_fsfreeze_example():
    assert read(NGINX) == PodCommand(("/sbin/fsfreeze", "--freeze", "/var/log/nginx"), "fsfreeze", "Fail", 30)
    assert read(NGINX, "post") == PodCommand(("/sbin/fsfreeze", "--unfreeze", "/var/log/nginx"), "fsfreeze", "Fail", 30)
    action = read(NGINX).action
    assert (action.exec_.command, action.container_name) == (
        ["/sbin/fsfreeze", "--freeze", "/var/log/nginx"],
        "fsfreeze",
    )


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ('["/usr/bin/uname", "-a"]', ("/usr/bin/uname", "-a")),  # the documented JSON array
        (
            '["/bin/bash", "-c", "echo hello > hello.txt && echo goodbye > goodbye.txt"]',  # the documented shell
            ("/bin/bash", "-c", "echo hello > hello.txt && echo goodbye > goodbye.txt"),
        ),
        ("/usr/bin/uname", ("/usr/bin/uname",)),
        ("/usr/bin/uname -a", ("/usr/bin/uname -a",)),  # never split: one program of that name
        ('"/usr/bin/uname"', ('"/usr/bin/uname"',)),  # JSON only where it is an array
        ('["sync"]\n', ("sync",)),  # the last line of a YAML block
        ('["sh","-c","echo {{ .Name }} ${HOME:=/root} $X"]', ("sh", "-c", "echo {{ .Name }} ${HOME:=/root} $X")),
        ('["sh","-c",""]', ("sh", "-c", "")),
        ('["\\u00e9cho"]', ("écho",)),
    ],
)
def test_a_command_is_a_json_array_or_one_program(text, argv):
    assert read(pre(command=text)) == PodCommand(argv)


@pytest.mark.parametrize(
    "annotations", [{}, {"app": "x"}, pre(command=""), pre(container="db"), pre(timeout="nonsense")]
)
@pytest.mark.parametrize("when", ["pre", "post"])
def test_without_a_command_there_is_no_hook(annotations, when):
    assert read(annotations, when) is None


def test_the_phases_do_not_mix():
    assert read(pre(command="sync"), "post") is None
    assert read({POST + "command": "sync"}) is None


def test_the_names_without_a_phase_speak_for_pre_alone_and_only_where_pre_says_nothing():
    old = {OLD + "command": "old", OLD + "container": "c", OLD + "on-error": "Continue", OLD + "timeout": "1m"}
    assert read(old) == PodCommand(("old",), "c", "Continue", 60)
    assert read(old, "post") is None
    assert read({**old, PRE + "command": "new"}) == PodCommand(("new",))  # and then none of them
    assert read({**old, PRE + "command": ""}) == PodCommand(("old",), "c", "Continue", 60)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"on_error": "Fail"}, PodCommand(("x",))),
        ({"on_error": ""}, PodCommand(("x",))),
        ({"on_error": "Continue"}, PodCommand(("x",), on_error="Continue")),
        ({"container": ""}, PodCommand(("x",))),
        ({"timeout": ""}, PodCommand(("x",))),
        ({"timeout": "0"}, PodCommand(("x",))),  # theirs: nothing is the default
        ({"timeout": "0s"}, PodCommand(("x",))),
        ({"timeout": "1m30s"}, PodCommand(("x",), timeout_seconds=90)),
        ({"timeout": "168h"}, PodCommand(("x",), timeout_seconds=MAX_TIMEOUT_SECONDS)),
    ],
)
def test_the_other_annotations_and_their_defaults(parts, expected):
    assert read(pre(command="x", **parts)) == expected


@pytest.mark.parametrize(
    ("parts", "name", "said"),
    [
        ({"command": '["a'}, "command", "'[\"a' is not JSON"),
        ({"command": "['sh', '-c', 'sync']"}, "command", "is not JSON"),
        ({"command": "[ -f /x ]"}, "command", 'write an array of strings, such as ["/bin/sh", "-c", "sync"]'),
        ({"command": "[]"}, "command", "names no program"),
        ({"command": '["sleep", 5]'}, "command", "has a number in it"),
        ({"command": '["a", null]'}, "command", "has a null in it"),
        ({"command": '[["a"]]'}, "command", "has a list in it"),
        ({"command": '["", "a"]'}, "command", "command[0] is empty"),
        ({"command": '["a\\u0000"]'}, "command", "NUL character"),
        ({"command": ' ["a"]'}, "command", "begins with a space"),
        ({"command": "[" * 100_000}, "command", "is not JSON"),
        ({"command": "x" * 70_000}, "command", "the limit is 65536"),
        ({"on_error": "continue"}, "on-error", "did you mean 'Continue'?"),
        ({"on_error": "FailBlock"}, "on-error", "'FailBlock' is neither 'Fail' nor 'Continue'"),
        ({"timeout": "30"}, "timeout", "write 30s for seconds"),
        ({"timeout": "-1s"}, "timeout", "is negative"),  # theirs: no timeout at all
        ({"timeout": "169h"}, "timeout", "(7 days)"),
        ({"container": "mysq"}, "container", "(it has: mysql, metrics)"),
    ],
)
def test_what_velero_would_guess_at_is_a_problem_with_the_annotation_the_value_and_the_next_step(parts, name, said):
    (problem,) = read(pre(**{"command": "x", **parts}), containers=("mysql", "metrics"))
    assert problem.startswith(f"{PRE}{name}: ")
    assert said in problem
    assert len(problem) < 500


def test_a_container_is_not_looked_up_where_nobody_knows_them():
    assert read(pre(command="x", container="db")) == PodCommand(("x",), "db")


@pytest.mark.parametrize(
    ("annotations", "name", "said"),
    [
        (pre(comand="x"), PRE + "comand", f"did you mean {PRE}command?"),
        (pre(command="x", onError="Continue"), PRE + "onError", f"did you mean {PRE}on-error?"),
        (pre(command="x", zzz=""), PRE + "zzz", "known are " + PRE + "command"),
        ({OLD + "command": "x", OLD + "time-out": "5s"}, OLD + "time-out", f"did you mean {OLD}timeout?"),
    ],
)
def test_a_misspelt_annotation_is_named_since_its_hook_would_silently_not_run(annotations, name, said):
    (problem,) = read(annotations)
    assert problem.startswith(f"{name}: is no annotation of Velero's")
    assert said in problem


def test_misspelt_names_of_the_other_phase_do_not_matter():
    assert read({POST + "comand": "x"}) is None
    assert read({OLD + "comand": "x", PRE + "command": "x"}) == PodCommand(("x",))


def test_every_problem_is_told_at_once():
    said = read(pre(command="[", container="no", on_error="no", timeout="no", typo="no"), containers=("db",))
    assert [each.partition(": ")[0] for each in said] == [
        PRE + p for p in ("typo", "command", "container", "on-error", "timeout")
    ]


names = st.sampled_from(
    [phase + part for phase in (PRE, POST, OLD) for part in ("command", "container", "on-error", "timeout", "x")]
)
values = (
    st.text(max_size=40)
    | st.sampled_from(['["a"]', "[", "Fail", "Continue", "5s", "-5s", "1e400h"])
    | st.lists(st.text()).map(json.dumps)
)


@given(st.dictionaries(names, values), st.sampled_from(["pre", "post"]))
@example({PRE + "command": '["\\ud800"]'}, "pre")
@example({PRE + "command": "\ud800"}, "pre")
def test_whatever_stands_there_it_is_a_command_or_problems_of_this_phase(annotations, when):
    command, problems = read_annotations(annotations, when)
    assert command is None or not problems
    assert all(each.path in annotations and (each.path.startswith(when) or when == "pre") for each in problems)
    if command is not None:
        assert annotations.get(command_annotation(when)) or annotations[OLD + "command"]
        assert list(command.command) == command.action.exec_.command
        assert 0 < command.timeout_seconds <= MAX_TIMEOUT_SECONDS


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20), min_size=1))
def test_an_array_of_strings_is_run_as_it_stands(argv):
    read_back = read(pre(command=json.dumps(argv)))
    assert read_back == PodCommand(tuple(argv)) if argv[0] else "is empty" in read_back[0]
