"""A hook and how it is called: parameters, overrides, bounds, and what is refused before anything runs."""

from __future__ import annotations

import pytest

from agent.contract.errors import InvalidHook
from agent.contract.messages import CatalogueHook
from agent.contract.templates import Hook, HookSpec, load_hooks
from agent.coordinator import HookCall

POD = "executor: {type: Pod, pod: {selector: app=db}}\n"


def hook(action="exec: {command: [/bin/true]}", executor=POD):
    return load_hooks(f"action: {{{action}}}\n{executor}")[0]


def template(command="[/bin/true]", params="[]", more="", namespace=""):
    return load_hooks(
        f"""
apiVersion: core.kubestash.com/v1alpha1
kind: HookTemplate
metadata: {{name: h{f", namespace: {namespace}" if namespace else ""}}}
spec:
  {more}
  params: {params}
  action: {{exec: {{command: {command}}}}}
  {POD}
"""
    )[0]


def command(hook, **params):
    return HookCall(hook, params=params).action().exec_.command


def problems(call):
    with pytest.raises(InvalidHook) as refused:
        call.check()
    return [str(problem) for problem in refused.value.problems]


# -- parameters


def test_a_param_is_filled_into_every_element_of_the_command():
    declared = template('["/bin/${WHAT}", "-c", "echo ${WHAT}"]', "[{name: WHAT}]")
    assert command(declared, WHAT="sh") == ["/bin/sh", "-c", "echo sh"]


def test_a_param_is_filled_into_a_posts_body():
    posted = hook('httpPost: {port: 80, body: "{\\"db\\": \\"${DB}\\"}"}')
    assert HookCall(posted, params={"DB": "shop"}).action().http_post.body == '{"db": "shop"}'


def test_a_param_is_there_for_go_templates():
    assert command(template('["echo", "{{ .Params.DB | upper }}"]', "[{name: DB}]"), DB="x") == ["echo", "X"]


def test_a_value_is_not_read_again():
    assert command(template('["echo", "${A}"]', "[{name: A}, {name: B}]"), A="${B} {{ .Params.B }}", B="no") == [
        "echo",
        "${B} {{ .Params.B }}",
    ]


@pytest.mark.parametrize("text", ["${HOME}", "$HOME", "${HOME:-x}", "$$"])
def test_what_is_no_param_is_left_for_the_shell(text):
    assert command(template(f'["sh", "-c", "echo {text}"]')) == ["sh", "-c", f"echo {text}"]


def test_a_declared_default_is_used_and_can_be_overridden():
    declared = template('["echo", "${N}"]', '[{name: N, default: "1"}]')
    assert command(declared) == ["echo", "1"]
    assert command(declared, N="2") == ["echo", "2"]


def test_a_param_that_only_stands_in_the_text_can_be_given():
    assert command(hook('exec: {command: [echo, "${WHAT:=tables}"]}'), WHAT="rows") == ["echo", "rows"]


def test_an_undeclared_param_is_refused_with_what_is_declared():
    [problem] = problems(HookCall(template(params="[{name: DB}]"), params={"BD": "x"}))
    assert problem == "param BD: is neither declared nor used by this hook (declared: DB)"


def test_missing_required_params_are_named_all_at_once_with_their_usage():
    declared = template(params="[{name: A, required: true, usage: the lock}, {name: B, required: true}]")
    assert problems(HookCall(declared)) == [
        "param A: is required (the lock); give --param A=VALUE, or params in a plan",
        "param B: is required (no usage given); give --param B=VALUE, or params in a plan",
    ]


def test_a_required_param_with_a_default_is_not_missing():
    assert command(template(params='[{name: A, required: true, default: "1"}]')) == ["/bin/true"]


def test_a_rendered_action_is_checked_again():
    assert problems(HookCall(template('["${A}"]', "[{name: A}]"), params={"A": ""}))
    [problem] = problems(HookCall(template('["echo", "${A}"]', "[{name: A}]"), params={"A": "a\0b"}))
    assert "NUL" in problem


def test_a_command_that_no_agent_would_take_is_refused_here():
    posted = hook('httpPost: {port: 80, body: "${A}"}')
    [problem] = problems(HookCall(posted, params={"A": "x" * 255_000}))
    assert "limit" in problem


