"""HookTemplates: what is right loads; what is wrong is explained all at once, with path and next step."""

from __future__ import annotations

import textwrap

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from agent.contract.documents import paste_hint
from agent.contract.errors import InvalidHook
from agent.contract.templates import MAX_FILE_BYTES, MAX_HOOKS, load_hooks, used_placeholders

FULL = """\
apiVersion: core.kubestash.com/v1alpha1
kind: HookTemplate
metadata:
  name: freeze
  namespace: shop
  labels: {team: data}
  creationTimestamp: 2024-05-01T10:00:00Z
spec:
  usagePolicy:
    allowedNamespaces:
      from: Selector
      selector:
        matchLabels: {team: data}
        matchExpressions:
        - {key: env, operator: In, values: [dev]}
  params:
  - name: LOCK
    usage: which lock
    required: false
    default: "10:30"
  action:
    exec:
      command: [/bin/sh, -c, "flush ${LOCK} {{ .Name }} $HOME"]
      user: mysql
      env:
      - {name: A, value: b}
    containerName: db
  executor:
    type: Pod
    pod:
      selector: app=db
      owner: {apiVersion: apps/v1, kind: StatefulSet, name: db, controller: true}
      strategy: ExecuteOnAll
"""


def full(spec):
    head = "apiVersion: core.kubestash.com/v1alpha1\nkind: HookTemplate\nmetadata: {name: h}\nspec:\n"
    return head + textwrap.indent(textwrap.dedent(spec), "  ")


def problems(text):
    """The problems of a document, as path -> message."""
    with pytest.raises(InvalidHook) as caught:
        load_hooks(text)
    assert str(caught.value) == "\n".join(str(problem) for problem in caught.value.problems)
    found = {problem.path: problem.message for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), f"a path is reported twice: {caught.value.problems}"
    return found


# What loads.


def test_a_full_template_loads_with_everything_it_says():
    (hook,) = load_hooks(FULL)
    assert (hook.name, hook.namespace, hook.missing()) == ("freeze", "shop", None)
    spec = hook.spec
    assert spec.usage_policy.allowed_namespaces.from_ == "Selector"
    assert spec.usage_policy.allowed_namespaces.selector.match_labels == {"team": "data"}
    assert spec.usage_policy.allowed_namespaces.selector.match_expressions[0].operator == "In"
    assert (spec.params[0].name, spec.params[0].default, spec.params[0].required) == ("LOCK", "10:30", False)
    assert spec.action.exec_.command == ["/bin/sh", "-c", "flush ${LOCK} {{ .Name }} $HOME"]
    assert (spec.action.exec_.user, spec.action.container_name) == ("mysql", "db")
    assert (spec.executor.type, spec.executor.pod.strategy) == ("Pod", "ExecuteOnAll")
    assert (spec.executor.pod.owner.kind, spec.executor.pod.owner.controller) == ("StatefulSet", True)
    assert used_placeholders(spec) == {"LOCK"}


def test_bytes_and_text_load_alike():
    assert load_hooks(FULL.encode()) == load_hooks(FULL)


def test_a_bare_action_loads_and_says_that_an_executor_is_missing():
    (hook,) = load_hooks("action: {tcpSocket: {port: 80}}", name="probe")
    assert (hook.name, hook.spec.action.kind, hook.spec.executor) == ("probe", "tcpSocket", None)
    assert str(hook.missing()).startswith("executor: is missing: add one, or say in which pods")


def test_a_bare_executor_loads_and_says_that_an_action_is_missing():
    (hook,) = load_hooks("executor: {type: Operator}")
    assert hook.spec.action is None
    assert str(hook.missing()) == "action: is required: give one of exec, httpGet, httpPost, tcpSocket"


@pytest.mark.parametrize(
    "text",
    [
        "executor: {type: Function, function: {name: f}}",
        "action:\nexecutor: {type: Function, function: {name: f}}",
    ],
)
def test_a_function_needs_no_action(text):
    (hook,) = load_hooks(text)
    assert hook.missing() is None
    (hook,) = load_hooks(full(text))
    assert hook.spec.action is None


