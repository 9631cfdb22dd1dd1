"""The objects of the acceptance in a real cluster: a namespace with a broker, two pods, and who runs hooks. Pure.

They are made of what people are told to write - the pod of examples/pods/mariadb.yaml, the Role of docs/kubernetes.md -
so that is accepted too. Keys, TLS and the broker's users are left out: who may do what is asked of the API server here,
and the rest is tests/pods' business. The namespace lives for some minutes, and runs nothing that is worth having.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import yaml

from tests.agents import PROJECT

Json = dict[str, Any]

BROKER = "mqtt://mosquitto:1883"
RUNNER = "runner"
#: A process that ends when it is told to, and needs no program but a shell's and `sleep`.
WAITS = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]
POD_HOOK = {
    "action": {"exec": {"command": ["sh", "-c", "echo written by $0 in $HOSTNAME", "sh"]}, "containerName": "db"},
    "executor": {"type": "Pod", "pod": {"selector": "app=db", "strategy": "ExecuteOnAll"}},
}
HOOKS: Mapping[str, Json] = {
    "pod": POD_HOOK,
    "missing": POD_HOOK | {"executor": {"type": "Pod", "pod": {"selector": "app in (db, bare)"}}},
    "operator": {"action": {"tcpSocket": {"host": "mosquitto", "port": 1883}}, "executor": {"type": "Operator"}},
    "function": {"executor": {"type": "Function", "function": {"name": "migrate"}}},
}


@dataclass(frozen=True, slots=True)
class Images:
    """What the pods run: podhook, a broker (its configuration is read from /mosquitto/config), and any with a shell."""

    podhook: str
    broker: str
    plain: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """As variables name them; None where podhook's own is not named, which no registry has by a name of ours."""
        podhook = environment.get("PODHOOK_TEST_IMAGE", "")
        broker = environment.get("PODHOOK_TEST_BROKER_IMAGE") or "eclipse-mosquitto:2"
        plain = environment.get("PODHOOK_TEST_PLAIN_IMAGE") or "busybox:1.36"
        return cls(podhook, broker, plain) if podhook else None


def stage(namespace: str, images: Images) -> list[Json]:
    """Everything that is there before a hook runs, in the order in which it is made."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            # The examples promise to need no more than this.
            "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "baseline"}},
        },
        *_broker(namespace, images),
        _database(namespace, images),
        _bare(namespace, images),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": RUNNER, "namespace": namespace}},
        *_rights(namespace),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "hooks", "namespace": namespace},
            "data": {f"{name}.yaml": json.dumps(hook) for name, hook in HOOKS.items()}
            | {"function-migrate.yaml": json.dumps(_function(images))},
        },
    ]


def runner(namespace: str, images: Images, hook: str) -> Json:
    """The pod that runs `podhook run` of one of HOOKS, as a CronJob's would."""
    arguments = ["--source", "kubernetes", "-n", namespace, "--timeout", "2m", "-o", "json"]
    if hook == "function":
        arguments += ["--function", "/hooks/function-migrate.yaml"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"run-{hook}", "namespace": namespace, "labels": {"app": "runner"}},
        "spec": {
            "serviceAccountName": RUNNER,
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "podhook",
                    "image": images.podhook,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["run", f"/hooks/{hook}.yaml", *arguments],
                    "env": [{"name": "PODHOOK_BROKER", "value": BROKER}],
                    "securityContext": {
                        "runAsUser": 65532,
                        "runAsNonRoot": True,
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumeMounts": [{"name": "hooks", "mountPath": "/hooks", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "hooks", "configMap": {"name": "hooks"}}],
        },
    }


def _function(images: Images) -> Json:
    return {
        "apiVersion": "addons.kubestash.com/v1alpha1",
        "kind": "Function",
        "metadata": {"name": "migrate"},
        "spec": {"image": images.plain, "command": ["sh", "-c", "echo migrated"]},
    }