# -- in which pods


def test_a_selector_of_the_call_replaces_the_hooks_own_and_keeps_its_strategy():
    own = hook(executor="executor: {type: Pod, pod: {selector: app=db, strategy: ExecuteOnAll}}\n")
    executor = HookCall(own, selector="app=web").pods()
    assert (executor.selector, executor.strategy) == ("app=web", "ExecuteOnAll")


def test_a_selector_of_the_call_stands_in_for_a_missing_executor():
    bare = hook(executor="")
    assert HookCall(bare, selector="app=web").pods().strategy == "ExecuteOnOne"
    assert "say in which pods with --selector" in problems(HookCall(bare))[0]


def test_a_strategy_of_the_call_replaces_the_hooks_own():
    assert HookCall(hook(), strategy="ExecuteOnAll").pods().strategy == "ExecuteOnAll"
    assert HookCall(hook()).pods().strategy == "ExecuteOnOne"


@pytest.mark.parametrize("more", [{"selector": ""}, {"selector": "a in"}, {"strategy": "ExecuteOnSome"}])
def test_a_selector_or_strategy_that_cannot_be_read_is_refused(more):
    assert problems(HookCall(hook(), **more))


OPERATOR = "executor: {type: Operator}\n"
FUNCTION = "executor: {type: Function, function: {name: f}}\n"


@pytest.mark.parametrize(("kind", "executor"), [("Operator", OPERATOR), ("Function", FUNCTION)])
@pytest.mark.parametrize(
    ("more", "flag"), [({"selector": "app=web"}, "--selector"), ({"strategy": "ExecuteOnAll"}, "--strategy")]
)
def test_a_selector_or_strategy_fits_only_pods(kind, executor, more, flag):
    assert problems(HookCall(hook("tcpSocket: {host: a, port: 1}", executor=executor), **more)) == [
        f"executor.type: is {kind!r}, which selects no pods; leave {flag} out, or write type: Pod"
    ]


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        ("exec: {command: [a]}, containerName: mysql", "action.containerName: is 'mysql', and the Operator executor"),
        ("exec: {command: [a], user: root}", "action.exec.user: is 'root'; the Operator executor"),
        ("httpGet: {port: 80}", "action.httpGet.host: is required with the Operator executor"),
        ("httpPost: {port: 80}", "action.httpPost.host: is required with the Operator executor"),
        ("tcpSocket: {port: 80}", "action.tcpSocket.host: is required with the Operator executor"),
        ("tcpSocket: {host: a, port: web}, containerName: c", "action.tcpSocket.port: is 'web', a name that only"),
    ],
)
def test_the_operator_has_no_pod_so_what_only_pods_have_is_refused(action, problem):
    [found] = problems(HookCall(hook(action, executor=OPERATOR)))
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "action",
    [
        "exec: {command: [a]}",
        "httpGet: {host: a, port: 80}",
        "httpPost: {host: a, port: '80'}",
        "tcpSocket: {host: a, port: 1}, containerName: c",
    ],
)
def test_what_needs_no_pod_the_operator_runs(action):
    HookCall(hook(action, executor=OPERATOR)).check()


def test_a_function_needs_no_action_so_none_is_asked_for():
    HookCall(load_hooks(FUNCTION)[0]).check()


def test_a_function_without_an_action_still_has_its_parameters_checked():
    declared = load_hooks("params: [{name: A}]\n" + FUNCTION)[0]
    assert problems(HookCall(declared, params={"B": ""}))[0].startswith("param B: is neither declared nor used")


# -- variables and data


@pytest.mark.parametrize(
    ("params", "variables", "said"),
    [({}, {}, "d"), ({}, {"A": "v"}, "v"), ({"A": "p"}, {"A": "v"}, "p"), ({"A": "p"}, {}, "p")],
)
def test_a_given_param_wins_over_a_variable_and_that_over_a_default(params, variables, said):
    declared = template('["echo", "${A}"]', "[{name: A, default: d}]")
    assert HookCall(declared, params=params, variables=variables).action().exec_.command == ["echo", said]


