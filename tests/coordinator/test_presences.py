"""Whose presence the coordinator takes: verified, of now, and never fewer agents because somebody wrote over one."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from agent.bus.link import Link
from agent.bus.types import Delivery, Publication
from agent.contract.events import seal
from agent.contract.messages import Presence
from agent.contract.signing.envelope import Typ, sign
from agent.contract.templates import Hook, HookSpec
from agent.contract.topics import Topics
from agent.coordinator import Coordinator, HookCall
from agent.coordinator.roster import Roster
from agent.coordinator.targets import Selection, Target, why_not
from agent.coordinator.trust import Trust
from agent.coordinator.wire import Wire
from tests.contract.signing.keys import pair, ring

NOW = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
SECOND = timedelta(seconds=1)
KEY = ("shop", "db-0")
UID = "6f1c3c52-7a5b-4a3f-9d52-0c9f4f6f9a01"
JUNK = [b"nonsense", b"\xff\x00", b"ey.ey.ey", b"{}", b"x" * 300_000]


class Published:
    """A link that keeps what is published."""

    def __init__(self) -> None:
        self.publications: list[Publication] = []

    async def publish(self, publication: Publication, **_: Any) -> None:
        self.publications.append(publication)


def wire(*, verifies: bool = True) -> Wire:
    trust = Trust(None, {"shop": ring("shop")} if verifies else None)
    return Wire(cast("Link", Published()), Topics(), "c", lambda: NOW, trust)


def said(state: str = "online", *, key: str | None = "shop", pod: str = "db-0", uid: str = UID, **more: Any) -> bytes:
    fields = {"born_at": NOW - 100 * SECOND, "clock": NOW, "started_at": NOW - 50 * SECOND, "labels": {"app": "db"}}
    presence = Presence(namespace="shop", pod=pod, pod_uid=uid, state=state, **{**fields, **more})
    payload = seal(presence, source=f"/agents/shop/{pod}", time=presence.clock, event_id=str(uuid.uuid4()))
    return sign(payload, pair(key), Typ.OUTCOME) if key else payload


def take(to: Wire, *payloads: bytes, pod: str = "db-0", retain: bool = False, oversize_bytes: int = 0) -> None:
    for payload in payloads:
        to.take(Delivery(f"podhook/v1/agents/shop/{pod}/presence", payload, 0, retain, oversize_bytes))


def labels(of: Wire) -> dict[str, str]:
    return of.presences[KEY].labels


# --- what is repeated


def test_an_older_presence_of_the_same_pod_is_a_repetition():
    one = wire()
    take(one, said(labels={"role": "primary"}), said(labels={"role": "replica"}, clock=NOW - SECOND))
    assert labels(one) == {"role": "primary"}
    take(one, said(labels={"role": "new"}, clock=NOW + SECOND))
    assert labels(one) == {"role": "new"}


def test_a_will_is_signed_when_its_agent_connects_and_counts_all_the_same():
    one = wire()
    take(one, said(), said("offline", clock=NOW - 40 * SECOND))
    assert one.presences[KEY].state == "offline"
    take(one, said(clock=NOW - 45 * SECOND))  # its clock was set back a little
    assert one.presences[KEY].state == "online", "whatever comes after a will may be its return"


def test_the_will_of_an_earlier_life_is_not_this_ones():
    one = wire()
    take(one, said(), said("offline", clock=NOW - 60 * SECOND, started_at=NOW - 61 * SECOND))
    assert one.presences[KEY].state == "online"


def test_another_pod_of_the_name_is_no_repetition():
    one = wire()
    take(one, said(), said(uid="another", clock=NOW - SECOND))
    assert one.presences[KEY].pod_uid == "another"


def test_a_clock_that_was_ahead_and_was_set_back_hides_nothing_that_is_said_since():
    one = wire()
    take(one, said(clock=NOW + timedelta(hours=1)), said(labels={"role": "new"}))
    assert labels(one) == {"role": "new"}


# --- what does not verify


@pytest.mark.parametrize("payload", [*JUNK, said(key=None, labels={"app": "other"}), said(key="stranger")])
def test_what_does_not_verify_is_remembered_by_its_name(payload):
    one = wire()
    take(one, payload)
    [(key, claim)] = one.distrusted.items()
    assert (key, (claim.namespace, claim.pod), one.presences) == (KEY, KEY, {})
    assert claim.why.isprintable()


def test_what_is_too_large_clears_nobody_and_is_remembered_by_its_name():
    one = wire()
    take(one, said())
    take(one, b"", oversize_bytes=300_000)
    assert labels(one) == {"app": "db"}
    assert one.distrusted[KEY].why == "presence of 300000 bytes; the limit is 262144"


@pytest.mark.parametrize("payload", JUNK)
def test_without_agent_keys_there_is_nothing_to_distrust(payload):
    one = wire(verifies=False)
    take(one, payload)
    assert (one.distrusted, one.presences) == ({}, {})


@pytest.mark.parametrize("payload", [*JUNK, said(key=None, labels={"app": "other"})])
def test_what_verified_before_stays_until_the_link_breaks(payload):
    one = wire()
    take(one, said(), payload)
    assert labels(one) == {"app": "db"}
    one.link_lost()
    take(one, payload, retain=True)  # all that the broker still has
    one.presence_complete()
    assert (one.presences, set(one.distrusted)) == ({}, {KEY})


def test_what_the_broker_does_not_know_any_more_is_not_distrusted_for_ever():
    one = wire()
    take(one, b"nonsense")
    take(one, b"nonsense", pod="db-1")
    one.link_lost()
    take(one, b"nonsense", pod="db-1", retain=True)
    one.presence_complete()
    assert set(one.distrusted) == {("shop", "db-1")}


@pytest.mark.parametrize("payload", [b"", said()])
def test_what_is_mended_is_not_distrusted_any_more(payload):
    one = wire()
    take(one, b"nonsense", payload)
    assert one.distrusted == {}


@pytest.mark.parametrize("pod", ["[red]x", "DB", "a\x1b[31m", "-"])
def test_a_name_that_no_agent_can_have_is_nobody(pod):
    one = wire()
    take(one, b"nonsense", pod=pod)
    assert one.distrusted == {}


# --- what a run makes of it


def call(**more: Any) -> HookCall:
    return HookCall(Hook("x", HookSpec()), selector="app=db", namespaces=frozenset({"shop"}), **more)


def selection_of(one: Wire, of: HookCall) -> Selection:
    return Roster(one).select(of.pods(), of.namespaces)


@pytest.mark.parametrize("payload", [b"nonsense", said(key=None, pod="db-1", labels={"app": "other"})])
async def test_an_agent_that_was_written_over_is_missing_whatever_its_labels(payload):
    one = wire()
    take(one, said())
    take(one, payload, pod="db-1")
    selection = selection_of(one, call())
    assert ([str(each) for each in selection.targets], [str(each) for each in selection.doubted]) == (
        ["shop/db-0"],
        ["shop/db-1"],
    )
    assert selection.missing == selection.doubted
    error = why_not(call(), call().pods(), selection)
    assert error is not None
    assert error.code == "missing_agents"
    assert (
        "what stands for the presence of 1 pods does not verify: shop/db-1. `podhook agents` says why" in error.message
    )
    assert "no live agent" not in error.message
    assert why_not(call(allow_missing=True), call().pods(), selection) is None


async def test_an_agent_of_another_namespace_is_not_missed_here():
    one = wire()
    take(one, said())
    one.take(Delivery("podhook/v1/agents/lab/db-0/presence", b"nonsense", 0, retain=True))
    assert set(one.distrusted) == {("lab", "db-0")}
    assert (selection_of(one, call())).missing == ()
    assert len((selection_of(one, HookCall(call().hook, selector="app=db", namespaces=None))).missing) == 1


def test_who_is_offline_and_who_does_not_verify_are_told_apart():
    gone, doubted = Target("shop", "a", "1"), Target("shop", "b", "")
    error = why_not(call(), call().pods(), Selection((), (gone, doubted), (doubted,)))
    assert error is not None
    assert error.message.startswith(
        "1 selected pods have no live agent: shop/a; what stands for the presence of 1 pods"
    )


async def test_pruning_clears_what_does_not_verify_and_tells_it():
    one = wire()
    take(one, b"nonsense")
    coordinator = Coordinator("mqtt://127.0.0.1:1")
    coordinator._wire = one
    coordinator._roster = Roster(one)
    told = [each async for each in coordinator.prune_distrusted(coordinator.distrusted)]
    [publication] = cast("Published", one.link).publications
    assert [(each.namespace, each.pod) for each in told] == [KEY]
    assert (publication.topic, publication.payload, publication.retain) == (
        "podhook/v1/agents/shop/db-0/presence",
        b"",
        True,
    )
    assert coordinator.distrusted == []
