"""The Job of a Function: golden files for people to read, and every rule of who wins and what is refused."""

from __future__ import annotations

import json
import os
import re
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.actions import Action
from agent.contract.errors import InvalidHook
from agent.contract.functions import FunctionCall, RuntimeSettings, load_function
from agent.contract.messages import MAX_ATTEMPTS, Owner
from agent.contract.pod_parts import Volume, VolumeMount
from agent.contract.templates import FunctionExecutor
from agent.coordinator.jobs import (
    ACTION_VARIABLE,
    MAX_VARIABLE_BYTES,
    is_of_run,
    job_for,
    job_name,
    label_value,
    own_pod,
)
from tests.contract.test_functions import CALL, FULL
from tests.kubernetes_schema import NEWEST, check

GOLDEN = Path(__file__).parent / "golden"
HOW_TO_REGENERATE = "If that was meant: PODHOOK_GOLDEN=write pytest tests/coordinator/test_jobs.py, and read the diff."
RUN = "0190f1c2-7d4e-7abc-8def-0123456789ab"
OWNER = Owner(api_version="v1", kind="Pod", name="backup-28671-x7k2p", uid="5f0c")
ACTION = Action.model_validate(
    {"exec": {"command": ["/bin/sh", "-c", "echo $HOME $(date) $$"]}, "containerName": "mysql"}
)


def function(text: str = "", image: str = "ghcr.io/acme/hook:1"):
    head = (
        f"apiVersion: addons.kubestash.com/v1alpha1\nkind: Function\nmetadata: {{name: f}}\nspec:\n  image: {image}\n"
    )
    return load_function(head + textwrap.indent(textwrap.dedent(text), "  "))


def executor(text: str = ""):
    return FunctionExecutor.model_validate({"name": "f"} | (yaml.safe_load(text) or {}))


def call(text: str = ""):
    document = yaml.safe_load(text) or {}
    return FunctionCall(
        volumes=[Volume.model_validate(each) for each in document.get("volumes", [])],
        volume_mounts=[VolumeMount.model_validate(each) for each in document.get("volumeMounts", [])],
        runtime_settings=RuntimeSettings.model_validate(document.get("runtimeSettings", {})),
    )


def job(of_function=None, of_template=None, of_call=None, **more):
    options = {"namespace": "shop", "run_id": RUN, "attempt": 1, "hook": "migrate", "timeout_seconds": 300} | more
    return job_for(of_function or function(), of_template or executor(), of_call, **options)


def pod_of(document):
    return document["spec"]["template"]["spec"]


def container_of(document):
    return pod_of(document)["containers"][0]


def problems(*parts, **more) -> dict[str, str]:
    with pytest.raises(InvalidHook) as caught:
        job(*parts, **more)
    return {problem.path: problem.message for problem in caught.value.problems}


EVERYTHING = (
    load_function(FULL),
    executor(
        "{env: [{name: TIMEOUT, value: 1m}, {name: MODE, value: dry}],"
        " volumeMounts: [{name: settings, mountPath: /each/}],"
        " volumes: [{name: work, emptyDir: {sizeLimit: 1Gi}}, {name: settings, configMap: {name: migrate}}]}"
    ),
    call(
        "volumes: [{name: disk, persistentVolumeClaim: {claimName: disk}}, {name: dump, emptyDir: {}}]\n"
        "volumeMounts: [{name: dump, mountPath: /dump}]\nruntimeSettings:\n" + textwrap.indent(CALL, "  ")
    ),
)