def test_several_documents_are_several_hooks_in_order_each_with_a_name():
    text = "action: {tcpSocket: {port: 1}}\n---\n" + FULL + "---\n# nothing here\n---\naction: {tcpSocket: {port: 2}}\n"
    assert [hook.name for hook in load_hooks(text, name="pre")] == ["pre#1", "freeze", "pre#3"]


@pytest.mark.parametrize("port", ["8080", '"8080"', "0x1F90"])
def test_a_port_may_be_a_number_or_the_same_number_as_text(port):
    (hook,) = load_hooks(f"action: {{httpGet: {{port: {port}}}}}")
    assert hook.spec.action.http_get.port == 8080


@pytest.mark.parametrize("word", ["10:30", "22:22:22", "2001-12-14", "2001-12-14T10:00:00Z", "=", "<<", "1e3", "0.5.x"])
def test_what_gos_yaml_reads_as_text_is_text(word):
    (hook,) = load_hooks(f"action: {{exec: {{command: [echo, {word}]}}}}")
    assert hook.spec.action.exec_.command == ["echo", word]


def test_template_syntax_and_shell_variables_stay_as_they_are():
    command = "echo {{ if eq .Status.Phase `Succeeded` }}ok{{ else }}{{ .Status.Error }}{{ end }} $HOME ${X:-y}"
    text = yaml.safe_dump({"action": {"exec": {"command": ["sh", "-c", command]}}})
    assert load_hooks(text)[0].spec.action.exec_.command[2] == command


