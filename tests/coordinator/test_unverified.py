"""Who is not believed during a run: told, within bounds that a stranger cannot move."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any, cast

from agent.bus.link import Link
from agent.contract.templates import Hook, HookSpec
from agent.contract.topics import Topics
from agent.coordinator import HookCall
from agent.coordinator.round import Round
from agent.coordinator.targets import Target
from agent.coordinator.trust import printable
from agent.coordinator.wire import Wire

NOW = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)


async def test_of_those_who_are_not_believed_only_targets_are_kept_and_each_once():
    target = Target("shop", "db-0", "uid-0")
    call = HookCall(Hook("x", HookSpec()), selector="app=db", namespaces=frozenset({"shop"}))
    told: list[Any] = []
    a_round = Round(
        run_id=str(uuid.uuid4()),
        hook="x",
        what=cast("Any", None),
        call=call,
        executor=call.pods(),
        targets=(target,),
        wire=Wire(cast("Link", None), Topics(), "c", lambda: NOW),
        on_event=told.append,
        now=lambda: NOW,
    )
    for number in range(1000):
        a_round.hear_unverified(("shop", f"[red]x{number}"), "not signed")
        a_round.hear_unverified(target.key, f"not signed {number}")
        await asyncio.sleep(0)
    assert a_round.unverified == {target.key: "not signed 0"}
    assert len(told) == 1


def test_what_a_stranger_wrote_is_shown_without_its_effects():
    assert printable("a\x1b[31m\nb\u202e\ud800") == "a\\x1b[31m\\nb\\u202e\\ud800"
    assert printable("é" * 500) == "é" * 400 + "..."
