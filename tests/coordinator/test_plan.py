"""What a plan needs is fetched and checked before the first hook runs."""

from __future__ import annotations

import json

import pytest

from agent.contract.actions import MAX_COMMAND_BYTES
from agent.contract.errors import ClusterNotFound, ClusterUnavailable, InvalidHook
from agent.contract.plans import Phase, load_plan
from agent.contract.templates import load_hooks
from agent.coordinator.plan import MAX_ERROR_CHARACTERS, Sources, Status, plain, prepare


def template(command="true", executor="Operator", name=None, **spec):
    part = {"type": executor} if executor == "Operator" else {"type": "Pod", "pod": {"selector": "app=db"}}
    body = {"action": {"exec": {"command": ["sh", "-c", command]}}, "executor": part, **spec}
    if name is None:
        return body
    named = {"apiVersion": "core.kubestash.com/v1alpha1", "kind": "HookTemplate", "metadata": {"name": name}}
    return {**named, "spec": body}


async def ready(tmp_path, plan, phases=tuple(Phase), *, home="shop", **more):
    sources = Sources(
        tmp_path, more.pop("read_template", None), more.pop("read_variables", None), more.pop("read_labels", None)
    )
    given = {"namespaces": frozenset({home}), "home": home, **more}
    return await prepare(load_plan(json.dumps(plan), name="nightly"), phases, sources, **given)


async def problems(*args, **more):
    with pytest.raises(InvalidHook) as caught:
        await ready(*args, **more)
    return [str(each) for each in caught.value.problems]


def write(tmp_path, name, *documents):
    (tmp_path / name).write_text("\n---\n".join(map(json.dumps, documents)))


async def test_a_call_is_what_its_entry_says_and_the_rest_is_the_callers(tmp_path):
    write(tmp_path, "a.yaml", template("echo ${X} ${Y}"))
    info = {
        "name": "first",
        "file": "a.yaml",
        "params": {"X": 3},
        "timeout": "7s",
        "maxRetry": 2,
        "variables": [{"name": "Y", "value": "y"}],
    }
    plan = {"preBackup": [info], "postBackup": [{"file": "a.yaml", "executionPolicy": "OnFailure"}]}
    first, second = await ready(tmp_path, plan, options={"timeout_seconds": 60, "max_parallel": 4})
    call = first.call
    assert (call.timeout_seconds, call.max_retry, call.max_parallel) == (7, 2, 4)
    assert (dict(call.params), dict(call.variables)) == ({"X": "3"}, {"Y": "y"})
    assert call.namespaces == frozenset({"shop"})
    assert call.action().exec_.command == ["sh", "-c", "echo 3 y"]
    assert (str(first), str(second)) == ("preBackup[0] first", "postBackup[0] a.yaml")
    assert (second.policy, second.call.timeout_seconds) == ("OnFailure", 60)


