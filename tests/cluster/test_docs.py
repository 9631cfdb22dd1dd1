"""The rights that docs/kubernetes.md gives are those that the questions need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cluster.refusals import Question, rule_for
from agent.cluster.resources import (
    CONFIG_MAPS,
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    FUNCTIONS,
    HOOK_TEMPLATES,
    JOBS,
    NAMESPACES,
    PODHOOK_FUNCTIONS,
    PODHOOK_HOOK_TEMPLATES,
    PODS,
    REPLICA_SETS,
    SECRETS,
    STATEFUL_SETS,
)
from tests.agents import PROJECT

ALLOWED = [
    *(Question(verb, PODS, "shop") for verb in ("list", "watch")),
    *(Question("list", kind, "shop") for kind in (REPLICA_SETS, DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS)),
    *(Question("get", kind, "shop", "freeze") for kind in (HOOK_TEMPLATES, PODHOOK_HOOK_TEMPLATES)),
    *(Question("list", kind, "shop") for kind in (HOOK_TEMPLATES, PODHOOK_HOOK_TEMPLATES)),
    *(Question(verb, JOBS, "shop", "run") for verb in ("create", "get", "list", "watch", "delete")),
    Question("get", PODS, "shop", "run-x", "log"),
    Question("get", SECRETS, "shop", "db"),
    Question("get", CONFIG_MAPS, "shop", "db"),
    *(Question(verb, kind, "", "dump") for verb in ("get", "list") for kind in (FUNCTIONS, PODHOOK_FUNCTIONS)),
    Question("get", NAMESPACES, "", "shop"),
]
FORBIDDEN = [
    Question("get", SECRETS, "shop", "other"),
    Question("list", SECRETS, "shop"),
    Question("create", PODS, "shop", "x", "exec"),
    Question("delete", PODS, "shop", "x"),
    Question("list", CRON_JOBS, "shop"),
    Question("list", NAMESPACES, ""),
]


def rules() -> dict[str, list[dict[str, Any]]]:
    text = Path(PROJECT, "docs", "kubernetes.md").read_text(encoding="utf-8")
    documents = [
        each for block in re.findall("```yaml\n(.*?)```", text, re.DOTALL) for each in yaml.safe_load_all(block)
    ]
    named = [each for each in documents if each.get("metadata", {}).get("name") == "podhook-coordinator"]
    assert [each["kind"] for each in named] == ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"]
    return {each["kind"]: each["rules"] for each in named if "rules" in each}


def allows(question: Question) -> bool:
    """As RBAC judges it: any rule whose groups, resources, verbs and names all fit."""
    wanted = next(yaml.safe_load_all(rule_for(question, "jane")))
    (right,) = wanted["rules"]
    return any(
        set(right["apiGroups"]) <= set(rule["apiGroups"])
        and set(right["resources"]) <= set(rule["resources"])
        and set(right["verbs"]) <= set(rule["verbs"])
        and ("resourceNames" not in rule or set(right.get("resourceNames", ["*"])) <= set(rule["resourceNames"]))
        for rule in rules()[wanted["kind"]]
    )


@pytest.mark.parametrize("question", ALLOWED, ids=str)
def test_what_podhook_asks_is_allowed(question):
    assert allows(question)


@pytest.mark.parametrize("question", FORBIDDEN, ids=str)
def test_nothing_more_is(question):
    assert not allows(question)
