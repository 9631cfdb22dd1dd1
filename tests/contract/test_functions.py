"""Functions: what KubeStash writes loads; what is wrong is named with its path and the nearest known name."""

from __future__ import annotations

import textwrap

import pytest
import yaml
from pydantic.alias_generators import to_camel

from agent.contract import functions, pod_parts
from agent.contract.errors import InvalidHook
from agent.contract.functions import (
    ContainerRuntimeSettings,
    FunctionSpec,
    PodRuntimeSettings,
    RuntimeSettings,
    load_function,
    load_functions,
)
from agent.contract.templates import load_hooks
from tests.kubernetes_schema import definition

#: Every field that KubeStash's CRD has, and more of them than anybody uses at once.
FULL = """\
apiVersion: addons.kubestash.com/v1alpha1
kind: Function
metadata:
  name: hook-function
  creationTimestamp: null
  labels: {app.kubernetes.io/name: kubestash}
spec:
  image: ghcr.io/acme/migrate:v1.2
  command: [/bin/migrate]
  args: ["up", "--timeout=$(TIMEOUT)"]
  workingDir: /work
  ports:
  - {containerPort: 8080, name: http, protocol: TCP, hostPort: 0, hostIP: 10.0.0.1}
  volumeMounts:
  - {name: work, mountPath: /work, subPath: a, readOnly: true, mountPropagation: None, recursiveReadOnly: Disabled}
  - {name: work, mountPath: /each, subPathExpr: $(POD)}
  volumeDevices:
  - {name: disk, devicePath: /dev/xvda}
  runtimeSettings:
    resources:
      limits: {memory: 256Mi, cpu: 0.5}
      requests: {memory: 64Mi, cpu: 1}
      claims: [{name: gpu}]
    livenessProbe: {exec: {command: ["true"]}}
    readinessProbe: {tcpSocket: {port: 8080}}
    lifecycle: {preStop: {exec: {command: ["sync"]}}}
    securityContext: {runAsUser: 999}
    nice: {adjustment: 5}
    ionice: {class: 2, classData: 7}
    envFrom:
    - {prefix: DB_, secretRef: {name: db, optional: true}}
    - {configMapRef: {name: settings}}
    env:
    - {name: TIMEOUT, value: 30s}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: db, key: password}}}
"""

#: A call's runtimeSettings, every field of both parts.
CALL = """\
pod:
  podLabels: {team: data}
  podAnnotations: {note: nightly}
  nodeSelector: {disk: ssd}
  serviceAccountName: migrator
  automountServiceAccountToken: true
  nodeName: node-1
  securityContext: {fsGroup: 999}
  imagePullSecrets: [{name: registry}]
  affinity: {nodeAffinity: {}}
  schedulerName: custom
  tolerations: [{operator: Exists}]
  priorityClassName: high
  priority: 1000
  readinessGates: [{conditionType: example.com/ready}]
  runtimeClassName: gvisor
  enableServiceLinks: false
  topologySpreadConstraints: []
container:
  resources: {limits: {memory: 1Gi}}
"""


def spec(text: str) -> str:
    head = "apiVersion: addons.kubestash.com/v1alpha1\nkind: Function\nmetadata: {name: f}\nspec:\n  image: i\n"
    return head + textwrap.indent(textwrap.dedent(text), "  ")


def problems(text: str) -> dict[str, str]:
    with pytest.raises(InvalidHook) as caught:
        load_functions(text)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_every_field_of_kubestash_loads_and_is_kept():
    function = load_function(FULL)
    assert function.name == "hook-function"
    written = yaml.safe_load(FULL)["spec"]
    assert function.spec.model_dump(by_alias=True, exclude_unset=True) == written
    assert load_function(FULL.encode()) == function


def test_no_field_of_the_models_is_missing_in_these_samples():
    """So that a field which is added later is tried, too."""
    settings = set(yaml.safe_load(FULL)["spec"]["runtimeSettings"])
    assert settings == {f.alias or n for n, f in ContainerRuntimeSettings.model_fields.items()}
    assert set(yaml.safe_load(FULL)["spec"]) == {field.alias or n for n, field in FunctionSpec.model_fields.items()}
    pod = {field.alias or name for name, field in PodRuntimeSettings.model_fields.items()}
    assert set(yaml.safe_load(CALL)["pod"]) == pod - {"serviceAccountAnnotations"}