def _example(name: str, namespace: str) -> Iterator[Json]:
    for document in yaml.safe_load_all((PROJECT / "examples" / "pods" / name).read_text(encoding="utf-8")):
        document["metadata"]["namespace"] = namespace
        yield document


def _broker(namespace: str, images: Images) -> Iterator[Json]:
    metadata = {"name": "mosquitto", "namespace": namespace, "labels": {"app": "mosquitto"}}
    configuration = "listener 1883\nallow_anonymous true\n"
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mosquitto.conf": configuration}}
    ports = [{"name": "mqtt", "port": 1883}]
    spec = {"selector": {"app": "mosquitto"}, "ports": ports}
    yield {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    container = {
        "name": "mosquitto",
        "image": images.broker,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "mqtt", "containerPort": 1883}],
        "securityContext": {"runAsUser": 1883, "allowPrivilegeEscalation": False},
        "readinessProbe": {"tcpSocket": {"port": "mqtt"}, "periodSeconds": 1},
        "volumeMounts": [{"name": "configuration", "mountPath": "/mosquitto/config", "readOnly": True}],
    }
    volumes = [{"name": "configuration", "configMap": {"name": "mosquitto"}}]
    spec = {"automountServiceAccountToken": False, "containers": [container], "volumes": volumes}
    yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


#: Of the example's volumes: what the pod tells of itself, and the journal.
_KEPT = ("pod", "podhook-state")


def _database(namespace: str, images: Images) -> Json:
    """The example's pod with something smaller than a database, beside the agent as it stands there."""
    (document,) = _example("mariadb.yaml", namespace)
    metadata, spec = document["metadata"], document["spec"]
    agent = next(each for each in spec["containers"] if each["name"] == "agent")
    agent |= {"image": images.podhook, "imagePullPolicy": "IfNotPresent"}
    left_out = ("PODHOOK_BROKER", "PODHOOK_TRUSTED_KEYS", "PODHOOK_AGENT_KEY")
    agent["env"] = [each for each in agent["env"] if not each["name"].startswith(left_out)]
    agent["env"] += [{"name": "PODHOOK_BROKER", "value": BROKER}, {"name": "PODHOOK_ALLOW_UNSIGNED", "value": "true"}]
    agent["volumeMounts"] = [each for each in agent["volumeMounts"] if each["name"] in _KEPT]
    spec["volumes"] = [each for each in spec["volumes"] if each["name"] in _KEPT]
    metadata |= {"name": "db-0", "labels": {"app": "db"}}
    metadata["annotations"]["podhook.dev/pod"] = json.dumps({"containers": [{"name": "db"}, {"name": "agent"}]})
    spec["containers"] = [_plain(images), agent]
    return document


def _bare(namespace: str, images: Images) -> Json:
    """A pod without an agent."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bare-0", "namespace": namespace, "labels": {"app": "bare"}},
        "spec": {"automountServiceAccountToken": False, "containers": [_plain(images)]},
    }


def _plain(images: Images) -> Json:
    return {
        "name": "db",
        "image": images.plain,
        "imagePullPolicy": "IfNotPresent",
        "command": WAITS,
        "securityContext": {"runAsUser": 999, "allowPrivilegeEscalation": False},
    }


def _rights(namespace: str) -> list[Json]:
    """The Role and its RoleBinding of docs/kubernetes.md, for our runner."""
    text = (PROJECT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    blocks = re.findall("```yaml\n(.*?)```", text, re.DOTALL)
    documents = [each for block in blocks for each in yaml.safe_load_all(block)]
    named = [each for each in documents if each.get("metadata", {}).get("name") == "podhook-coordinator"]
    role, binding = (copy.deepcopy(each) for each in named if each["kind"] in ("Role", "RoleBinding"))
    for each in (role, binding):
        each["metadata"]["namespace"] = namespace
    binding["subjects"] = [{"kind": "ServiceAccount", "name": RUNNER, "namespace": namespace}]
    return [role, binding]