# What is wrong, and where.


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("acton: {}", "acton", "unknown field; did you mean 'action'?"),
        ("action: {exce: {command: [a]}}", "action.exce", "unknown field; did you mean 'exec'?"),
        (
            "action: {httpGet: {prot: 1, port: 1}}",
            "action.httpGet.prot",
            "unknown field; did you mean 'port'?",
        ),
        (
            "action: {httpGet: {port: 1, http_headers: []}}",
            "action.httpGet.http_headers",
            "unknown field; did you mean 'httpHeaders'?",
        ),
        (
            "action: {httpPost: {port: 1, form: [{key: a, value: b, values: []}]}}",
            "action.httpPost.form[0].value",
            "unknown field; did you mean 'values'?",
        ),
        (
            "executor: {type: Pod, pod: {selektor: a=b, selector: a=b}}",
            "executor.pod.selektor",
            "unknown field; did you mean 'selector'?",
        ),
        (
            "action: {tcpSocket: {port: 1, zzzz: 2}}",
            "action.tcpSocket.zzzz",
            "unknown field; known fields: host, port",
        ),
        (
            full("timeout: 5\naction: {tcpSocket: {port: 1}}\nexecutor: {type: Operator}"),
            "spec.timeout",
            "unknown field; known fields: usagePolicy, params, action, executor",
        ),
        (
            "executor: {type: Podd}",
            "executor.type",
            "'Podd' is not one of 'Pod', 'Operator' or 'Function'; did you mean 'Pod'?",
        ),
        (
            "executor: {type: Pod}",
            "executor",
            "type: Pod needs pod.selector, which says in which pods the hook runs",
        ),
        ("executor: {type: Pod, pod: {}}", "executor.pod.selector", "is required"),
        ("executor: {type: Function}", "executor", "type: Function needs function.name"),
        (
            "executor: {type: Operator, pod: {selector: a=b}}",
            "executor",
            "type: Operator does not use pod; remove it or change the type",
        ),
        (
            'executor: {type: Pod, pod: {selector: ""}}',
            "executor.pod.selector",
            "'' is empty and would select every pod; write a label selector such as app=web",
        ),
        (
            "action: {exec: {command: [sleep, 5]}}",
            "action.exec.command[1]",
            "5 is a number, not a string; put it in quotes",
        ),
        (
            "action: {exec: {command: [echo, true]}}",
            "action.exec.command[1]",
            "True is a boolean, not a string; put it in quotes",
        ),
        (
            "action: {exec: {command: [echo, 1.5]}}",
            "action.exec.command[1]",
            "1.5 is a number, not a string; put it in quotes",
        ),
        (
            "action: {exec: {command: [echo, null]}}",
            "action.exec.command[1]",
            "None is a null, not a string; put it in quotes",
        ),
        (
            "action: {exec: {command: ls}}",
            "action.exec.command",
            "'ls' is a text, not a list; begin each item with '- '",
        ),
        ("action: {exec: {command: []}}", "action.exec.command", "is empty; give it a value"),
        (
            "action: {exec: [ls]}",
            "action.exec",
            "['ls'] is a list, not a mapping; write its fields as name: value",
        ),
        (
            "action: {httpGet: {port: 1, httpHeaders: [{name: A, value: 7}]}}",
            "action.httpGet.httpHeaders[0].value",
            "7 is a number, not a string; put it in quotes",
        ),
        (
            "action: {httpGet: {port: 1, scheme: FTP}}",
            "action.httpGet.scheme",
            "'FTP' is neither HTTP nor HTTPS",
        ),
        ("action: {httpGet: {path: /}}", "action.httpGet.port", "is required"),
        ("action: {}", "action", "has no action; give one of exec, httpGet, httpPost, tcpSocket"),
        (
            full("executor: {type: Operator}"),
            "spec.action",
            "is required: give one of exec, httpGet, httpPost, tcpSocket",
        ),
        (
            full("action: null\nexecutor: {type: Operator}"),
            "spec.action",
            "is required: give one of exec, httpGet, httpPost, tcpSocket",
        ),
        (
            full("action: {tcpSocket: {port: 1}}"),
            "spec.executor",
            "is required: say who runs the action with type: Pod, Operator or Function",
        ),
        (
            "usagePolicy: {allowedNamespaces: {from: Selector}}\naction: {tcpSocket: {port: 1}}",
            "usagePolicy.allowedNamespaces",
            "from: Selector needs a selector beside it; add one or write from: Same",
        ),
        (
            "params: [{name: A}, {name: A}]\naction: {tcpSocket: {port: 1}}",
            "params[1].name",
            "'A' is declared twice; keep one",
        ),
        (
            "params: [{name: A, default: 5}]\naction: {tcpSocket: {port: 1}}",
            "params[0].default",
            "5 is a number, not a string; put it in quotes",
        ),
        (
            "params: [{name: A, required: 'no'}]\naction: {tcpSocket: {port: 1}}",
            "params[0].required",
            "'no' is a text, not a boolean; write true or false without quotes",
        ),
        ("kind: BackupSession", "kind", "is 'BackupSession'; only HookTemplate can be run"),
        (
            "kind: BackupConfiguration",
            "kind",
            "is 'BackupConfiguration'; only HookTemplate can be run" + paste_hint("BackupConfiguration"),
        ),
        ("[1, 2]", "", "is a list, not a HookTemplate; write `action:` and `executor:`"),
        ("hello", "", "is a text, not a HookTemplate; write `action:` and `executor:`"),
        ("{}", "", "has neither an action nor an executor; write at least one of `action:` and `executor:`"),
        (
            "params: []",
            "",
            "has neither an action nor an executor; write at least one of `action:` and `executor:`",
        ),
        ("", "", "the file has no hook in it; write a HookTemplate, or action: and executor:"),
        (
            "# only a comment\n---\n",
            "",
            "the file has no hook in it; write a HookTemplate, or action: and executor:",
        ),
    ],
)
def test_a_problem_has_its_path_and_the_next_step(text, path, message):
    assert problems(text) == {path: message}


@pytest.mark.parametrize(
    "port", ["0", "-1", "70000", "true", "1.5", '"0"', '"70000"', '""', "null", "[80]", "UPPER", "a" * 16]
)
def test_what_is_no_port_says_what_a_port_is(port):
    found = problems(f"action: {{httpGet: {{port: {port}}}, containerName: c}}")
    assert list(found) == ["action.httpGet.port"]
    assert "is not a port; " in found["action.httpGet.port"]