def test_a_calls_runtime_settings_load_and_are_kept():
    written = yaml.safe_load(CALL)
    assert RuntimeSettings.model_validate(written).model_dump(by_alias=True, exclude_unset=True) == written


def test_a_function_may_bring_a_pods_settings_which_kubestash_has_only_in_a_call():
    function = load_function(spec("runtimeSettings: {pod: {serviceAccountName: migrator}}"))
    assert function.spec.runtime_settings.pod.service_account_name == "migrator"


@pytest.mark.parametrize(
    ("model", "kubernetes"),
    [
        (pod_parts.Volume, "Volume"),
        (pod_parts.VolumeMount, "VolumeMount"),
        (pod_parts.VolumeDevice, "VolumeDevice"),
        (pod_parts.ContainerPort, "ContainerPort"),
        (pod_parts.EnvFrom, "EnvFromSource"),
        (pod_parts.Resources, "ResourceRequirements"),
    ],
)
def test_the_parts_have_the_fields_that_kubernetes_has(model, kubernetes):
    ours = {field.alias or to_camel(name) for name, field in model.model_fields.items()}
    theirs = definition(f"io.k8s.api.core.v1.{kubernetes}")
    #: Newer than any cluster that this was tried on; the API server of most would drop it.
    later = {"VolumeMount": {"bindMountOptions"}}.get(kubernetes, set())
    assert ours == set(theirs["properties"]) - later
    required = {field.alias or n for n, field in model.model_fields.items() if field.is_required()}
    assert required == set(theirs.get("required", []))


def test_pod_and_container_settings_are_fields_of_a_pod():
    pod = set(definition("io.k8s.api.core.v1.PodSpec")["properties"])
    ours = {field.alias or name for name, field in PodRuntimeSettings.model_fields.items()}
    assert ours - pod == {"podLabels", "podAnnotations", "serviceAccountAnnotations"}
    container = set(definition("io.k8s.api.core.v1.Container")["properties"])
    ours = {field.alias or name for name, field in ContainerRuntimeSettings.model_fields.items()}
    assert ours - container == {"nice", "ionice"}


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        (spec("imagee: x"), "spec.imagee", "unknown field; did you mean 'image'?"),
        (
            spec("runtimeSettings: {resource: {}}"),
            "spec.runtimeSettings.resource",
            "unknown field; did you mean 'resources'?",
        ),
        (
            spec("runtimeSettings: {resources: {limit: {memory: 1Gi}}}"),
            "spec.runtimeSettings.resources.limit",
            "unknown field; did you mean 'limits'?",
        ),
        (
            spec("runtimeSettings: {container: {}}"),
            "spec.runtimeSettings",
            "a Function's own settings are the container's: move what stands below container: up one level",
        ),
        (
            spec("runtimeSettings: {resources: {limits: {memory: true}}}"),
            "spec.runtimeSettings.resources.limits.memory",
            "True is not a quantity; write one such as 500m, 1Gi or 2",
        ),
        (
            spec("volumeMounts: [{name: work, mountpath: /w}]"),
            "spec.volumeMounts[0].mountpath",
            "unknown field; did you mean 'mountPath'?",
        ),
        (
            spec("volumeMounts: [{name: Work, mountPath: /w}]"),
            "spec.volumeMounts[0].name",
            "'Work' is not a volume's name; use at most 63 lower-case letters, digits and '-' (RFC 1123)",
        ),
        (
            spec("volumeMounts: [{name: a, mountPath: '/w:ro'}]"),
            "spec.volumeMounts[0].mountPath",
            "'/w:ro' is not a place to mount at; a path in a container has no ':' and no NUL character",
        ),
        (
            spec("volumeMounts: [{name: a, mountPath: /w}, {name: b, mountPath: /w}]"),
            "spec.volumeMounts[1].mountPath",
            "'/w' stands here a second time; keep one",
        ),
        (
            spec("runtimeSettings: {env: [{name: A, value: x}, {name: A, value: y}]}"),
            "spec.runtimeSettings.env[1].name",
            "'A' stands here a second time; keep one",
        ),
        (
            spec("runtimeSettings: {envFrom: [{prefix: A}]}"),
            "spec.runtimeSettings.envFrom[0]",
            "names no source; give configMapRef or secretRef",
        ),
        (
            spec("runtimeSettings: {envFrom: [{configMapRef: {name: a}, secretRef: {name: a}}]}"),
            "spec.runtimeSettings.envFrom[0]",
            "names both configMapRef and secretRef; make two entries of it",
        ),
        (
            spec("runtimeSettings: {pod: {serviceAccountAnnotations: {a: b}}}"),
            "spec.runtimeSettings.pod.serviceAccountAnnotations",
            (
                "podhook makes no service account to put them on; annotate the service account itself, and name it in "
                "serviceAccountName"
            ),
        ),
        (
            spec("runtimeSettings: {pod: {podLabels: {podhook.dev/run-id: x}}}"),
            "spec.runtimeSettings.pod.podLabels.podhook.dev/run-id",
            "is podhook's own, which finds its pods by it; use another prefix",
        ),
        ("apiVersion: v1\nkind: Pod\n", "kind", "is 'Pod', where a Function is wanted"),
        ("- a\n", "", "is a list, not a Function; write apiVersion, kind and spec"),
        ("", "", "the file has no Function in it; write one with kind: Function"),
        (
            "kind: Function\nmetadata: {name: f}\nspec: {image: i}\n",
            "apiVersion",
            "is required",
        ),
        (
            FULL.replace("addons.kubestash.com/v1alpha1", "stash.appscode.com/v1beta1"),
            "apiVersion",
            "'stash.appscode.com/v1beta1' is not one of 'addons.kubestash.com/v1alpha1' or 'podhook.dev/v1alpha1'",
        ),
        (FULL.replace("  image: ghcr.io/acme/migrate:v1.2\n", ""), "spec.image", "is required"),
        (f"{FULL}---\n{FULL}", "document 2: metadata.name", "'hook-function' is there already; keep one"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text, path, message):
    found = problems(text)
    assert path in found, found
    assert found[path].removeprefix(f"{path}: ") == message


