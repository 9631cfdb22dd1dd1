"""`podhook policy`: valid, invalid, allowed, denied - without agent or broker."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import clean_environment
from tests.sidecar.policy.test_document import example

HOOKS = """
action: {exec: {command: [/usr/bin/mysqladmin, flush-tables]}}
---
action: {exec: {command: [/usr/bin/mysqladmin, "${WHAT:=shutdown}"]}, containerName: mysql}
---
action: {httpPost: {port: web, path: /backup/x}, containerName: mysql}
---
action: {tcpSocket: {host: 169.254.169.254, port: 3306}}
---
action: {tcpSocket: {host: db.shop.svc, port: 1}}
executor: {type: Operator}
"""


def policy(*arguments, stdin=""):
    done = subprocess.run(
        [sys.executable, "-m", "agent", "policy", *map(str, arguments)],
        input=stdin,
        env=clean_environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(example())
    return path


def test_a_valid_policy_is_described(file):
    code, out, err = policy("check", file)
    assert (code, err) == (0, "")
    assert out.startswith("policy: valid\n  actions in triggers: allowed by the rules below\n")
    assert "  containers.mysql.commands[0]: /usr/bin/mysqladmin flush-tables\n" in out
    assert "note:" not in out


def test_what_deserves_a_second_look_is_noted():
    code, out, _ = policy("check", "-", stdin="containers: {a: {commands: [[ls]]}}")
    assert code == 0
    assert "  note: containers.a.commands[0]: 'ls' is looked up" in out


def test_an_invalid_policy_is_explained_all_at_once():
    code, out, err = policy("check", "-", stdin="inlin: true\nlimits: {timeout: 5}\ntcp: [{hosts: ['*'], ports: [1]}]")
    assert (code, out) == (2, "")
    assert err.startswith("podhook: the policy cannot be used:\n")
    for said in ("  inlin: unknown field", "  limits.timeout: ", "  tcp[0].hosts[0]: "):
        assert said in err


def test_each_hook_is_judged_and_the_rule_named(file):
    code, out, err = policy("test", file, "-", "--port", "web=8080", stdin=HOOKS)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "stdin#1: allowed by containers.mysql.commands[0]"
    assert lines[1].startswith("stdin#2: denied: policy: containers.mysql.commands: none of its 2 rules is exactly")
    assert lines[1].endswith("(policy_denied)")
    assert lines[2] == "stdin#3: allowed by http[0]"
    assert lines[3].startswith("stdin#4: denied: policy: tcp: no rule allows a connection to 169.254.169.254")
    assert lines[4] == "stdin#5: not judged: the Operator executor runs it elsewhere than in an agent"


def test_all_allowed_is_0_and_parameters_count(file):
    hook = HOOKS.split("---")[1]
    assert policy("test", file, "-", "-p", "WHAT=flush-tables", stdin=hook) == (
        0,
        "stdin: allowed by containers.mysql.commands[0]\n",
        "",
    )
    assert policy("test", file, "-", "-p", "WHAT=flush-tables", "--timeout", "11m", stdin=hook)[0] == 1


def test_where_it_is_not_known_which_container_is_the_first_it_is_asked_for(tmp_path):
    two = "containers: {a: {commands: [[/x]]}, b: {commands: [[/y]]}}\n"
    file = tmp_path / "two.yaml"
    file.write_text(two)
    hook = "action: {exec: {command: [/y]}}"
    code, _, err = policy("test", file, "-", stdin=hook)
    assert code == 2
    assert "say with --container which one that is (the policy has rules for: a, b)" in err
    assert policy("test", file, "-", "--container", "b", stdin=hook)[0] == 0
    assert policy("test", file, "-", "--container", "a", stdin=hook)[0] == 1


def test_a_port_by_name_is_asked_for(file):
    code, _, err = policy("test", file, "-", stdin=HOOKS)
    assert code == 2
    assert "--port web=NUMBER" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["dump", "-p", "database=shop"], 0, "dump: allowed by catalogue.dump\n"),
        (["dump"], 1, "dump: denied: catalogue.dump: param 'database' is required"),
        (["dump", "-p", "database=Shop"], 1, "param 'database' does not match [a-z0-9_]+ as a whole (invalid_params)"),
        (["dum"], 1, "dum: denied: policy: catalogue: has no hook 'dum' (has: dump, thaw)"),
        (["thaw", "--timeout", "1h"], 1, "thaw: denied: policy: limits.timeout"),
    ],
)
def test_a_hook_of_the_catalogue_is_judged_with_its_parameters(file, arguments, code, said):
    got, out, err = policy("test", file, "--catalogue", *arguments)
    assert (got, err) == (code, "")
    assert said in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["test", "{file}"],
        ["test", "{file}", "x.yaml", "--catalogue", "dump"],
        ["check", "/no/such"],
        ["test", "{file}", "-", "--port", "x"],
    ],
)
def test_2_for_usage(file, arguments):
    assert policy(*[each.format(file=file) for each in arguments])[0] == 2
