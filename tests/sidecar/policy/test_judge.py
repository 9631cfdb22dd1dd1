"""Yes or no, and by which rule: tables of cases, and what no value can do."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.contract.actions import Action
from agent.contract.errors import ErrorCode, Refusal
from agent.sidecar.policy import Asked, Decision, judge, load_policy
from agent.sidecar.policy.judge import hook_action, judge_redirect
from tests.sidecar.policy.test_document import example

POLICY = load_policy("""
containers:
  mysql:
    commands:
      - [/bin/flush, tables]
      - {command: [/bin/freeze], users: [root], env: [LEVEL], environment: [minimal]}
      - {command: [/bin/freeze]}
http:
  - {hosts: [pod], ports: [8080], methods: [POST], paths: [/backup/, /thaw], headers: [X-Token]}
  - {hosts: [api.shop, "*.db.shop"], ports: [80, 443], methods: [GET]}
  - {hosts: [169.254.169.254], ports: [80], paths: [/latest/]}
tcp:
  - {hosts: [10.0.0.0/8, "fd00::/8", "::ffff:192.168.0.0/112"], ports: [3306]}
  - {hosts: [0.0.0.0/0], ports: [5432]}
limits: {timeout: 1m}
""")
POD = "10.9.8.7"


def asked(action: dict[str, Any], **more: Any) -> Asked:
    made = Action.model_validate(action)
    part = made.http_get or made.http_post or made.tcp_socket
    port = part.port if part is not None and isinstance(part.port, int) else 0
    return Asked(made, **{"container": "mysql", "port": port, "timeout_seconds": 60, "pod_address": POD, **more})


def decide(action: dict[str, Any], policy=POLICY, **more: Any) -> Decision:
    return judge(policy, asked(action, **more))


def run(*command: str, **more: Any) -> dict[str, Any]:
    return {"exec": {"command": list(command), **more}}


def get(host: str = "", port: int = 80, path: str = "/", **more: Any) -> dict[str, Any]:
    return {"httpGet": {"host": host, "port": port, "path": path, **more}}


def post(host: str = "", port: int = 8080, path: str = "/backup/x", *headers: str, **more: Any) -> dict[str, Any]:
    named = [{"name": name, "value": "1"} for name in headers]
    return {"httpPost": {"host": host, "port": port, "path": path, "httpHeaders": named, **more}}


def tcp(host: str, port: int = 3306) -> dict[str, Any]:
    return {"tcpSocket": {"host": host, "port": port}}


ALLOWED = [
    (run("/bin/flush", "tables"), "containers.mysql.commands[0]"),
    (run("/bin/freeze"), "containers.mysql.commands[2]"),
    (run("/bin/freeze", environment="minimal"), "containers.mysql.commands[1]"),
    (
        run("/bin/freeze", environment="minimal", user="root", env=[{"name": "LEVEL", "value": "9"}]),
        "containers.mysql.commands[1]",
    ),
    (post(), "http[0]"),
    (post(POD), "http[0]"),
    (post("127.0.0.1"), "http[0]"),
    (post("localhost"), "http[0]"),
    (post("::ffff:127.0.0.1"), "http[0]"),
    (post("", 8080, "backup/x?y=/../z"), "http[0]"),
    (post("", 8080, "/thaw"), "http[0]"),
    (post("", 8080, "/thaw/now#x"), "http[0]"),
    (post("", 8080, "/%62ackup/x"), "http[0]"),
    (post("", 8080, "/backup/x", "x-token", "Content-Type"), "http[0]"),
    (get("api.shop"), "http[1]"),
    (get("API.Shop."), "http[1]"),
    (get("a.b.db.shop", 443), "http[1]"),
    (get("169.254.169.254", 80, "/latest/meta-data"), "http[2]"),
    (tcp("10.1.2.3"), "tcp[0]"),
    (tcp("::ffff:10.1.2.3"), "tcp[0]"),
    (tcp("192.168.7.7"), "tcp[0]"),
    (tcp(""), "tcp[0]"),  # the pod's address is listed as an address
    (tcp("fd00::1"), "tcp[0]"),
    (tcp("8.8.8.8", 5432), "tcp[1]"),
]
DENIED = [
    (run("/bin/flush"), "containers.mysql.commands", "differs from element 1 on"),
    (run("/bin/flush", "tables", "x"), "containers.mysql.commands", "differs from element 2 on"),
    (run("/bin/flush", "table"), "containers.mysql.commands", "the nearest is 0"),
    (run("flush", "tables"), "containers.mysql.commands", "none of its 3 rules is for 'flush'"),
    (run("/bin/flush tables"), "containers.mysql.commands", "none of its 3 rules is for"),
    (run("/bin/flush", "tables", user="root"), "containers.mysql.commands[0]", "does not allow exec.user 'root'"),
    (run("/bin/freeze", user="0", environment="minimal"), "containers.mysql.commands[1]", "(users: root)"),
    (
        run("/bin/freeze", environment="minimal", env=[{"name": "LD_PRELOAD"}]),
        "containers.mysql.commands[1]",
        "variable 'LD_PRELOAD' in exec.env (env: LEVEL)",
    ),
    (run("/bin/flush", "tables", environment="minimal"), "containers.mysql.commands[0]", "exec.environment minimal"),
    (get("", 8080, "/backup/x"), "http", "nearest is http[0], which lacks method GET"),
    (post("", 8081), "http", "which lacks port 8081"),
    (post("", 8080, "/"), "http", "which lacks this path (paths: /backup/, /thaw)"),
    (post("", 8080, "/backup"), "http", "this path"),
    (post("", 8080, "/thawed"), "http", "this path"),
    (post("", 8080, "/backup/../admin"), "http", "this path"),
    (post("", 8080, "/backup/%2e%2E/admin"), "http", "this path"),
    (post("", 8080, "/backup/..;/admin"), "http", "this path"),
    (post("", 8080, "/backup/..%2fadmin"), "http", "this path"),
    (post("", 8080, "/backup/%252e%252e/"), "http", "this path"),
    (post("", 8080, "/backup/..\\admin"), "http", "this path"),
    (post("", 8080, "@/backup/"), "http", "this path"),
    (post("", 8080, "/backup/x", "Host"), "http", "header Host"),
    (post("", 8080, "/backup/x", "X-HTTP-Method-Override"), "http", "header X-HTTP-Method-Override"),
    (get("db.shop", 80), "http", "host 'db.shop'"),
    (get("xdb.shop", 80), "http", "host 'xdb.shop'"),
    (get("api.shop.evil.example", 80), "http", "host"),
    (get("10.1.2.3", 80), "http", "host '10.1.2.3'"),
    (tcp("db.shop"), "tcp", "host 'db.shop'"),  # only addresses are listed
    (tcp("10.1.2.3", 22), "tcp", "which lacks port 22"),
    (tcp("11.1.2.3"), "tcp", "host '11.1.2.3'"),
    (tcp("127.0.0.1"), "tcp", "host"),
]


@pytest.mark.parametrize(("action", "rule"), ALLOWED)
def test_what_a_rule_allows_names_it(action, rule):
    decision = decide(action)
    assert (decision.rule, decision.refusal) == (rule, None)


@pytest.mark.parametrize(("action", "rule", "said"), DENIED)
def test_what_no_rule_allows_is_refused_and_says_what_would(action, rule, said):
    decision = decide(action)
    assert decision.refusal is not None
    assert (decision.rule, decision.refusal.code) == (rule, ErrorCode.POLICY_DENIED)
    assert said in decision.refusal.message
    assert decision.refusal.message.startswith(f"policy: {rule}: ")


def test_a_container_without_rules_runs_nothing():
    decision = decide(run("/bin/freeze"), container="agent")
    assert (decision.rule, decision.allowed) == ("containers", False)
    assert "no rule is for container 'agent' (has: mysql); add containers.agent.commands" in decision.refusal.message


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "::ffff:169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376"]
)
@pytest.mark.parametrize("policy", [None, POLICY])
def test_a_special_address_that_stands_in_the_action_is_refused_before_anything_runs(policy, host):
    decision = decide(tcp(host, 5432), policy)  # tcp[1] allows 0.0.0.0/0, which names nothing
    assert decision.refusal is not None
    assert decision.refusal.code == ErrorCode.ADDRESS_REFUSED


def test_without_a_policy_everything_else_is_allowed():
    for action in (run("/bin/sh", "-c", "x", user="root"), get("evil.example"), tcp("8.8.8.8"), post()):
        decision = decide(action, None, timeout_seconds=7 * 86400)
        assert (decision.allowed, decision.rule, decision.reach.others) == (True, "no policy", True)


def test_a_longer_timeout_than_the_limit_is_refused_with_both():
    refusal = decide(run("/bin/freeze"), timeout_seconds=61).refusal
    assert refusal is not None
    assert refusal.message == "policy: limits.timeout: the timeout of 1m1s is above it (1m); ask for at most 1m"
    assert decide(run("/bin/freeze"), timeout_seconds=60).allowed


def test_where_inline_is_false_only_the_catalogue_runs():
    policy = load_policy("inline: false\ncontainers: {mysql: {commands: [[a]]}}\n" + CATALOGUE)
    decision = decide(run("a"), policy)
    assert (decision.rule, decision.allowed) == ("inline", False)
    assert "only hooks of the catalogue (dump, ask, meta)" in decision.refusal.message
    assert judge(policy, Asked(hook_action(policy, "dump", {"db": "x"}), container="mysql", hook="dump")).allowed


@pytest.mark.parametrize(
    ("action", "address", "allowed"),
    [
        (get("api.shop"), "10.0.0.1", True),
        (get("api.shop"), "127.0.0.1", False),
        (get("api.shop"), "::1", False),
        (get("api.shop"), "0.0.0.0", False),
        (get("api.shop"), "169.254.169.254", False),
        (get("api.shop"), "64:ff9b::a9fe:a9fe", False),
        (tcp("10.1.2.3"), "10.1.2.3", True),
        (tcp("10.1.2.3"), "11.1.2.3", False),
        (post("localhost"), "127.0.0.1", True),
        (post("localhost"), "8.8.8.8", False),
        (post(), POD, True),
        (post(), "8.8.8.8", False),
    ],
)
def test_where_a_rule_lets_a_connection_go(action, address, allowed):
    assert (decide(action).reach.refusal(address) is None) == allowed


def test_a_redirect_needs_a_rule_of_its_own():
    of = asked(post("", 8080, "/backup/x", "X-Token"))
    assert judge_redirect(POLICY, of, "POST", 8080, "/thaw").rule == "http[0]"
    for method, port, path in (("GET", 8080, "/thaw"), ("POST", 8081, "/thaw"), ("POST", 8080, "/admin")):
        with pytest.raises(Refusal, match="policy: http: no rule allows") as caught:
            judge_redirect(POLICY, of, method, port, path)
        assert caught.value.rule == "http"
    assert judge_redirect(None, of, "GET", 1, "/").others


# -- the catalogue

CATALOGUE = """
catalogue:
  dump:
    params:
      db: {type: string, pattern: "[^!]*", maxLength: 8}
      level: {type: integer, minimum: -3, maximum: 9, default: 1}
    action: {exec: {command: [/bin/dump, "--level=${level}", "$${HOME}", "${db}"]}, containerName: mysql}
  ask:
    params:
      db: {type: string, pattern: "(?s).*"}
      on: {type: boolean, default: false}
      how: {type: enum, values: [-a, b], default: b}
    action: {httpPost: {host: api.shop, port: 80, path: "/db/${db}?how=${how}", body: '{"db": "${db}", "on": ${on}}'}}
  meta:
    action: {httpGet: {host: 169.254.169.254, port: 80}}
