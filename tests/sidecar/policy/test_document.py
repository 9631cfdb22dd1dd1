"""The policy file: read strictly, every problem with its path, and the example of the guide is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.errors import InvalidPolicy
from agent.sidecar.policy import load_policy
from agent.sidecar.policy.summary import notes, summary

GUIDE = Path(__file__).parents[3] / "docs" / "policy.md"


def example() -> str:
    return re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[0]


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidPolicy) as caught:
        load_policy(text)
    return [str(problem) for problem in caught.value.problems]


def hook(action: str, params: str = "a: {type: string, pattern: x}") -> str:
    return f"catalogue: {{h: {{params: {{{params}}}, action: {action}}}}}"


def test_the_guides_example_is_a_policy():
    policy = load_policy(example())
    assert list(policy.commands) == ["mysql"]
    assert list(policy.catalogue) == ["dump", "thaw"]
    assert (policy.timeout_seconds, policy.limits.output_bytes, policy.limits.concurrency) == (600, 16384, 4)
    assert list(notes(policy)) == []
    lines = "\n".join(summary(policy))
    for said in (
        "containers.mysql.commands[0]: /usr/bin/mysqladmin flush-tables",
        "commands[1]: /usr/local/bin/freeze --now (also as root, 999:998; with FREEZE_SECONDS; in a minimal ",
        "http[0]: POST to pod, port 8080, below /backup/, headers X-Token",
        "tcp[0]: connections to *.shop.svc, 10.20.0.0/16, port 3306, 5432",
        "catalogue.dump: exec (database: text like [a-z0-9_]+, at most 64 characters, required;",
        "limits: timeout 10m, 16384 bytes of each stream, 4 at once",
    ):
        assert said in lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has nothing in it"),
        ("a: 1\n---\nb: 1", "has 2 documents"),
        ("[]", "is a list, not a policy"),
        ("inline: true\ninline: false", "'inline' stands here a second time"),
        ("inline: &a true\ntcp: *a", "aliases"),
        ("inlin: true", "inlin: unknown field; did you mean 'inline'?"),
        ("inline: 1", "inline: 1 is a number, not a boolean"),
        ("limits: {timeot: 1m}", "limits.timeot: unknown field; did you mean 'timeout'?"),
        ("limits: {timeout: 300}", "limits.timeout"),
        ("limits: {timeout: 0s}", "out of range"),
        ("limits: {concurrency: 0}", "limits.concurrency"),
        ("containers: {mysql: {commands: []}}", "containers.mysql.commands: is empty"),
        ("containers: {mysql: {commands: [[]]}}", "containers.mysql.commands[0].command: is empty"),
        (
            "containers: {mysql: {commands: ['ls -l']}}",
            "containers.mysql.commands[0]: 'ls -l' is a text, not a mapping",
        ),
        ("containers: {mysql: {comands: [[a]]}}", "did you mean 'commands'?"),
        ("containers: {mysql: {commands: [{command: [a], envs: [B]}]}}", "did you mean 'env'?"),
        (
            "containers: {mysql: {commands: [{command: [a], env: ['A=B']}]}}",
            "is not the name of an environment variable",
        ),
        ("tcp: [{hosts: [10.0.0.1/8], ports: [1]}]", "has host bits set"),
        ("tcp: [{hosts: ['2852039166'], ports: [1]}]", "write 169.254.169.254"),
        ("tcp: [{hosts: ['http://x/'], ports: [1]}]", "tcp[0].hosts[0]"),
        ("tcp: [{hosts: ['*'], ports: [1]}]", "is not a host"),
        ("tcp: [{hosts: ['a.*.b'], ports: [1]}]", "is not a host"),
        ("tcp: [{hosts: ['fe80::1%eth0'], ports: [1]}]", "without its scope"),
        ("tcp: [{hosts: ['bücher.de'], ports: [1]}]", "xn--"),
        ("tcp: [{hosts: [pod], ports: [0]}]", "tcp[0].ports[0]"),
        ("tcp: [{hosts: [pod], ports: []}]", "tcp[0].ports: is empty"),
        ("http: [{hosts: [pod], ports: [1], methods: [PUT]}]", "is not one of 'GET' or 'POST'"),
        ("http: [{hosts: [pod], ports: [1], paths: [backup]}]", "starts with /"),
        ("http: [{hosts: [pod], ports: [1], paths: [/a/../b]}]", "has a . or .. segment"),
        ("http: [{hosts: [pod], ports: [1], headers: [Connection]}]", "frames the message"),
        (hook("{exec: {command: [a, '${b}']}}"), "catalogue.h.action.exec.command[1]: there is no parameter 'b'"),
        (hook("{exec: {command: [a, b]}}"), "parameter 'a' is not used"),
        (hook("{exec: {command: ['${a}']}}"), "names the program, and that is fixed"),
        (hook("{exec: {command: [sh, -c, 'dump ${a}']}}"), "is shell text"),
        (hook("{exec: {command: [/bin/bash, -o, pipefail, -ec, 'dump ${a}']}}"), "is shell text"),
        (hook("{exec: {command: [nice, su, postgres, '--command=dump ${a}']}}"), "is shell text"),
        (hook("{exec: {command: [env, -S, 'dump ${a}']}}"), "is shell text"),
        (hook("{exec: {command: [x, '${a}'], env: [{name: A, value: '${a}'}]}}"), "parameters may stand only in"),
        (hook("{exec: {command: [x, '${a}'], user: '${a}'}}"), "user"),
        (hook("{httpGet: {host: '${a}', port: 80}}"), "host: parameters may stand only in"),
        (hook("{httpPost: {port: 80, body: 'x=${a}'}}"), "it must be JSON"),
        (hook("{httpPost: {port: 80, body: '{\"a\": ${a}}'}}"), "it must be JSON"),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: string}"), "params.a.pattern: is required for a string"),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: string, pattern: '(a'}"), "unclosed group"),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: string, pattern: 'a)|(b'}"), "unopened group"),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: string, pattern: '(?=a)'}"), "look-around"),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: enum}"), "params.a.values: is required for an enum"),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: integer, pattern: x}"), "belongs to string only"),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: integer, minimum: 2, maximum: 1}"), "no number fits"),
        (
            hook("{exec: {command: [x, '${a}']}}", "a: {type: integer, maximum: 1, default: 2}"),
            "default: is out of range",
        ),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: strin, pattern: x}"), "did you mean 'string'?"),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: boolean, required: false}"), "there is no default"),
        (hook("{exec: {command: [x, '${a}']}}", "a: {type: boolean, required: true, default: true}"), "beside it"),
        (hook("{exec: {command: [x, '${a}']}}", "a b: {type: boolean}"), "is not a parameter's name"),
    ],
)
def test_each_problem_is_named_with_its_place(text, said):
    assert said in "\n".join(problems(text)), problems(text)


def test_all_problems_are_named_at_once():
    found = problems(
        "inlin: 1\ncontainers: {a: {command: [x]}}\ntcp: [{hosts: ['*'], ports: [0]}]\n"
        "catalogue: {x: {params: {a: {type: string}}, action: {exec: {command: [x, '${b}']}}}}"
    )
    assert [problem.split(": ")[0] for problem in found] == [
        "containers.a.commands",
        "containers.a.command",
        "tcp[0].hosts[0]",
        "tcp[0].ports[0]",
        "catalogue.x.params.a.pattern",
        "catalogue.x.action.exec.command[1]",
        "catalogue.x.action",
        "inlin",
    ]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("inline: true", "it allows nothing at all"),
        ("inline: false\ntcp: [{hosts: [pod], ports: [1]}]", "it allows nothing at all"),
        (hook("{exec: {command: [/x, '${a}']}}") + "\ninline: false\ntcp: [{hosts: [pod], ports: [1]}]", "never asked"),
        ("containers: {a: {commands: [[ls]]}}", "PATH"),
        ("containers: {a: {commands: [{command: [/ls], env: [LD_PRELOAD, A]}]}}", "whoever sets LD_PRELOAD can choose"),
        ("tcp: [{hosts: [169.254.169.254], ports: [1]}]", "tcp[0]: 169.254.169.254/32 is opened by name"),
    ],
)
def test_what_deserves_a_second_look_is_said(text, note):
    assert any(note in each for each in notes(load_policy(text)))


@pytest.mark.parametrize("text", ["tcp: [{hosts: [0.0.0.0/0, '*.x'], ports: [1]}]"])
def test_nothing_is_said_of_what_is_plain(text):
    assert list(notes(load_policy(text))) == []


def reads(text: str | bytes) -> None:
    """A policy, or InvalidPolicy with reasons; nothing else."""
    reasons = None
    try:
        load_policy(text)
    except InvalidPolicy as error:
        reasons = error.problems
    assert reasons is None or reasons


WORDS = """inline containers http tcp catalogue limits commands hosts ports params action exec command type pattern
string enum pod ${a} $${ *.a 10.0.0.0/8 timeout"""
PIECES = st.sampled_from(WORDS.split())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | PIECES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PIECES | st.text(max_size=4), inner, max_size=4),
    max_leaves=25,
)


@given(VALUES)
def test_a_document_of_any_shape_is_a_policy_or_invalid(value):
    reads(yaml.safe_dump(value, allow_unicode=True))


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_a_policy_or_invalid(text):
    reads(text)


@given(st.data())
def test_the_example_with_one_part_replaced_is_a_policy_or_invalid(data):
    document = yaml.safe_load(example())
    place = document
    for _ in range(data.draw(st.integers(0, 4))):
        inner = [
            key
            for key in (place if isinstance(place, dict) else range(len(place)))
            if isinstance(place[key], dict | list) and place[key]
        ]
        if not inner:
            break
        place = place[data.draw(st.sampled_from(inner))]
    key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
    place[key] = data.draw(VALUES)
    reads(yaml.safe_dump(document))