def test_a_variable_that_the_hook_does_not_use_is_no_error():
    HookCall(template('["echo"]'), variables={"UNUSED": "x"}).check()


def test_a_template_reads_what_the_call_knows_of_the_operation():
    status = template('["echo", "{{ if eq .Status.Phase `Succeeded` }}fine{{ else }}{{ .Status.Error }}{{ end }}"]')
    data = {"Status": {"Phase": "Failed", "Error": "disk full"}}
    assert HookCall(status, data=data).action().exec_.command == ["echo", "disk full"]
    assert HookCall(status).action().exec_.command == ["echo", "<no value>"]


def test_an_executor_alone_cannot_be_run():
    assert problems(HookCall(load_hooks(POD)[0])) == [
        "action: is required: give one of exec, httpGet, httpPost, tcpSocket"
    ]


# -- usage policy


@pytest.mark.parametrize(
    ("policy", "home", "asked", "allowed"),
    [
        ("", "shop", {"shop"}, True),
        ("", "shop", {"lab"}, False),
        ("", "shop", {"shop", "lab"}, False),
        ("", "shop", None, False),
        ("", "", {"lab"}, True),  # a file without a namespace belongs to nobody
        ("usagePolicy: {allowedNamespaces: {from: All}}", "shop", {"lab"}, True),
        ("usagePolicy: {allowedNamespaces: {from: All}}", "shop", None, True),
        ("usagePolicy: {allowedNamespaces: {from: Same}}", "shop", {"shop"}, True),
        (
            "usagePolicy: {allowedNamespaces: {from: Selector, selector: {matchLabels: {a: b}}}}",
            "shop",
            {"shop"},
            False,
        ),
    ],
)
def test_a_template_is_used_only_where_it_allows(policy, home, asked, allowed):
    call = HookCall(template(more=policy, namespace=home), namespaces=frozenset(asked) if asked is not None else None)
    if allowed:
        call.check()
    else:
        assert problems(call)[0].startswith("spec.usagePolicy: ")


# -- bounds


@pytest.mark.parametrize(
    "more",
    [
        {"timeout_seconds": 0},
        {"timeout_seconds": 8 * 24 * 3600},
        {"timeout_seconds": float("nan")},
        {"start_window_seconds": 0},
        {"start_window_seconds": 901},
        {"max_retry": -1},
        {"max_retry": 1000},
        {"max_parallel": 0},
        {"max_errors": -1},
        {"expect": -1},
    ],
    ids=str,
)
def test_a_number_out_of_its_bounds_is_refused(more):
    assert len(problems(HookCall(hook(), **more))) == 1


def test_everything_wrong_with_a_call_is_said_at_once():
    call = HookCall(hook(executor=""), timeout_seconds=0, max_parallel=0, params={"NOPE": "1"})
    assert [problem.split(":")[0] for problem in problems(call)] == [
        "timeout",
        "max parallel",
        "executor",
        "param NOPE",
    ]


def test_the_defaults_are_kubestashs():
    call = HookCall(hook())
    assert (call.timeout_seconds, call.max_retry, call.namespaces) == (300, 0, frozenset({"default"}))


# -- hooks of the agents' own catalogue


def test_a_catalogue_hook_travels_as_its_name_and_parameters():
    call = HookCall.of_catalogue("dump", selector="app=db", params={"database": "shop"})
    call.check()
    sent = call.sent()
    assert isinstance(sent, CatalogueHook)
    assert (sent.name, sent.params, call.hook.name) == ("dump", {"database": "shop"}, "dump")
    assert call.pods().selector == "app=db"


def test_a_catalogue_hook_needs_a_selector_and_a_name():
    assert problems(HookCall(Hook("dump", HookSpec()), catalogue=True)) == [
        "executor: is missing: add one, or say in which pods with --selector"
    ]
    assert problems(HookCall.of_catalogue("", selector="app=db"))[0].startswith("name: ")
    assert problems(HookCall.of_catalogue("x" * 129, selector="app=db"))[0].startswith("name: ")


def test_a_catalogue_hook_fits_into_a_command():
    assert (
        "agents take no larger command"
        in problems(HookCall.of_catalogue("dump", selector="app=db", params={"a": "x" * 300_000}))[0]
    )