"""
WITH_HOOKS = load_policy(CATALOGUE)


def refused(name: str, **params: str) -> str:
    with pytest.raises(Refusal) as caught:
        hook_action(WITH_HOOKS, name, params)
    assert caught.value.code == ErrorCode.INVALID_PARAMS
    return caught.value.message


def test_parameters_become_parts_of_elements():
    action = hook_action(WITH_HOOKS, "dump", {"db": "a b;$(c)", "level": "-3"})
    assert action.exec_.command == ["/bin/dump", "--level=-3", "${HOME}", "a b;$(c)"]
    assert hook_action(WITH_HOOKS, "dump", {"db": "${level}"}).exec_.command == [
        "/bin/dump",
        "--level=1",
        "${HOME}",
        "${level}",
    ]


def test_parameters_of_a_request_are_encoded():
    request = hook_action(WITH_HOOKS, "ask", {"db": 'a/b?"c"\n@', "on": "true"}).http_post
    assert request.path == "/db/a%2Fb%3F%22c%22%0A%40?how=b"
    assert yaml.safe_load(request.body) == {"db": 'a/b?"c"\n@', "on": True}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "param 'db' is required (text like [^!]*, at most 8 characters)"),
        ({"db": "x", "dbb": "y"}, "param 'dbb' is unknown; did you mean 'db'?"),
        ({"db": "x!"}, "param 'db' does not match [^!]* as a whole"),
        ({"db": "123456789"}, "param 'db' has 9 characters; the limit is 8"),
        ({"db": "a\0b"}, "param 'db' has a NUL character"),
        ({"db": "-rf"}, "param 'db' begins an argument with '-'"),
        ({"db": "x", "level": "10"}, "param 'level' is out of range (-3 to 9)"),
        ({"db": "x", "level": "01"}, "param 'level' is not an integer"),
        ({"db": "x", "level": "1\n"}, "param 'level' is not an integer"),
        ({"db": "x", "level": "\u0661"}, "param 'level' is not an integer"),
        ({"db": "x", "level": "9" * 5000}, "param 'level' is not an integer"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_by_name(params, said):
    message = refused("dump", **params)
    assert message.startswith("catalogue.dump: ")
    assert said in message


def test_a_value_is_in_no_message():
    assert "s3cret" not in refused("dump", db="s3cret!", level="s3cret", x="s3cret")


def test_a_path_does_not_climb():
    assert "has a . or .. segment" in refused("ask", db="..")


def test_what_is_listed_may_begin_with_a_dash_and_other_words_may_not_be_given():
    assert hook_action(WITH_HOOKS, "ask", {"db": "x", "how": "-a"}).http_post.path.endswith("how=-a")
    assert "is not one of -a, b" in refused("ask", db="x", how="c")
    assert "is neither true nor false" in refused("ask", db="x", on="yes")


def test_an_unknown_hook_is_refused_with_those_there_are():
    with pytest.raises(Refusal, match=r"has no hook 'dum' \(has: dump, ask, meta\)") as caught:
        hook_action(WITH_HOOKS, "dum", {})
    assert caught.value.code == ErrorCode.UNKNOWN_HOOK


def test_a_hook_is_its_own_rule_and_its_host_is_what_it_opens():
    def reach(name: str, **params: str):
        action = hook_action(WITH_HOOKS, name, params)
        decision = judge(WITH_HOOKS, Asked(action, port=80, hook=name, pod_address=POD))
        assert (decision.rule, decision.allowed) == (f"catalogue.{name}", True)
        return decision.reach

    assert reach("meta").refusal("169.254.169.254") is None
    assert reach("meta").refusal("169.254.169.253") is not None
    assert reach("ask", db="x").refusal("10.0.0.1") is None
    assert reach("ask", db="x").refusal("169.254.169.254") is not None
    of = Asked(hook_action(WITH_HOOKS, "ask", {"db": "x"}), port=80, hook="ask", pod_address=POD)
    assert judge_redirect(WITH_HOOKS, of, "GET", 80, "/").rule == "catalogue.ask"
    with pytest.raises(Refusal, match="a redirect leads to port 81") as caught:
        judge_redirect(WITH_HOOKS, of, "GET", 81, "/")
    assert (caught.value.code, caught.value.rule) == (ErrorCode.POLICY_DENIED, "catalogue.ask")


def test_a_pattern_that_would_take_others_for_ever_takes_no_time():
    slow = load_policy("""