async def test_templates_read_the_plan_and_after_the_operation_its_result(tmp_path):
    text = "{{ .Name }} {{ .Namespace }} {{ .Target.Kind }} {{ .Invoker.Name }} {{ .Status.Phase }} {{ .Status.Error }}"
    write(tmp_path, "a.yaml", template(text))
    plan = {
        "preBackup": [{"file": "a.yaml"}],
        "postBackup": [{"file": "a.yaml"}],
        "target": {"kind": "MySQL"},
        "invoker": {"name": "cron"},
    }
    before, after = await ready(tmp_path, plan)
    said = before.called().action().exec_.command[2]
    assert said == "nightly shop MySQL cron <no value> <no value>"
    said = after.called(Status("Failed", "5s", "why")).action().exec_.command[2]
    assert said == "nightly shop MySQL cron Failed why"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"file": "none.yaml"}, "preBackup[0].file: cannot read {dir}/none.yaml: No such file or directory"),
        ({"file": "broken.yaml"}, "preBackup[0].file broken.yaml: action.exec.shell: unknown field"),
        ({"file": "two.yaml"}, "preBackup[0].file: two.yaml has 2 hooks (one, two); say which one with hookTemplate"),
        ({"file": "two.yaml", "hookTemplate": {"name": "tow"}}, "'tow' is in two.yaml not at all (it has: one, two)"),
        ({"file": "same.yaml", "hookTemplate": {"name": "a"}}, "'a' is in same.yaml 2 times"),
        ({"hookTemplate": {"name": "far"}}, "preBackup[0].hookTemplate: 'far' is looked up in a cluster, and none is"),
        ({"file": "need.yaml"}, "preBackup[0]: param WHERE: is required"),
        ({"file": "need.yaml", "params": {"WHERE": "x", "WER": "y"}}, "param WER: is neither declared nor used"),
        ({"file": "home.yaml"}, "preBackup[0]: spec.usagePolicy"),
        (
            {
                "file": "need.yaml",
                "variables": [{"name": "WHERE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            },
            "preBackup[0].variables: WHERE: valueFrom is read from a cluster, and none is asked",
        ),
    ],
)
async def test_what_cannot_be_run_is_named(tmp_path, entry, said):
    write(tmp_path, "two.yaml", template(name="one"), template(name="two"))
    write(tmp_path, "same.yaml", template(name="a"), template(name="a"))
    write(tmp_path, "need.yaml", template("cd ${WHERE}", params=[{"name": "WHERE", "required": True}]))
    write(
        tmp_path,
        "broken.yaml",
        {"action": {"exec": {"command": ["x"], "shell": True}}, "executor": {"type": "Operator"}},
    )
    elsewhere = template(name="home")
    elsewhere["metadata"]["namespace"] = "elsewhere"
    write(tmp_path, "home.yaml", elsewhere)
    found = await problems(tmp_path, {"preBackup": [entry]})
    assert len(found) == 1
    assert said.format(dir=tmp_path) in found[0]


async def test_problems_of_every_list_are_named_at_once_and_lists_that_are_not_asked_for_are_not_looked_at(tmp_path):
    write(tmp_path, "need.yaml", template("${A}", params=[{"name": "A", "required": True}]))
    entry = {"file": "need.yaml"}
    plan = {"preBackup": [entry, entry], "postBackup": [entry], "preRestore": [{"file": "none"}]}
    found = await problems(tmp_path, plan, (Phase.PRE_BACKUP, Phase.POST_BACKUP))
    assert [each.split(":")[0] for each in found] == ["preBackup[0]", "preBackup[1]", "postBackup[0]"]


async def test_a_post_hook_that_the_longest_error_makes_too_large_is_found_before_anything_runs(tmp_path):
    """Otherwise a freeze would succeed, and its thaw could not be sent."""
    fits = "x" * (MAX_COMMAND_BYTES - 200)
    write(tmp_path, "a.yaml", template(fits + "{{ .Status.Error }}", executor="Pod"))
    assert await ready(tmp_path, {"postBackup": [{"file": "a.yaml"}]}, check=lambda _: None)
    for phase, wrong in (("preBackup", False), ("postBackup", True)):
        try:
            await ready(tmp_path, {phase: [{"file": "a.yaml"}]})
        except InvalidHook:
            assert wrong
        else:
            assert not wrong


async def test_a_cluster_is_asked_in_the_plans_namespace_unless_the_entry_names_one(tmp_path):
    asked = []

    async def read_template(name, namespace):
        asked.append((name, namespace))
        return load_hooks(json.dumps(template("cd ${A}")))[0]

    async def read_variables(variables, namespace):
        asked.append(([each.name for each in variables], namespace))
        return {"A": "secret"}

    entry = {
        "hookTemplate": {"name": "one"},
        "variables": [
            {"name": "B", "value": "b"},
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ],
    }
    plan = {"preBackup": [entry, {"hookTemplate": {"name": "two", "namespace": "far"}}]}
    hooks = await ready(tmp_path, plan, read_template=read_template, read_variables=read_variables)
    assert asked == [("one", "shop"), (["A"], "shop"), ("two", "far")]
    assert dict(hooks[0].call.variables) == {"A": "secret", "B": "b"}


async def test_labels_are_asked_for_where_a_template_may_be_used_by_them(tmp_path):
    chosen = template(
        name="a", usagePolicy={"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"x": "y"}}}}
    )
    chosen["metadata"]["namespace"] = "hooks"
    write(tmp_path, "a.yaml", chosen)

    async def labelled(names):
        return {name: {"x": "y"} for name in names}

    async def unlabelled(names):
        return {name: {} for name in names}

    plan = {"preBackup": [{"file": "a.yaml"}]}
    assert len(await ready(tmp_path, plan, read_labels=labelled)) == 1
    assert "those of shop do not" in (await problems(tmp_path, plan, read_labels=unlabelled))[0]


async def test_a_cluster_that_says_no_is_a_problem_of_the_plan_and_one_that_is_away_is_not(tmp_path):
    async def none(name, namespace):
        raise ClusterNotFound(f"there is no HookTemplate {namespace}/{name}")

    async def away(name, namespace):
        raise ClusterUnavailable("no answer")

    plan = {"preBackup": [{"hookTemplate": {"name": "x"}}]}
    assert await problems(tmp_path, plan, read_template=none) == [
        "preBackup[0].hookTemplate: there is no HookTemplate shop/x"
    ]
    with pytest.raises(ClusterUnavailable):
        await ready(tmp_path, plan, read_template=away)
    wrong = {"preBackup": [*plan["preBackup"], {"file": "none"}]}
    assert len(await problems(tmp_path, wrong, read_template=away)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain text: 3 of 4, a/b=c", "plain text: 3 of 4, a/b=c"),
        ("$(id) `id` 'x' \"y\" a;b|c&d<e>f\n\0(){}[]*!\\", "??id? ?id? ?x? ?y? a?b?c?d?e?f???????????"),
        ("x" * 1000, "x" * MAX_ERROR_CHARACTERS),
    ],
)
def test_what_stands_as_the_error_is_nothing_to_a_shell(text, said):
    assert plain(text) == said
