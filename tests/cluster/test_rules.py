"""The rules that need no cluster: rights as YAML, pauses, and what an answer may be."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.reading import read_object, read_page
from agent.cluster.refusals import Question, rule_for
from agent.cluster.resources import FUNCTIONS, JOBS, NAMESPACES, PODS, SECRETS
from agent.cluster.retrying import QUESTION, WATCH
from agent.contract.errors import ClusterUnavailable

RUNNER = "system:serviceaccount:backup:runner"


def documents(question: Question, user: str = RUNNER) -> tuple[dict[str, Any], dict[str, Any]]:
    role, binding = yaml.safe_load_all(rule_for(question, user))
    return role, binding


@pytest.mark.parametrize(
    ("question", "kind", "name", "rule"),
    [
        (
            Question("list", PODS, "shop"),
            "Role",
            "podhook-list-pods",
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        ),
        (
            Question("list", PODS, None),
            "ClusterRole",
            "podhook-list-pods",
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        ),
        (
            Question("watch", JOBS, "shop", "run-1"),
            "Role",
            "podhook-watch-jobs",
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch"]},
        ),
        (
            Question("get", PODS, "shop", "db-0", "log"),
            "Role",
            "podhook-get-pods-log",
            {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        ),
        (
            Question("get", SECRETS, "shop", "db"),
            "Role",
            "podhook-get-secrets-db",
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["db"], "verbs": ["get"]},
        ),
        (
            Question("get", NAMESPACES, "", "shop"),
            "ClusterRole",
            "podhook-get-namespaces-shop",
            {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["shop"], "verbs": ["get"]},
        ),
        (
            Question("get", FUNCTIONS, "", "dump"),
            "ClusterRole",
            "podhook-get-functions-dump",
            {
                "apiGroups": ["addons.kubestash.com"],
                "resources": ["functions"],
                "resourceNames": ["dump"],
                "verbs": ["get"],
            },
        ),
        (
            Question("create", JOBS, "shop"),
            "Role",
            "podhook-create-jobs",
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]},
        ),
        (
            Question("delete", JOBS, "shop", "run-1"),
            "Role",
            "podhook-delete-jobs",
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["delete"]},
        ),
    ],
)
def test_the_right_to_every_question(question, kind, name, rule):
    role, binding = documents(question)
    place = {"namespace": "shop"} if kind == "Role" else {}
    assert role == {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, **place},
        "rules": [rule],
    }
    assert binding == {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": f"{kind}Binding",
        "metadata": {"name": f"{name}-backup-runner", **place},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "runner", "namespace": "backup"}],
    }


@given(st.text(min_size=1, max_size=40))
def test_any_user_is_bound_as_who_they_are(user):
    _, binding = documents(Question("list", PODS, "shop"), user)
    (subject,) = binding["subjects"]
    if subject["kind"] == "User":
        assert subject == {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}
    else:
        assert user == f"system:serviceaccount:{subject['namespace']}:{subject['name']}"


# --- pauses


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True), st.integers(0, 10**9))
def test_a_pause_is_what_was_asked_for_and_a_bounded_rest(failures, spread, asked):
    error = ClusterUnavailable("no", retry_after_seconds=asked)
    for patience in (QUESTION, WATCH):
        pause = patience.pause(failures, error, spread) - asked
        assert patience.pause_seconds / 2 - 1e-6 <= pause <= patience.ceiling_seconds


def test_pauses_double():
    error = ClusterUnavailable("no")
    assert [WATCH.pause(failures, error, 0) for failures in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert [QUESTION.pause(failures, error, 0.5) for failures in (1, 2)] == [0.375, 0.75]


# --- answers

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["items", "metadata", "name", "continue", "resourceVersion", "managedFields", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(_JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50))
def test_anything_at_all_is_read_or_refused(body):
    for read in (read_object, read_page):
        try:
            value = read(body, "it", "the server")
        except ClusterUnavailable as error:
            assert "check that it is the API server" in str(error)  # noqa: PT017 (both ends are right)
        else:
            items = value.items if not isinstance(value, dict) else []
            assert all("managedFields" not in item["metadata"] for item in items)