@pytest.mark.parametrize("kind", ["httpGet", "httpPost", "tcpSocket"])
def test_a_port_by_name_needs_a_container_name(kind):
    message = "'web' is a name, and names are looked up in one container's ports; set containerName"
    assert problems(f"action: {{{kind}: {{port: web}}}}") == {f"action.{kind}.port": message}
    found = problems(full(f"action: {{{kind}: {{port: web}}}}\nexecutor: {{type: Operator}}"))
    assert found == {f"spec.action.{kind}.port": message}


def test_a_template_that_cannot_be_rendered_is_named_with_its_place():
    found = problems("action: {exec: {command: [echo, 'a {{ nope .X }}', '{{ if }}']}}")
    assert set(found) == {"action.exec.command[1]", "action.exec.command[2]"}
    assert "{{ nope .X }}" in found["action.exec.command[1]"]
    assert list(problems("action: {httpPost: {port: 1, body: '{{'}}")) == ["action.httpPost.body"]


# Every problem at once.


def test_two_actions_are_reported_together_with_the_problems_inside_them():
    found = problems("""
        action:
          exec: {command: []}
          httpGet: {port: 0, scheme: gopher, prot: 1}
    """)
    assert found["action"] == "has 2 actions (exec, httpGet); a hook runs exactly one: split it into 2 hooks"
    inside = {"action.exec.command", "action.httpGet.port", "action.httpGet.scheme", "action.httpGet.prot"}
    assert set(found) == {"action", *inside}, "fixing one problem would only bring up the next"


def test_four_actions_are_all_named():
    text = "action: {exec: {command: [a]}, httpGet: {port: 1}, httpPost: {port: 1}, tcpSocket: {port: 1}}"
    assert "has 4 actions (exec, httpGet, httpPost, tcpSocket)" in problems(text)["action"]


def test_a_missing_action_is_reported_together_with_other_problems():
    found = problems(full("executor: {type: Pod, pod: {selector: 'a b', owner: {kind: 5}}}"))
    assert set(found) == {"spec.action", "spec.executor.pod.selector", "spec.executor.pod.owner.kind"}


def test_problems_between_fields_do_not_wait_for_those_of_fields():
    found = problems("""
        usagePolicy: {allowedNamespaces: {from: Selector, form: x}}
        params: [{name: A}, {name: A, usage: 3}]
        action:
          httpGet: {port: web, path: 5}
          exec: {command: ["{{ if }}", 1]}
        executor: {type: Operator, pod: {selector: a=b, x: 1}}
        extra: 1
    """)
    assert set(found) == {
        "usagePolicy.allowedNamespaces",
        "usagePolicy.allowedNamespaces.form",
        "params[1].name",
        "params[1].usage",
        "action",
        "action.httpGet.port",
        "action.httpGet.path",
        "action.exec.command[0]",
        "action.exec.command[1]",
        "executor",
        "executor.pod.x",
        "extra",
    }


def test_every_document_of_a_file_is_explained_by_its_number():
    found = problems("action: {}\n---\naction: {tcpSocket: {port: 1}}\n---\nexecutor: {type: Pod}\n---\n[]\n")
    assert set(found) == {"document 1: action", "document 3: executor", "document 4: "}


def test_a_broken_document_does_not_hide_the_problems_before_it():
    found = problems("action: {}\n---\naction: [\n")
    assert any("has no action" in message for message in found.values())
    assert any(message.startswith("not YAML") for message in found.values())


# What is not a document.


def test_a_key_that_stands_twice_is_refused_at_its_line():
    found = problems("action:\n  exec:\n    command: [a]\n    command: [b]\n    usr: c\n")
    assert found["line 4"] == "'command' stands here a second time; keep one"
    assert "action.exec.usr" in found, "the other problems are not reported together with it"


