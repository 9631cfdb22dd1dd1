"""A plan as people paste it, and every problem of it at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.errors import InvalidHook
from agent.contract.plans import HookPlan, Phase, is_plan, load_plan

#: KubeStash's HookInfo, every field of it, as a BackupConfiguration has it below spec.sessions[].hooks.
PASTED = """
preBackup:
  - name: pre-backup-hook
    hookTemplate:
      name: mysql-read-only
      namespace: demo
    params:
      table: orders
      seconds: 30
      ratio: 0.5
      fast: true
      only: [a, b]
      more: {deep: "x"}
    maxRetry: 3
    timeout: 1h30m
    executionPolicy: Always
    variables:
      - name: PASSWORD
        valueFrom: {secretKeyRef: {name: mysql, key: password}}
    volumes: [{name: data, emptyDir: {}}]
    volumeMounts: [{name: data, mountPath: /data}]
    runtimeSettings: {pod: {serviceAccountName: hooks}}
postBackup:
  - name: post-backup-hook
    hookTemplate: {name: mysql-writable}
    executionPolicy: OnFailure
"""


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidHook) as caught:
        load_plan(text)
    return [str(each) for each in caught.value.problems]


def test_lists_can_be_pasted_as_they_are():
    plan = load_plan(PASTED, name="nightly")
    assert (plan.name, plan.namespace, plan.phases) == ("nightly", None, [Phase.PRE_BACKUP, Phase.POST_BACKUP])
    [hook] = plan.of(Phase.PRE_BACKUP)
    assert (hook.title, hook.max_retry, hook.timeout, hook.execution_policy) == ("pre-backup-hook", 3, 5400, "Always")
    assert hook.hook_template is not None
    assert (hook.hook_template.name, hook.hook_template.namespace) == ("mysql-read-only", "demo")
    assert hook.params == {
        "table": "orders",
        "seconds": "30",
        "ratio": "0.5",
        "fast": "true",
        "only": '["a","b"]',
        "more": '{"deep":"x"}',
    }
    assert hook.variables[0].value_from is not None
    call = hook.function()
    assert call is not None
    assert call.volumes[0].name == "data"
    [post] = plan.of(Phase.POST_BACKUP)
    assert (post.execution_policy, post.max_retry, post.timeout, post.function()) == ("OnFailure", 0, None, None)


def test_a_full_document_has_a_name_a_namespace_and_what_templates_read():
    lists = yaml.safe_load(PASTED)
    target = {"apiGroup": "kubedb.com", "kind": "MySQL", "name": "orders"}
    document = {
        "apiVersion": "podhook.dev/v1alpha1",
        "kind": "HookPlan",
        "metadata": {"name": "orders", "namespace": "demo", "labels": {"a": "b"}},
        "spec": {**lists, "target": target, "invoker": {"kind": "CronJob", "name": "backup"}},
    }
    plan = load_plan(json.dumps(document))
    assert (plan.name, plan.namespace) == ("orders", "demo")
    assert plan.target is not None
    assert plan.target.data() == {"APIGroup": "kubedb.com", "Kind": "MySQL", "Name": "orders"}
    bare = load_plan(json.dumps({**lists, "namespace": "demo", "target": target}))
    assert (bare.namespace, bare.hooks) == ("demo", plan.hooks)


def test_the_plan_of_the_documentation_is_one():
    page = (Path(__file__).parents[2] / "docs" / "around.md").read_text()
    plan = load_plan(page.split("```yaml\n")[1].split("```")[0])
    assert [hook.title for phase in plan.phases for hook in plan.of(phase)] == ["read-only", "writable", "tell"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "the file has no plan in it"),
        ("[]", "is a list, not a plan"),
        ("preBackup: []", "the plan has no hook in it; it has lists for them: preBackup"),
        ("kind: HookTemplate", "kind: is 'HookTemplate', where a HookPlan is wanted"),
        ("kind: RestoreSession", "paste the lists below its spec.hooks into a HookPlan"),
        ("preBackup: {}", "preBackup: {} is a mapping, not a list"),
        ("hooks: {}", "hooks: unknown field; known fields: invoker, target, preBackup"),
        ("prebackup: [{file: x}]", "prebackup: unknown field; did you mean 'preBackup'?"),
        ("preBackup: [{name: x}]", "preBackup[0]: names no template; give hookTemplate with its name, or file"),
        ("preBackup: [{hookTemplate: {namespace: x}}]", "preBackup[0].hookTemplate.name: is required"),
        ("preBackup: [{file: x, timeout: 300}]", "timeout: '300' is not a duration: a unit is missing; write 300s"),
        ("preBackup: [{file: x, timeout: '300'}]", "a unit is missing; write 300s"),
        ("preBackup: [{file: x, timeout: -5m}]", "timeout: '-5m' is negative"),
        ("preBackup: [{file: x, timeout: [5m]}]", "timeout: ['5m'] is not a duration"),
        ("preBackup: [{file: x, maxRetry: -1}]", "preBackup[0].maxRetry: -1"),
        ("preBackup: [{file: x, maxRetry: '1'}]", "preBackup[0].maxRetry: '1'"),
        ("preBackup: [{file: x, params: {a: null}}]", 'params.a: is null; write "" for an empty text'),
        ("preBackup: [{file: x, params: {a: .inf}}]", "params.a: inf is a number, not a string"),
        ("preBackup: [{file: x, params: [a]}]", "params: ['a'] is a list, not a mapping"),
        ("preBackup: [{file: x, executionPolicy: onFailure}]", "did you mean 'OnFailure'?"),
        ("preBackup: [{file: x, executionPolicy: OnFailure}]", "would never run before the operation"),
        ("postBackup: [{file: x, variables: [{name: A}, {name: A}]}]", "variables[1].name: 'A' stands here a second"),
        ("postBackup: [{file: x, volumes: [{name: a, emtyDir: {}}]}]", "volumes[0].emtyDir: unknown field"),
        ("target: {knd: x}\npostBackup: [{file: x}]", "target.knd: unknown field; did you mean 'kind'?"),
        ("postBackup: [{file: x}]\n---\npostBackup: [{file: y}]", "the file has 2 documents; a plan is one"),
        ("postBackup:\n- file: x\n  file: y", "'file' stands here a second time"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_path_and_the_next_step(written, said):
    assert any(said in each for each in problems(written)), problems(written)


def test_every_problem_is_named_at_once():
    text = "preBackup: [{timeout: 5, params: {a: null}, maxRetrys: 1}, {file: 3}]\npostBackups: []"
    assert len(problems(text)) == 6


def test_more_hooks_than_anybody_has_are_refused():
    assert "the plan has 201 hooks; the limit is 200" in problems(json.dumps({"preBackup": [{"file": "x"}] * 201}))[0]


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        (PASTED, True),
        ("kind: HookPlan", True),
        ("preRestore: []", True),
        ("action: {exec: {command: [x]}}", False),
        ("kind: HookTemplate\npreBackup: []", False),
        ("action: {}\npreBackup: []", False),
        ("- preBackup", False),
        ("", False),
        ("a: [", False),
    ],
)
def test_a_plan_is_told_from_hooks(text, plan):
    assert is_plan(text) is plan


#: A number without a point, `5e-324`, is text in YAML (tests/contract/test_templates.py: what Go's YAML reads).
FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: "." in repr(number))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("name", "hookTemplate", "file", "params", "maxRetry", "timeout", "executionPolicy", "variables", "volumes")
HOOKS = st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5) | JSON, max_size=3)


@given(st.dictionaries(st.sampled_from((*Phase, "target", "namespace", "kind", "spec")), HOOKS | JSON, max_size=5))
def test_anything_is_a_plan_or_a_list_of_problems(document):
    try:
        plan = load_plan(json.dumps(document))
    except InvalidHook as refused:
        found = refused.problems
    else:
        found = None
    if found is not None:
        assert found
        assert all(each.message for each in found)
    else:
        assert isinstance(plan, HookPlan)
        assert plan.phases
        assert all(
            isinstance(value, str) for phase in Phase for hook in plan.of(phase) for value in hook.params.values()
        )


@given(st.dictionaries(st.text(min_size=1, max_size=8), JSON, max_size=4))
def test_a_parameter_says_as_text_what_it_said_as_json(params):
    written = {name: value for name, value in params.items() if value is not None}
    try:
        plan = load_plan(json.dumps({"preBackup": [{"file": "x", "params": written}]}, ensure_ascii=False))
    except InvalidHook:
        return
    [hook] = plan.of(Phase.PRE_BACKUP)
    for name, value in written.items():
        text = hook.params[name]
        assert text == value if isinstance(value, str) else json.loads(text) == json.loads(json.dumps(value))
