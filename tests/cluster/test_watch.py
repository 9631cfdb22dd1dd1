"""A watch goes on over timeouts, broken connections and versions that are forgotten, and tells nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.reading import MAX_OBJECT_BYTES
from agent.cluster.resources import PODS
from agent.cluster.watching import Seen
from agent.contract.errors import ClusterRefused, ClusterUnavailable
from tests.cluster.world import World, lines, no, pod

PODS_OF_SHOP = "get /api/v1/namespaces/shop/pods"
Told = tuple[str, str, str]


def told(kind: str, item: dict[str, Any]) -> Told:
    metadata = item["metadata"]
    return kind, metadata["name"], metadata["resourceVersion"]


class Script:
    """Answers lists from `lists`, watches from `watches`, each in turn, and records what was asked."""

    def __init__(self, world: World, *, lists: Sequence[Any] = (), watches: Sequence[Any] = ()) -> None:
        self.lists, self.watches = list(lists), list(watches)
        self.asked: list[str] = []
        world.api.scripts[PODS_OF_SHOP] = self

    def __call__(self, request: Any) -> Any:
        watching = request.params.get("watch") == "true"
        self.asked.append(f"watch {request.params['resourceVersion']}" if watching else "list")
        answers = self.watches if watching else self.lists
        if not answers:
            return no(403, 'User "jane" cannot watch')  # the end of the script
        present = answers.pop(0)
        return present if isinstance(present, tuple) else (200, present)


def listing(version: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "items": list(items)}


async def events(world: World, **options: Any) -> list[Told]:
    """Everything that is told until the script ends."""
    seen: list[Told] = []
    with pytest.raises(ClusterRefused, match="let jane watch pods"):
        await follow(world, lambda kind, item: seen.append(told(kind, item)), **options)
    return seen


async def follow(world: World, hear: Callable[[str, dict[str, Any]], None], **options: Any) -> None:
    async with world.cluster() as cluster, contextlib.aclosing(cluster.watch(PODS, "shop", **options)) as watch:
        async for kind, item in watch:
            hear(kind, item)


DB0, DB1 = pod("db-0"), pod("db-1")
DB0_CHANGED = pod("db-0", resourceVersion="2")


async def test_it_begins_with_what_there_is(world: World):
    script = Script(
        world,
        lists=[listing("9", DB0)],
        watches=[
            lines(("MODIFIED", DB0_CHANGED), ("ADDED", DB1), ("DELETED", DB1)),
        ],
    )
    assert await events(world, selector="app=db") == [
        ("ADDED", "db-0", "1"),
        ("MODIFIED", "db-0", "2"),
        ("ADDED", "db-1", "1"),
        ("DELETED", "db-1", "1"),
    ]
    first, second, *_ = list(world.api)
    assert dict(first.params) == {"limit": "500", "labelSelector": "app=db"}
    assert dict(second.params) == {
        "labelSelector": "app=db",
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "9",
        "timeoutSeconds": "240",
    }
    assert script.asked == ["list", "watch 9", "watch 1"]


async def test_one_object_is_watched_by_its_name(world):
    Script(world, lists=[listing("9")])
    await events(world, name="db-0")
    assert [request.params["fieldSelector"] for request in world.api] == ["metadata.name=db-0"] * 2


async def test_after_a_version_nothing_is_listed(world):
    script = Script(world, watches=[lines(("MODIFIED", DB0), ("DELETED", DB1))])
    assert await events(world, resource_version="5") == [("MODIFIED", "db-0", "1"), ("DELETED", "db-1", "1")]
    assert script.asked[0] == "watch 5"


async def test_a_bookmark_says_only_how_far_the_server_is(world):
    bookmark = {"kind": "Pod", "metadata": {"resourceVersion": "50"}}
    script = Script(world, lists=[listing("9")], watches=[lines(("BOOKMARK", bookmark)), lines()])
    assert await events(world) == []
    assert script.asked == ["list", "watch 9", "watch 50", "watch 50"]


@pytest.mark.parametrize(
    "expired",
    [
        no(410, "too old resource version"),
        lines(("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})),
    ],
    ids=["as an answer", "as an event"],
)
async def test_a_version_that_is_forgotten_is_listed_anew(world, expired):
    script = Script(
        world,
        lists=[listing("9", DB0, DB1), listing("20", DB0_CHANGED, pod("db-2"))],
        watches=[expired, lines(("MODIFIED", pod("db-2", resourceVersion="3")))],
    )
    assert await events(world) == [
        ("ADDED", "db-0", "1"),
        ("ADDED", "db-1", "1"),
        ("DELETED", "db-1", "1"),
        ("MODIFIED", "db-0", "2"),
        ("ADDED", "db-2", "1"),
        ("MODIFIED", "db-2", "3"),
    ]
    assert script.asked == ["list", "watch 9", "list", "watch 20", "watch 3"]


async def test_what_vanished_unseen_is_told_with_its_name_and_uid(world):
    Script(world, lists=[listing("9", DB0), listing("10")], watches=[no(410)])
    seen = []
    with pytest.raises(ClusterRefused):
        await follow(world, lambda kind, item: seen.append((kind, item)))
    assert seen[-1] == (
        "DELETED",
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": "shop", "name": "db-0", "uid": "uid-shop-db-0", "resourceVersion": "1"},
        },
    )


async def test_another_uid_is_another_object(world):
    Script(world, lists=[listing("9", DB0)], watches=[lines(("ADDED", pod("db-0", uid="new", resourceVersion="4")))])
    assert await events(world) == [("ADDED", "db-0", "1"), ("DELETED", "db-0", "1"), ("ADDED", "db-0", "4")]


@pytest.mark.parametrize(
    "failure",
    [
        no(500),
        no(429, "slow down", Retry_After="3"),
        lines(("ERROR", {"code": 500, "message": "etcd"})),
        lines(("ERROR", {})),
        b"no JSON\n",
        b"1\n",
        b'{"type": "ADDED"}\n',
        b'{"type": "SOMETHING", "object": {"metadata": {}}}\n',
        b'{"type": "ADDED", "object": {"metadata": {"name": "cut of',
    ],
)
async def test_a_failure_is_no_end(world, failure):
    script = Script(world, lists=[listing("9", DB0)], watches=[failure, failure, lines(("MODIFIED", DB0_CHANGED))])
    assert await events(world) == [("ADDED", "db-0", "1"), ("MODIFIED", "db-0", "2")]
    assert script.asked == ["list", "watch 9", "watch 9", "watch 9", "watch 2"]
    asked = 3 if isinstance(failure, tuple) and failure[0] == 429 else 0
    assert world.clock.naps[:2] == [asked + 1, asked + 2]


async def test_an_event_has_a_bound(world, monkeypatch):
    monkeypatch.setattr("agent.cluster.watch.MAX_OBJECT_BYTES", 1000)
    assert MAX_OBJECT_BYTES > 1000
    Script(world, lists=[listing("9")], watches=[b" " * 2000, lines(("ADDED", DB0))])
    assert await events(world) == [("ADDED", "db-0", "1")]


async def test_a_connection_that_breaks_goes_on_where_it_was(world):
    script = Script(world, lists=[listing("9", DB0)], watches=[])
    broken: list[Any] = []

    async def breaks(request: Any) -> Any:
        broken.append(request)
        yield lines(("MODIFIED", DB0_CHANGED))
        request._raw_request.transport.abort()

    script.watches = [(200, breaks), lines(("ADDED", DB1))]
    assert await events(world) == [("ADDED", "db-0", "1"), ("MODIFIED", "db-0", "2"), ("ADDED", "db-1", "1")]
    assert script.asked[:3] == ["list", "watch 9", "watch 2"]
    assert len(broken) == 1


async def test_nothing_but_failures_for_five_minutes_is_the_end(world):
    world.api.scripts[PODS_OF_SHOP] = lambda request: (
        no(503, "away") if request.params.get("watch") else (200, listing("9", DB0))
    )
    with pytest.raises(ClusterUnavailable, match=r"\(503: away\); the watch has failed 14 times in 271 s"):
        await follow(world, lambda *_: None)
    assert world.clock.naps[:6] == [1, 2, 4, 8, 16, 30]


async def test_connections_that_live_for_a_while_may_break_for_ever(world):
    """A proxy that cuts quiet connections is no failure of the API server."""
    count, heard = 0, asyncio.Event()

    async def quiet(request: Any) -> Any:
        heard.clear()
        yield lines(("ADDED", pod(f"db-{count}")))
        await heard.wait()
        request._raw_request.transport.abort()

    def reply(request: Any) -> Any:
        nonlocal count
        if not request.params.get("watch"):
            return 200, listing("9")
        count += 1
        return (200, quiet) if count < 30 else no(403, 'User "jane" cannot watch')

    def hear(*_: Any) -> None:
        world.clock.seconds += 60
        heard.set()

    world.api.scripts[PODS_OF_SHOP] = reply
    with pytest.raises(ClusterRefused):
        await follow(world, hear)
    assert count == 30
    assert world.clock.naps == [1] * 29


async def test_a_watch_is_left_without_a_trace(world):
    before = asyncio.all_tasks()

    async def endless() -> Any:
        yield lines(("ADDED", DB1))
        await asyncio.Event().wait()

    Script(world, lists=[listing("9", DB0)], watches=[(200, endless)])
    async with world.cluster() as cluster, contextlib.aclosing(cluster.watch(PODS, "shop")) as watch:
        async for kind, item in watch:
            if told(kind, item) == ("ADDED", "db-1", "1"):
                break
    left = [task for task in asyncio.all_tasks() - before if "RequestHandler" not in repr(task)]
    assert left == []


async def test_a_watch_can_be_cancelled(world):
    opened = asyncio.Event()

    async def endless() -> Any:
        yield b"\n"
        opened.set()
        await asyncio.Event().wait()

    Script(world, lists=[listing("9")], watches=[(200, endless)])

    task = asyncio.create_task(follow(world, lambda *_: None))
    await opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- the rule


_NAMES = st.sampled_from(["a", "b", "c"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), _NAMES),
        st.tuples(st.just("change"), _NAMES),
        st.tuples(st.just("delete"), _NAMES),
        st.tuples(st.sampled_from(["lose", "list", "again"]), st.just("")),
    ),
    max_size=30,
)


@given(_STEPS)
def test_whatever_is_lost_the_events_lead_to_what_there_is(steps):
    """A cluster of three names; some events are lost until the next list, and some come twice."""
    truth: dict[str, dict[str, Any]] = {}
    view: dict[str, tuple[str, str]] = {}
    seen, lost, last = Seen(), False, None

    def hear(happened: Any) -> None:
        for kind, item in happened:
            name, uid = item["metadata"]["name"], item["metadata"]["uid"]
            if kind == "ADDED":
                assert name not in view
            else:
                assert view[name][0] == uid  # of the object that was added
            if kind == "MODIFIED":
                assert view[name] != (uid, item["metadata"]["resourceVersion"])
            if kind == "DELETED":
                del view[name]
            else:
                view[name] = uid, item["metadata"]["resourceVersion"]

    for version, (step, name) in enumerate(steps):
        event = None
        if step == "create" and name not in truth:
            truth[name] = pod(name, uid=str(version), resourceVersion=str(version))
            event = ("ADDED", truth[name])
        elif step == "change" and name in truth:
            truth[name] = pod(name, uid=truth[name]["metadata"]["uid"], resourceVersion=str(version))
            event = ("MODIFIED", truth[name])
        elif step == "delete" and name in truth:
            event = ("DELETED", truth.pop(name))
        elif step == "lose":
            lost = True
        elif step == "again" and last is not None and last[0] != "DELETED" and not lost:
            event = last
        elif step == "list":
            hear(seen.list(truth.values()))
            lost, last = False, None
        if event is not None and not lost:
            hear(seen.event(*event))
            last = event
    hear(seen.list(truth.values()))
    assert view == {
        name: (item["metadata"]["uid"], item["metadata"]["resourceVersion"]) for name, item in truth.items()
    }