@pytest.mark.parametrize("text", ['a: 1\n"a": 2\n', "1: a\n'1': b\n"])
def test_keys_that_differ_only_in_their_quotes_are_the_same(text):
    assert "stands here a second time" in problems(text)["line 2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("action: &a {tcpSocket: {port: 1}}\nexecutor: *a\n", "YAML aliases (*name) are not accepted"),
        ("a: &a [x]\nb: {<<: *a}\n", "YAML aliases (*name) are not accepted"),
        ("action: {exec: {command: [{{ .Name }}]}}", "put text that begins with [ or { in quotes"),
        ("? [a]\n: b\n", "put text that begins with [ or { in quotes"),
        ("action: !!python/object/apply:os.system [ls]", "apply:os.system' is not accepted"),
        ("action: !!int ''", "the YAML tag"),
        ("action: !!bool x", "the YAML tag"),
        ("action: !!binary x", "the YAML tag"),
        ("action: !mine x", "the YAML tag '!mine' is not accepted"),
        ("action: [", "not YAML: "),
        ("\taction: x", "not YAML: "),
        ("a: b: c", "not YAML: "),
        ("a: %x", "not YAML: "),
        ("a\0b", "not YAML: "),
        ("port: 0x" + "f" * 5000, "the number has 5002 characters"),
        ("port: " + "9" * 5000, "the number has 5000 characters"),
        ("port: " + ":".join(["59"] * 5000), "unknown field"),
        ("[" * 10_000, "nested too deeply"),
        ("{a: " * 10_000, "nested too deeply"),
        ("- " * 10_000, "nested too deeply"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        (b"action: \xff\xfe", "the file is not UTF-8 text: invalid start byte at byte 8"),
        (b"a" * (MAX_FILE_BYTES + 1), "1048577 bytes; the limit is 1048576"),
        ("a" * (MAX_FILE_BYTES + 1), "1048577 bytes; the limit is 1048576"),
        ("é" * (MAX_FILE_BYTES // 2 + 1), "1048578 bytes; the limit is 1048576"),
        ("\ud800", "not YAML: "),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_is_no_document_is_refused_in_words(text, message):
    with pytest.raises(InvalidHook) as caught:
        load_hooks(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000, "the message repeats the input without a bound"


def test_text_may_be_tagged_as_text():
    assert load_hooks("action: {exec: {command: [!!str 5]}}")[0].spec.action.exec_.command == ["5"]


def test_a_file_has_at_most_so_many_hooks():
    document = "action: {tcpSocket: {port: 1}}\n---\n"
    assert len(load_hooks(document * MAX_HOOKS)) == MAX_HOOKS
    with pytest.raises(InvalidHook, match="201 hooks; the limit is 200; split it"):
        load_hooks(document * (MAX_HOOKS + 1))


# Whatever it is: hooks or InvalidHook.


def load_or_explain(text):
    hooks, found = [], []
    try:
        hooks = load_hooks(text)
    except InvalidHook as error:
        found = error.problems
    assert all(problem.message for problem in found)
    assert all(hook.spec.action or hook.spec.executor for hook in hooks)
    assert bool(hooks) != bool(found), "neither hooks nor a problem"


@given(st.text() | st.binary() | st.text("{}[]:-!&*?|>'\"%@`#,\n\t ab01.<=~"))
@example("? ? ? a")
@example("{{ x }}: 1")
@example("!!map x")
@example("! [")
@example("on: {yes: no}")
@example("~: ~")
@example("0b_: 0x_")
@example("a: 08")
def test_any_text_is_hooks_or_invalid_hook(text):
    load_or_explain(text)


@given(
    st.integers(0, len(FULL)),
    st.integers(0, 12),
    st.text(max_size=3) | st.text("{}[]:-!&*\n \"'", max_size=3),
)
def test_a_damaged_template_is_hooks_or_invalid_hook(start, length, insert):
    load_or_explain(FULL[:start] + insert + FULL[start + length :])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["Pod", "web", "a=b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def places(node, above=()):
    """Every path into the parsed template."""
    yield above
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(inner, (*above, key))


@given(st.sampled_from([p for p in places(yaml.safe_load(FULL)) if p]), VALUES)
@example(("spec", "action"), None)
@example(("kind",), 10**3000)
@example(("spec", "action", "exec", "command", 0), 10**3000)
def test_a_template_with_any_value_anywhere_is_hooks_or_invalid_hook(path, value):
    document = yaml.safe_load(FULL)
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    load_or_explain(yaml.safe_dump(document, allow_unicode=True))
