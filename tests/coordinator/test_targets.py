"""Which agents a hook aims at: selector, namespaces, owners, presence."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agent.contract.messages import Owner, Presence
from agent.contract.templates import OwnerFilter, PodExecutor
from agent.coordinator.targets import Target, owned_by, select

AT = datetime(2026, 3, 1, tzinfo=UTC)
DEPLOYMENT = Owner(api_version="apps/v1", kind="Deployment", name="op", uid="d-1")
REPLICASET = Owner(api_version="apps/v1", kind="ReplicaSet", name="op-7c9", uid="r-1")


def presence(namespace, pod, state="online", owners=(), **labels):
    return Presence(
        namespace=namespace,
        pod=pod,
        pod_uid=f"{namespace}-{pod}",
        state=state,
        born_at=AT,
        clock=AT,
        labels=labels,
        owners=list(owners),
    )


EVERYBODY = [
    presence("shop", "db-10", app="db", tier="replica"),
    presence("shop", "db-1", app="db", tier="replica"),
    presence("shop", "db-0", app="db", tier="primary"),
    presence("shop", "web-0", app="web"),
    presence("lab", "db-0", app="db", tier="primary"),
]


def names(selector, namespaces=frozenset({"shop"}), everybody=EVERYBODY, **owner):
    executor = PodExecutor.model_validate({"selector": selector, **owner})
    found = select(everybody, executor, namespaces)
    return [str(target) for target in found.targets], [str(target) for target in found.missing]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app=db", ["shop/db-0", "shop/db-1", "shop/db-10"]),
        ("app=db, tier=primary", ["shop/db-0"]),
        ("app in (db, web)", ["shop/db-0", "shop/db-1", "shop/db-10", "shop/web-0"]),
        ("app, !tier", ["shop/web-0"]),
        ("tier!=primary", ["shop/db-1", "shop/db-10", "shop/web-0"]),
        ("app=none", []),
    ],
)
def test_labels_select_and_names_give_the_order(selector, found):
    assert names(selector) == (found, [])


@pytest.mark.parametrize(
    ("namespaces", "found"),
    [
        (frozenset({"lab"}), ["lab/db-0"]),
        (frozenset({"lab", "shop"}), ["lab/db-0", "shop/db-0"]),
        (None, ["lab/db-0", "shop/db-0"]),
        (frozenset({"none"}), []),
        (frozenset(), []),
    ],
)
def test_only_the_namespaces_that_are_meant(namespaces, found):
    assert names("tier=primary", namespaces) == (found, [])


def test_who_is_offline_is_missing_and_counts():
    everybody = [presence("shop", "db-0", app="db"), presence("shop", "db-1", "offline", app="db")]
    found = select(everybody, PodExecutor.model_validate({"selector": "app=db"}), None)
    assert found.targets == (Target("shop", "db-0", "shop-db-0"),)
    assert found.missing == (Target("shop", "db-1", "shop-db-1"),)
    assert found.found == 2


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({"apiVersion": "apps/v1", "kind": "Deployment", "name": "op"}, True),
        ({"apiVersion": "apps/v1", "kind": "Deployment", "name": "op", "uid": "d-1"}, True),
        ({"apiVersion": "apps/v1", "kind": "Deployment", "name": "op", "uid": "d-2"}, False),
        ({"kind": "Deployment"}, True),
        ({"kind": "ReplicaSet", "name": "op"}, False),  # each owner is judged as a whole
        ({"kind": "StatefulSet"}, False),
        ({"apiVersion": "apps/v2", "kind": "Deployment", "name": "op"}, False),
        ({"uid": "r-1"}, True),
    ],
)
def test_an_owner_fits_by_the_fields_that_are_given(wanted, fits):
    assert owned_by([REPLICASET, DEPLOYMENT], OwnerFilter.model_validate(wanted)) is fits


def test_a_wanted_uid_is_not_found_in_an_owner_that_does_not_tell_its_own():
    owner = Owner(api_version="apps/v1", kind="Deployment", name="op")
    assert owned_by([owner], OwnerFilter.model_validate({"name": "op"}))
    assert not owned_by([owner], OwnerFilter.model_validate({"name": "op", "uid": "d-1"}))


def test_a_pod_without_owners_fits_only_a_hook_without_an_owner():
    assert owned_by([], None)
    assert not owned_by([], OwnerFilter.model_validate({"kind": "Deployment"}))


def test_the_owner_narrows_what_the_selector_found():
    everybody = [
        presence("shop", "op-1", app="db", owners=[REPLICASET, DEPLOYMENT]),
        presence("shop", "op-2", app="db"),
        presence("shop", "op-3", "offline", app="db"),
    ]
    assert names("app=db", everybody=everybody, owner={"kind": "Deployment", "name": "op"}) == (["shop/op-1"], [])
