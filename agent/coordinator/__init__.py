"""Whoever triggers hooks and gathers outcomes.

::

    from agent.coordinator import Coordinator, HookCall, Verdict, load_hooks

    async with Coordinator("mqtt://127.0.0.1:1883") as coordinator:
        for hook in load_hooks(text):
            run = await coordinator.run(HookCall(hook, namespaces=frozenset({"shop"})))
            if run.verdict is not Verdict.SUCCEEDED:
                raise SystemExit(f"{run.hook}: {run.verdict}")
"""

from agent.contract.errors import BrokerRefused, InvalidHook, LinkDown
from agent.contract.states import Outcome
from agent.contract.templates import Hook, load_hooks
from agent.coordinator.calls import HookCall
from agent.coordinator.choosing import Source
from agent.coordinator.client import Coordinator
from agent.coordinator.operator import OperatorOptions
from agent.coordinator.picture import Known, Picture
from agent.coordinator.results import RunEvent, RunResult, TargetResult
from agent.coordinator.targets import PodSeen, Selection, Target
from agent.coordinator.verdict import Verdict

__all__ = [
    "BrokerRefused",
    "Coordinator",
    "Hook",
    "HookCall",
    "InvalidHook",
    "Known",
    "LinkDown",
    "OperatorOptions",
    "Outcome",
    "Picture",
    "PodSeen",
    "RunEvent",
    "RunResult",
    "Selection",
    "Source",
    "Target",
    "TargetResult",
    "Verdict",
    "load_hooks",
]
