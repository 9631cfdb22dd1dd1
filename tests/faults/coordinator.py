"""A real coordinator in a process of its own: told over standard input what to run, and killed at any moment.

Each line of its input is a run (JSON). What it hears goes to a file, one line each, appended in one write: what it said
before it was killed is not lost with it.

Run as `python -m tests.faults.coordinator BROKER_URL TOPIC_ROOT NAME FILE`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from agent.contract.templates import Hook, load_hooks
from agent.coordinator import Coordinator, HookCall, RunEvent
from agent.sidecar.logs import configure_logging

#: The broker may be away when we start.
CONNECT_SECONDS = 90
NAMESPACE = "shop"


def hook(script: str, selector: str, *, on_one: bool) -> Hook:
    """A hook that runs a shell script."""
    document = {
        "action": {"exec": {"command": ["/bin/sh", "-c", script]}},
        "executor": {
            "type": "Pod",
            "pod": {"selector": selector, "strategy": "ExecuteOnOne" if on_one else "ExecuteOnAll"},
        },
    }
    return load_hooks(json.dumps(document), name="faults")[0]


class Worker:
    """One coordinator and its runs."""

    def __init__(self, coordinator: Coordinator, name: str, file: str) -> None:
        self._coordinator = coordinator
        self._name = name
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, what: str, **more: Any) -> None:
        line = json.dumps({"at": round(time.time(), 4), "what": what, "by": self._name, **more})
        os.write(self._file, f"{line}\n".encode())

    def heard(self, event: RunEvent) -> None:
        """What happens in a run, as far as the ledger wants to know it."""
        if event.kind == "selected":
            self.say("selected", run=event.run_id, uids=[target.pod_uid for target in event.targets])
        elif event.kind == "outcome" and event.target is not None and event.result is not None and event.attempt:
            error = event.result.error
            self.say(
                "concluded",
                trigger=f"{event.run_id}/{event.attempt}",
                uid=event.target.pod_uid,
                outcome=str(event.result.outcome),
                code=error.code if error else "",
                why=error.message if error else "",
            )

    async def run(self, order: dict[str, Any]) -> None:
        """Make one run to its verdict."""
        call = HookCall(
            hook(order["script"], order["selector"], on_one=order["on_one"]),
            namespaces=frozenset({NAMESPACE}),
            timeout_seconds=order["timeout_seconds"],
            start_window_seconds=order["window_seconds"],
            max_retry=order["max_retry"],
            allow_missing=True,
        )
        self.say("run", run=order["run"], on_one=order["on_one"])
        running = asyncio.create_task(self._coordinator.run(call, run_id=order["run"], on_event=self.heard))
        if order["cancel_after_seconds"] is not None:
            asyncio.get_running_loop().call_later(order["cancel_after_seconds"], running.cancel)
        try:
            result = await running
        except asyncio.CancelledError:
            self.say("verdict", run=order["run"], verdict="cancelled")
        else:
            self.say("verdict", run=order["run"], verdict=str(result.verdict))


async def main(url: str, root: str, name: str, file: str) -> None:
    """Run what is asked for until the input ends, and then what is left."""
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with Coordinator(url, topic_root=root, connect_seconds=CONNECT_SECONDS) as coordinator:
        worker = Worker(coordinator, name, file)
        worker.say("coordinator_ready")
        async with asyncio.TaskGroup() as group:
            while line := await orders.readline():
                group.create_task(worker.run(json.loads(line)))


if __name__ == "__main__":
    configure_logging("json", "warning")
    asyncio.run(main(*sys.argv[1:]))
