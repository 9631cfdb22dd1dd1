"""A backup operator in kopf: each Backup freezes its databases through podhook, takes a backup, and thaws them.

    kopf run -n shop examples/operator/backups.py

Deleting a Backup cancels what it does at that moment, and the hook in its pods with it; the databases are thawed.
"""

import asyncio
import contextlib
import json
import os
from pathlib import Path

import kopf

from agent.coordinator import Coordinator, HookCall, Outcome, RunResult, Verdict, load_hooks

#: What takes a backup, such as `restic backup /data`; it is told the Backup's namespace and name.
COMMAND = os.environ.get("BACKUP_COMMAND", "true").split()


@kopf.on.startup()
async def connect(memo, **_):
    """One coordinator for every Backup: it is safe for many at once."""
    memo.connections = contextlib.AsyncExitStack()
    key = Path(os.environ["PODHOOK_KEY"]) if "PODHOOK_KEY" in os.environ else None
    root = os.environ.get("PODHOOK_TOPIC_ROOT", "podhook")
    coordinator = Coordinator(os.environ["PODHOOK_BROKER"], topic_root=root, key=key)
    memo.coordinator = await memo.connections.enter_async_context(coordinator)


@kopf.on.cleanup()
async def disconnect(memo, **_):
    """Say goodbye to the broker."""
    await memo.connections.aclose()


@kopf.daemon("example.com", "v1", "backups", cancellation_timeout=60)
async def backup(spec, status, namespace, name, memo, patch, logger, **_):
    """Freeze, back up, thaw; once in a Backup's life. A task that is cancelled cancels the run that it waits for."""
    if "phase" in status:
        return

    async def run(hook: str) -> RunResult:
        found = load_hooks(json.dumps(spec[hook]), name=f"{name}-{hook}")[0]
        call = HookCall(found, namespaces=frozenset({namespace}), timeout_seconds=60)
        return await memo.coordinator.run(call, on_event=lambda event: logger.info("%s %s", event.kind, event.target))

    try:
        freeze = await run("before")
        if freeze.verdict is Verdict.SUCCEEDED:
            patch.status["phase"] = "Succeeded" if await take_backup(namespace, name) else "Failed"
        else:
            patch.status["phase"] = "Failed"
            patch.status["reason"] = reason(freeze)
    finally:
        thaw = await run("after")
    if thaw.verdict is not Verdict.SUCCEEDED:
        patch.status["phase"] = "Failed"
        patch.status["reason"] = reason(thaw)


async def take_backup(namespace: str, name: str) -> bool:
    """Whether the command succeeded; it does not outlive us."""
    process = await asyncio.create_subprocess_exec(*COMMAND, namespace, name)
    try:
        return await process.wait() == 0
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def reason(run: RunResult) -> str:
    """Why a run did not succeed, in a sentence: nothing was triggered, or what the pods say."""
    if run.error is not None:
        return run.error.message
    said = [(each.target, each.result) for each in run.targets if each.result.outcome is not Outcome.SUCCEEDED]
    return "; ".join(f"{target}: {result.error.message if result.error else result.outcome}" for target, result in said)
