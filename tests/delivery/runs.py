"""Whole runs: a real coordinator in the test's own process, beside real agents."""

from __future__ import annotations

import json
from typing import Any

import uuid_utils

from agent.contract.templates import load_hooks
from agent.coordinator import Coordinator, HookCall, RunEvent, RunResult
from tests.agents import Json, Stage


def call(action: Json, *, selector: str = "app=db", strategy: str = "ExecuteOnAll", **more: Any) -> HookCall:
    """A hook on the agents of a stage; `more` is how it is called."""
    executor = {"type": "Pod", "pod": {"selector": selector, "strategy": strategy}}
    (hook,) = load_hooks(json.dumps({"action": action, "executor": executor}), name="test")
    return HookCall(hook, **{"namespaces": frozenset({"shop"}), **more})


def coordinator_on(stage: Stage, broker_url: str = "") -> Coordinator:
    """A coordinator on a stage's broker, or behind something that stands before it."""
    return Coordinator(broker_url or stage.broker.url, topic_root=stage.root)


def new_run_id(stage: Stage) -> str:
    """An id for a run whose commands end with the test, should its agents be killed."""
    stage.client.made.append(str(uuid_utils.uuid7()))
    return stage.client.made[-1]


def submitted(coordinator: Coordinator) -> bool:
    """Whether every trigger of its runs has left."""
    watched = [active.watch for a_round in coordinator._rounds for active in a_round._active.values()]
    return bool(watched) and all(each.submitted for each in watched)


def outcomes(run: RunResult) -> dict[str, str]:
    """How it ended on each pod."""
    return {each.target.pod: str(each.result.outcome) for each in run.targets}


def codes(run: RunResult) -> dict[str, str | None]:
    """What went wrong on each pod, if anything did."""
    return {each.target.pod: each.result.error.code if each.result.error else None for each in run.targets}


class Heard:
    """An `on_event` that keeps everything."""

    def __init__(self) -> None:
        self.events: list[RunEvent] = []

    def __call__(self, event: RunEvent) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[str]:
        """The pods to which that happened, in order."""
        return [event.target.pod for event in self.events if event.kind == kind and event.target]
