"""Which pods a post hook is aimed at, after what happened to them since the freeze."""

from __future__ import annotations

import asyncio

import pytest

from agent.contract.errors import ClusterUnavailable, LinkDown
from agent.contract.plans import Phase
from agent.contract.states import Outcome
from agent.coordinator import Target
from agent.coordinator.aftermath import Aftermath
from agent.coordinator.around import HookEnd, State
from agent.coordinator.interrupts import Interrupts
from agent.coordinator.targets import Selection
from tests.coordinator.test_around import PODS, planned, run_of

ONE = PODS.replace("ExecuteOnAll", "ExecuteOnOne")
DB_0, DB_1, NEW = (Target("shop", name, f"uid-{name}") for name in ("db-0", "db-1", "a-new"))


class Cluster:
    """A coordinator whose cluster says what it is told to."""

    knows_pods = True

    def __init__(self, *said: Selection | Exception, broker: Exception | None = None) -> None:
        self.said = list(said)
        self.broker = broker

    async def wait_connected(self, within_seconds: float) -> None:
        if self.broker is not None:
            raise self.broker

    async def select(self, call):
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(said, Exception):
            raise said
        return said

    async def agents(self):
        return []

    async def presence_changed(self) -> None:
        await asyncio.sleep(0)


def run_in(*targets: Target):
    from dataclasses import replace

    run = run_of(db_0=Outcome.SUCCEEDED)
    return replace(run, targets=tuple(replace(run.targets[0], target=each) for each in targets))


def after(coordinator, pre_text: str, post_text: str, *frozen: Target, meant=(DB_0, DB_1), within: float = 60.0):
    """What a thaw is aimed at after a freeze in these pods."""
    post = planned("thaw", Phase.POST_BACKUP, post_text)
    said: list[str] = []
    aftermath = Aftermath(coordinator, Interrupts(lambda **_: None, said.append, 10), said.append, within)
    aftermath.meant[post] = frozenset(each.key for each in meant)
    pres = [HookEnd(planned("freeze", text=pre_text), State.SUCCEEDED, run=run_in(*frozen))]
    return aftermath.aimed(post, post.call, pres), said


@pytest.mark.parametrize(
    ("selection", "only"),
    [
        (Selection((NEW, DB_0, DB_1), ()), ["db-0"]),  # a pod that came meanwhile is the first by name
        (Selection((DB_1,), (), unready=(DB_0,)), ["db-0"]),  # it is not Ready, for it is frozen
        (Selection((DB_1,), ()), None),  # the cluster has it no more: nothing is frozen there
    ],
)
async def test_a_thaw_in_one_pod_runs_where_the_freeze_was(selection, only):
    aimed, _ = after(Cluster(selection), ONE, ONE, DB_0)
    call, wanted = await aimed
    assert ([each.name for each in call.only] if call.only else None) == only
    assert wanted == ({DB_0.key} if only else frozenset())


async def test_a_thaw_in_one_pod_waits_for_its_agent():
    away = Selection((DB_1,), (DB_0,))
    aimed, said = after(Cluster(away, away, Selection((DB_0, DB_1), ())), ONE, ONE, DB_0)
    call, _ = await aimed
    assert [each.name for each in call.only] == ["db-0"]
    assert said == ["waiting for the agents of shop/db-0"] * 2


async def test_one_that_stays_away_is_still_wanted_and_another_pod_may_have_the_hook():
    aimed, _ = after(Cluster(Selection((DB_1,), (DB_0,))), ONE, ONE, DB_0, within=0)
    call, wanted = await aimed
    assert (call.only, call.allow_missing, wanted) == (None, True, {DB_0.key})


async def test_a_message_in_one_pod_is_not_a_thaw_of_all():
    """Freeze all, tell one: the latter answers for nobody."""
    aimed, _ = after(Cluster(Selection((DB_0, DB_1), ())), PODS, ONE, DB_0, DB_1)
    call, wanted = await aimed
    assert (call.only, wanted) == (None, frozenset())


@pytest.mark.parametrize("text", [ONE, PODS])
async def test_a_cluster_that_cannot_be_asked_keeps_nobody_frozen(text):
    """Its token may have expired in six hours of a backup; the pods are known, and their agents are there."""
    aimed, said = after(Cluster(ClusterUnavailable("API server away")), text, text, DB_1)
    call, wanted = await aimed
    assert [(each.name, each.uid) for each in call.only] == [("db-1", "uid-db-1")]
    assert wanted == {DB_1.key}
    assert "the cluster cannot be asked: API server away" in said[0]
    assert call.pods().strategy == planned(text=text).call.pods().strategy


async def test_where_no_pre_hook_was_the_cluster_has_to_answer():
    aimed, _ = after(Cluster(ClusterUnavailable("away")), PODS, PODS, DB_0, meant=(DB_1,))
    call, wanted = await aimed  # nobody is waited for: the run itself asks, and says it
    assert (call.only, wanted) == (None, frozenset())


async def test_without_a_broker_nobody_is_reached():
    aimed, _ = after(Cluster(Selection((), ()), broker=LinkDown("away")), PODS, PODS, DB_0)
    with pytest.raises(LinkDown):
        await aimed