catalogue:
  h: {params: {a: {type: string, pattern: "(a+)+b", maxLength: 4096}}, action: {exec: {command: [/x, "${a}"]}}}
""")
    with pytest.raises(Refusal, match="does not match"):  # with `re` the test's time would run out
        hook_action(slow, "h", {"a": "a" * 4096})


# -- whatever comes

TEXT = st.text(max_size=20) | st.sampled_from(["-x", "..", "${db}", "$${", "a\0", "\ud800", '"', "\\", "%00", "\n"])


@given(TEXT, TEXT)
def test_no_value_changes_the_number_of_elements(db, level):
    try:
        command = hook_action(WITH_HOOKS, "dump", {"db": db, "level": level}).exec_.command
    except Refusal:
        return
    assert len(command) == 4
    assert command[0] == "/bin/dump"
    assert command[3] == db
    assert not db.startswith("-")


@given(TEXT)
def test_no_value_leaves_its_string_in_a_body_or_its_piece_of_a_path(db):
    try:
        request = hook_action(WITH_HOOKS, "ask", {"db": db}).http_post
    except Refusal:
        return
    import json

    assert json.loads(request.body) == {"db": db, "on": False}
    assert request.path.count("/") == 2
    assert request.path.count("?") == 1
    assert request.path.isascii()


@given(
    st.sampled_from([None, POLICY, WITH_HOOKS, load_policy(example())]),
    st.sampled_from(["httpGet", "httpPost", "tcpSocket"]),
    st.text(max_size=30) | st.ip_addresses().map(str) | st.sampled_from(["pod", "*.db.shop", "localhost.", "1", "%"]),
    st.integers(1, 65535),
    st.text(max_size=30) | st.sampled_from(["/backup/%", "/backup/%zz"]),
    st.sampled_from(["", POD, "::1", "name", "\ud800"]),
)
def test_any_address_and_path_is_judged_without_a_crash(policy, kind, host, port, path, pod_address):
    part = {"host": host, "port": port} | ({"path": path} if kind != "tcpSocket" else {})
    try:
        action = Action.model_validate({kind: part})
    except ValidationError:
        return
    decision = judge(policy, Asked(action, port=port, timeout_seconds=1, pod_address=pod_address))
    assert decision.rule
    assert decision.allowed or decision.refusal.message


@given(st.lists(st.text(max_size=10), min_size=1, max_size=5), st.text(max_size=10))
def test_any_command_but_those_listed_is_denied(command, container):
    try:
        action = Action.model_validate({"exec": {"command": command}})
    except ValidationError:
        return
    assert not judge(POLICY, Asked(action, container=container)).allowed
    assert not judge(POLICY, Asked(action, container="mysql")).allowed