def test_all_problems_are_told_at_once():
    found = problems(spec("imagee: x\nargs: up\nvolumeMounts: [{name: a}]"))
    assert set(found) == {"spec.imagee", "spec.args", "spec.volumeMounts[0].mountPath"}


def test_where_one_function_is_wanted_two_are_refused():
    with pytest.raises(InvalidHook, match=r"the file has 2 Functions \(f, g\) where one is wanted"):
        load_function(f"{spec('')}---\n{spec('').replace('name: f', 'name: g')}")


def test_a_file_has_a_bound():
    many = "---\n".join(spec("").replace("name: f", f"name: f{i}") for i in range(functions.MAX_FUNCTIONS + 1))
    assert problems(many)[""] == "the file has 201 documents; the limit is 200; split it"


# --- the same parts in a template


def executor(text: str) -> str:
    return "executor:\n  type: Function\n  function:\n    name: f\n" + textwrap.indent(textwrap.dedent(text), "    ")


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        (
            "volumes: [{name: a, configmap: {name: x}}]",
            "executor.function.volumes[0].configmap",
            "unknown field; did you mean 'configMap'?",
        ),
        (
            "volumes: [{name: a}]",
            "executor.function.volumes[0]",
            "names no source, and would be an empty directory; give one, or write emptyDir: {}",
        ),
        (
            "volumes: [{name: a, emptyDir: }]",
            "executor.function.volumes[0]",
            "names no source, and would be an empty directory; give one, or write emptyDir: {}",
        ),
        (
            "volumes: [{name: a, emptyDir: {}, secret: {secretName: s}}]",
            "executor.function.volumes[0]",
            "names 2 sources (emptyDir, secret); a volume has one: keep one",
        ),
        (
            "volumes: [{name: a, emptyDir: {}}, {name: a, emptyDir: {}}]",
            "executor.function.volumes[1].name",
            "'a' stands here a second time; keep one",
        ),
        (
            "env: [{name: A, value: x, valuefrom: {}}]",
            "executor.function.env[0].valuefrom",
            "unknown field; did you mean 'valueFrom'?",
        ),
    ],
)
def test_a_template_is_as_strict(text, path, message):
    with pytest.raises(InvalidHook) as caught:
        load_hooks(executor(text))
    assert {(problem.path, problem.message) for problem in caught.value.problems} == {(path, message)}


def test_every_kind_of_volume_is_taken():
    for source in set(definition("io.k8s.api.core.v1.Volume")["properties"]) - {"name"}:
        hook = load_hooks(executor(f"volumes: [{{name: a, {source}: {{}}}}]"))[0]
        assert hook.spec.executor.function.volumes[0].document() == {"name": "a", source: {}}
