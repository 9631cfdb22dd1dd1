"""Which of the cluster's pods are aimed at, and that every mismatch between cluster and presence is named."""

from datetime import UTC, datetime

import pytest

from agent.contract.messages import Presence
from agent.contract.templates import Hook, HookSpec, PodExecutor
from agent.coordinator.calls import HookCall
from agent.coordinator.targets import PodSeen, among, select, strangers, why_not

NOW = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
ALL = PodExecutor.model_validate({"selector": "app=db", "strategy": "ExecuteOnAll"})
ONE = PodExecutor.model_validate({"selector": "app=db"})


def said(pod="db-0", uid="u", state="online"):
    return Presence(namespace="shop", pod=pod, pod_uid=uid, state=state, born_at=NOW, clock=NOW, labels={"app": "db"})


def by_name(*presences):
    return {(each.namespace, each.pod): each for each in presences}


def call(**more):
    return HookCall(Hook("x", HookSpec()), selector="app=db", namespaces=frozenset({"shop"}), **more)


def error(selection, executor=ALL, **more):
    found = why_not(call(**more), executor, selection)
    return (found.code, found.message) if found is not None else None


def test_a_pod_with_a_live_agent_of_its_uid_is_a_target():
    selection = among([PodSeen("shop", "db-0", "u")], by_name(said()), ALL)
    assert [str(each) for each in selection.targets] == ["shop/db-0"]
    assert error(selection) is None


@pytest.mark.parametrize(
    ("presences", "why"),
    [
        ([], "no agent has said that it is there"),
        ([said(state="offline")], "its agent is offline"),
        ([said(uid="old")], "the agent by that name is of pod uid old, and the pod has u"),
        ([said(uid="old", state="offline")], "the agent by that name is of pod uid old, and the pod has u"),
        ([said(pod="db-1")], "no agent has said that it is there"),
    ],
)
def test_a_pod_without_a_live_agent_stops_the_run_and_is_named_with_its_reason(presences, why):
    selection = among([PodSeen("shop", "db-0", "u")], by_name(*presences), ALL)
    code, message = error(selection)
    assert code == "missing_agents"
    assert f"1 selected pods have no live agent: shop/db-0 ({why})" in message
    assert error(selection, allow_missing=True, allow_empty=True) is None


def test_a_presence_that_does_not_verify_is_no_agent():
    selection = among([PodSeen("shop", "db-0", "u")], by_name(said()), ALL, doubted={("shop", "db-0")})
    assert (selection.targets, [str(each) for each in selection.doubted]) == ((), ["shop/db-0"])
    assert "does not verify: shop/db-0" in error(selection)[1]


@pytest.mark.parametrize(
    ("pod", "noted"),
    [
        (PodSeen("shop", "db-1", "v", phase="Pending"), "shop/db-1 (Pending)"),
        (PodSeen("shop", "db-1", "v", phase="Succeeded"), "shop/db-1 (Succeeded)"),
        (PodSeen("shop", "db-1", "v", deleting=True), "shop/db-1 (being deleted)"),
    ],
)
def test_only_pods_that_run_and_are_not_being_deleted_count_and_the_others_are_named(pod, noted):
    selection = among([PodSeen("shop", "db-0", "u"), pod], by_name(said(), said("db-1", "v")), ALL)
    assert ([str(each) for each in selection.targets], selection.found) == (["shop/db-0"], 1)
    assert selection.notes == (f"not counted, for they are not running: {noted}",)


def test_nothing_that_runs_is_no_target_and_says_what_was_seen():
    code, message = error(among([PodSeen("shop", "db-0", "u", deleting=True)], by_name(said()), ALL))
    assert code == "no_targets"
    assert "shop/db-0 (being deleted)" in message


def test_no_pods_at_all_are_no_targets():
    assert error(among([], by_name(said()), ALL))[0] == "no_targets"
    assert error(among([], {}, ALL), allow_empty=True) is None


def test_on_one_takes_only_ready_pods_in_the_order_of_their_names():
    pods = [PodSeen("shop", "db-2", "c"), PodSeen("shop", "db-0", "a", ready=False), PodSeen("shop", "db-1", "b")]
    presences = by_name(said("db-0", "a"), said("db-1", "b"), said("db-2", "c"))
    selection = among(pods, presences, ONE)
    assert [each.pod for each in selection.targets] == ["db-1", "db-2"]
    assert selection.notes == ("not tried, for they are not Ready: shop/db-0",)
    assert [each.pod for each in among(pods, presences, ALL).targets] == ["db-0", "db-1", "db-2"]


def test_on_one_without_a_ready_pod_starts_nothing():
    selection = among([PodSeen("shop", "db-0", "u", ready=False)], by_name(said()), ONE)
    assert error(selection, ONE)[0] == "no_ready_pod"
    assert error(selection, ONE, allow_empty=True)[0] == "no_ready_pod"


@pytest.mark.parametrize("expect", [2, 3, 4])
def test_expect_counts_the_pods_that_run_with_an_agent_or_without(expect):
    pods = [PodSeen("shop", f"db-{n}", str(n), ready=n > 0) for n in range(3)]
    selection = among(pods, by_name(said("db-0", "0"), said("db-1", "1")), ONE)
    found = error(selection, ONE, expect=expect, allow_missing=True)
    assert (found is None) == (expect == 3)


def test_agents_of_pods_that_the_cluster_does_not_have_are_named():
    pods = [PodSeen("shop", "db-0", "u")]
    assert strangers(pods, select([said(), said("ghost")], ALL, None)).endswith("does not have: shop/ghost")
    assert strangers(pods, select([said()], ALL, None)) == ""