JOBS = {
    "smallest": job,
    "with-an-action": lambda: job(action=ACTION),
    "everything": lambda: job(
        *EVERYTHING, attempt=MAX_ATTEMPTS, hook="Before: migrate!", timeout_seconds=90.5, action=ACTION, owner=OWNER
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _regenerate_if_asked():
    if os.environ.get("PODHOOK_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        for path in GOLDEN.glob("job-*.yaml"):
            path.unlink()
        for name, made in JOBS.items():
            (GOLDEN / f"job-{name}.yaml").write_text(yaml.safe_dump(made(), sort_keys=False, width=120))


@pytest.mark.parametrize("name", JOBS)
def test_the_job_did_not_change(name):
    path = GOLDEN / f"job-{name}.yaml"
    assert path.is_file(), f"{path.name} is missing. {HOW_TO_REGENERATE}"
    assert yaml.safe_dump(JOBS[name](), sort_keys=False, width=120) == path.read_text(), HOW_TO_REGENERATE


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("job-*.yaml")} == {f"job-{name}" for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_the_api_server_would_take_it(name):
    document = yaml.safe_load((GOLDEN / f"job-{name}.yaml").read_text())
    if name == "everything":  # with fields that the oldest does not know
        check(document, NEWEST)
    else:
        check(document)


# --- what every Job is


def test_it_runs_once_and_ends_by_itself():
    spec = job()["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["ttlSecondsAfterFinished"] == 300


@pytest.mark.parametrize(("timeout", "deadline"), [(0.01, 1), (1, 1), (1.2, 2), (300, 300), (604800, 604800)])
def test_the_deadline_is_the_timeout_in_whole_seconds_and_never_shorter(timeout, deadline):
    assert job(timeout_seconds=timeout)["spec"]["activeDeadlineSeconds"] == deadline


DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@given(st.uuids().map(str), st.integers(1, MAX_ATTEMPTS))
def test_a_name_is_a_label_of_rfc_1123_and_no_other_attempt_has_it(run_id, attempt):
    name = job_name(run_id, attempt)
    assert DNS_LABEL.fullmatch(name)
    assert DNS_LABEL.fullmatch(f"{name}-abcde"), "its pod's name"
    assert job_name(run_id, attempt) == name != job_name(run_id, attempt + 1)


LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")


@given(st.text())
def test_any_hooks_name_makes_a_label(text):
    value = label_value(text)
    assert LABEL.fullmatch(value)
    assert len(value) <= 63


@pytest.mark.parametrize(
    ("name", "label"),
    [("migrate", "migrate"), ("Before: migrate!", "Before-migrate"), ("ü", ""), ("a" * 62 + "-b", "a" * 62)],
)
def test_a_label_stays_readable_and_the_annotation_has_the_whole_name(name, label):
    metadata = job(hook=name)["metadata"]
    assert metadata["labels"]["podhook.dev/hook"] == label
    assert metadata["annotations"]["podhook.dev/hook"] == name


def test_a_pod_has_the_labels_that_find_it_whatever_labels_the_call_adds():
    document = job(None, None, call("runtimeSettings: {pod: {podLabels: {app.kubernetes.io/managed-by: me, a: b}}}"))
    pod = document["spec"]["template"]["metadata"]["labels"]
    assert pod == {"a": "b", **document["metadata"]["labels"]}


def test_no_token_where_no_service_account_is_named():
    assert pod_of(job())["automountServiceAccountToken"] is False
    named = call("runtimeSettings: {pod: {serviceAccountName: migrator}}")
    assert "automountServiceAccountToken" not in pod_of(job(None, None, named))
    asked = call("runtimeSettings: {pod: {automountServiceAccountToken: true}}")
    assert pod_of(job(None, None, asked))["automountServiceAccountToken"] is True


# --- who wins


def test_the_call_wins_over_the_template_and_the_template_over_the_function():
    env = container_of(
        job(
            function("runtimeSettings: {env: [{name: A, value: f}, {name: B, value: f}, {name: C, value: f}]}"),
            executor("env: [{name: D, value: t}, {name: B, value: t}, {name: C, value: t}]"),
            call("runtimeSettings: {container: {env: [{name: C, value: c}, {name: E, value: c}]}}"),
        )
    )["env"]
    assert [(each["name"], each["value"]) for each in env] == [
        ("A", "f"),
        ("B", "t"),
        ("C", "c"),
        ("D", "t"),
        ("E", "c"),
    ]


def test_a_variable_that_is_read_elsewhere_loses_its_literal_value():
    env = container_of(
        job(
            function("runtimeSettings: {env: [{name: A, value: f}]}"),
            executor("env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]"),
        )
    )["env"]
    assert env == [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


def test_one_mount_at_a_place_by_the_same_order():
    mounts = container_of(
        job(
            function("volumeMounts: [{name: a, mountPath: /a}, {name: a, mountPath: /b}, {name: a, mountPath: /c}]"),
            executor("{volumes: [{name: a, emptyDir: {}}], volumeMounts: [{name: a, mountPath: /b/, subPath: t}]}"),
            call("volumeMounts: [{name: a, mountPath: c, subPath: c}]"),
        )
    )["volumeMounts"]
    assert [(each["mountPath"], each.get("subPath")) for each in mounts] == [("/a", None), ("/b/", "t"), ("c", "c")]


def test_settings_are_replaced_field_by_field():
    container = container_of(
        job(
            function(
                """
                runtimeSettings:
                  resources: {limits: {memory: 1Gi}, requests: {memory: 1Gi}}
                  securityContext: {runAsUser: 1}
                  nice: {adjustment: 1}
                  ionice: {class: 2, classData: 3}
                  envFrom: [{configMapRef: {name: f}}]
                """
            ),
            None,
            call(
                "runtimeSettings: {container: {resources: {limits: {memory: 2Gi}}, nice: {adjustment: 9},"
                " envFrom: [{configMapRef: {name: c}}]}}"
            ),
        )
    )
    assert container["resources"] == {"limits": {"memory": "2Gi"}}
    assert container["securityContext"] == {"runAsUser": 1}
    assert container["envFrom"] == [{"configMapRef": {"name": "f"}}, {"configMapRef": {"name": "c"}}]
    assert container["env"] == [
        {"name": "NICE_ADJUSTMENT", "value": "9"},
        {"name": "IONICE_CLASS", "value": "2"},
        {"name": "IONICE_CLASS_DATA", "value": "3"},
    ]


def test_a_pods_settings_are_replaced_field_by_field_and_labels_one_by_one():
    document = job(
        function("runtimeSettings: {pod: {nodeSelector: {a: f}, priority: 1, podLabels: {a: f, b: f}}}"),
        None,
        call("runtimeSettings: {pod: {nodeSelector: {b: c}, podLabels: {b: c}}}"),
    )
    pod = pod_of(document)
    assert (pod["nodeSelector"], pod["priority"]) == ({"b": "c"}, 1)
    labels = document["spec"]["template"]["metadata"]["labels"]
    assert (labels["a"], labels["b"]) == ("f", "c")


# --- the template's action


def expanded(text: str) -> str:
    """What Kubernetes makes of a variable's value (third_party/forked/golang/expansion), if no variable is known."""
    out, at = "", 0
    while at < len(text):
        if text[at] == "$" and text[at + 1 : at + 2] == "$":
            out, at = out + "$", at + 2
        else:
            assert not text.startswith("$(", at), "it would be looked up"
            out, at = out + text[at], at + 1
    return out


def variable(document, name=ACTION_VARIABLE) -> str:
    return next(each["value"] for each in container_of(document)["env"] if each["name"] == name)


def test_the_action_arrives_as_it_was_written():
    arrived = Action.model_validate(json.loads(expanded(variable(job(action=ACTION)))))
    assert arrived == ACTION


@given(st.text(alphabet="$()A{} \\\"'ü"))
def test_whatever_it_says(text):
    action = Action.model_validate({"exec": {"command": ["sh", "-c", text]}})
    assert Action.model_validate(json.loads(expanded(variable(job(action=action))))) == action


def test_without_an_action_there_is_no_variable():
    assert "env" not in container_of(job())


def test_an_action_that_no_variable_can_hold_is_refused():
    empty = Action.model_validate({"httpPost": {"host": "h", "port": 1, "body": ""}})
    size = len(f"{ACTION_VARIABLE}={empty.model_dump_json(by_alias=True, exclude_none=True)}") + 1
    fits = Action.model_validate({"httpPost": {"host": "h", "port": 1, "body": "$" * (MAX_VARIABLE_BYTES - size)}})
    assert len(expanded(variable(job(action=fits)))) + len(ACTION_VARIABLE) + 2 == MAX_VARIABLE_BYTES
    more = Action.model_validate({"httpPost": {"host": "h", "port": 1, "body": "$" * (MAX_VARIABLE_BYTES - size + 1)}})
    assert problems(action=more) == {
        "action": "has 131073 bytes as the variable PODHOOK_ACTION; the limit is 131072 (Linux); put long text in a "
        "ConfigMap and mount it"
    }


# --- what is refused


def test_a_variable_of_the_actions_name_is_refused_where_there_is_an_action():
    template = executor("env: [{name: A, value: x}, {name: PODHOOK_ACTION, value: x}]")
    assert variable(job(None, template)) == "x"
    assert problems(None, template, action=ACTION) == {
        "executor.function.env[1].name": "PODHOOK_ACTION is how the template's action reaches the Function; rename "
        "this one"
    }


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ((function("volumeMounts: [{name: x, mountPath: /a}]"),), "Function f: spec.volumeMounts[0].name"),
        ((function("volumeDevices: [{name: x, devicePath: /a}]"),), "Function f: spec.volumeDevices[0].name"),
        ((None, executor("volumeMounts: [{name: x, mountPath: /a}]")), "executor.function.volumeMounts[0].name"),
        ((None, None, call("volumeMounts: [{name: x, mountPath: /a}]")), "volumeMounts[0].name"),
    ],
)
def test_a_mount_of_a_volume_that_nobody_gives_is_refused(parts, path):
    parts = [*parts, None, None][:3]
    parts[1] = parts[1] or executor()
    parts[1] = parts[1].model_copy(update={"volumes": executor("volumes: [{name: w, emptyDir: {}}]").volumes})
    assert problems(*parts) == {
        path: "'x' is no volume of this hook (has: w); add it to executor.function.volumes in the template, or to "
        "volumes in the call"
    }


def test_a_mount_that_another_replaces_needs_no_volume():
    template = executor("{volumes: [{name: a, emptyDir: {}}], volumeMounts: [{name: a, mountPath: /w}]}")
    mounts = container_of(job(function("volumeMounts: [{name: x, mountPath: /w}]"), template))["volumeMounts"]
    assert mounts == [{"name": "a", "mountPath": "/w"}]


def test_one_name_for_two_volumes_is_refused_and_the_same_volume_twice_is_one():
    template = executor("volumes: [{name: a, secret: {secretName: s}}]")
    same = call("volumes: [{name: a, secret: {secretName: s}}]")
    assert pod_of(job(None, template, same))["volumes"] == [{"name": "a", "secret": {"secretName": "s"}}]
    assert problems(None, template, call("volumes: [{name: b, emptyDir: {}}, {name: a, emptyDir: {}}]")) == {
        "volumes[1].name": "'a' is another volume in the template (executor.function.volumes); rename one of them, and "
        "its mounts"
    }


def test_two_mounts_of_one_part_at_one_place_are_refused():
    template = executor(
        "{volumes: [{name: a, emptyDir: {}}],"
        " volumeMounts: [{name: a, mountPath: /w}, {name: a, mountPath: /w/, subPath: s}]}"
    )
    assert problems(None, template) == {
        "executor.function.volumeMounts[1].mountPath": "'/w/' is a place where another volume is mounted; keep one"
    }


def test_every_problem_is_told_at_once():
    template = executor("{env: [{name: PODHOOK_ACTION}], volumeMounts: [{name: x, mountPath: /a}]}")
    assert set(problems(None, template, action=ACTION)) == {
        "executor.function.env[0].name",
        "executor.function.volumeMounts[0].name",
    }


# --- which Job is ours, and whose it is


def test_a_job_is_known_again_as_the_cluster_has_it():
    ours = job(owner=OWNER)
    found = json.loads(json.dumps(ours))
    found["metadata"] |= {"uid": "1", "ownerReferences": []}
    found["metadata"]["labels"]["added"] = "by an admission webhook"
    found["spec"]["completions"] = 1
    assert is_of_run(found, ours)


@pytest.mark.parametrize(
    "other",
    [
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job_name(RUN, 1)}},
        job(function(image="another:1")),
        job(timeout_seconds=1),
        job(namespace="other"),
        job(hook="other"),
    ],
)
def test_another_job_of_that_name_is_not_ours(other):
    assert not is_of_run(other, job())


def test_the_owner_may_be_another_after_a_restart():
    assert is_of_run(job(owner=OWNER), job())


def test_the_own_pod_owns_jobs_of_its_own_namespace_only():
    environment = {"PODHOOK_NAMESPACE": "shop", "PODHOOK_POD": "backup-28671-x7k2p", "PODHOOK_POD_UID": "5f0c"}
    assert own_pod(environment, "shop") == OWNER
    assert own_pod(environment, "other") is None
    for name in environment:
        assert own_pod({**environment, name: ""}, "shop") is None
    reference = job(owner=OWNER)["metadata"]["ownerReferences"]
    assert reference == [{"apiVersion": "v1", "kind": "Pod", "name": "backup-28671-x7k2p", "uid": "5f0c"}]
