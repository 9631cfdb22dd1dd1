"""examples/operator: a kopf operator drives hooks through real agents; Kubernetes is kmock's emulator."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import kmock
import pytest
import yaml

from agent.coordinator import load_hooks
from tests.coordinator.conftest import Fleet, diary, fleet, no_settings_from_outside, until
from tests.kubernetes_schema import check

kopf = pytest.importorskip("kopf")

__all__ = ["diary", "fleet", "no_settings_from_outside"]

EXAMPLE = Path(__file__).parents[1] / "examples" / "operator"
BACKUPS = "example.com/v1/backups"
CRDS = "apiextensions.k8s.io/v1"
#: What an operator wants to find in a cluster before it begins.
SERVED = {
    BACKUPS: "Backup",
    "v1/namespaces": "Namespace",
    f"{CRDS}/customresourcedefinitions": "CustomResourceDefinition",
}
WITHIN_SECONDS = 30


def hook(script: str) -> dict[str, Any]:
    return {
        "action": {"exec": {"command": ["/bin/sh", "-c", script]}, "containerName": "agent"},
        "executor": {"type": "Pod", "pod": {"selector": "app=db", "strategy": "ExecuteOnAll"}},
    }


@dataclass
class Operated:
    """The operator at work, and the cluster that it sees."""

    api: kmock.KubernetesEmulator
    url: str
    module: ModuleType
    stop: threading.Event
    running: asyncio.Task[None]

    async def create(self, name: str, before: str, after: str) -> None:
        await self.ask(
            "POST",
            "",
            {
                "apiVersion": "example.com/v1",
                "kind": "Backup",
                "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": "1"},
                "spec": {"before": hook(before), "after": hook(after)},
            },
        )

    async def delete(self, name: str) -> None:
        await self.ask("DELETE", f"/{name}")

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        import aiohttp

        async with aiohttp.ClientSession() as session:
            url = f"{self.url}/apis/example.com/v1/namespaces/default/backups{path}"
            async with session.request(method, url, json=body) as answer:
                assert answer.status < 300, await answer.text()

    def status(self, name: str) -> dict[str, Any]:
        backup = self.api.objects[BACKUPS, "default", name]
        return dict(json.loads(json.dumps(dict(backup.last.raw))).get("status") or {})


@pytest.fixture
async def operated(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Operated]:
    """The operator, started as `kopf run` does, with a registry of its own."""
    registry = kopf.OperatorRegistry()
    kopf.set_default_registry(registry)
    monkeypatch.setenv("PODHOOK_BROKER", fleet.broker.url)
    monkeypatch.setenv("PODHOOK_TOPIC_ROOT", fleet.root)
    spec = importlib.util.spec_from_file_location("backups_operator", EXAMPLE / "backups.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async with kmock.KubernetesEmulator() as api, kmock.Server(api) as served:
        url = str(served.url).rstrip("/")
        for resource, kind in SERVED.items():
            api.resources[resource] = kmock.ResourceInfo(kind=kind, namespaced=True, verbs=["list", "watch", "patch"])

        @kopf.on.login(registry=registry)
        def login(**_: Any) -> Any:
            return kopf.ConnectionInfo(server=url)

        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True
        stop, ready = threading.Event(), threading.Event()
        operator = kopf.operator(
            registry=registry,
            settings=settings,
            memo=kopf.Memo(),
            standalone=True,
            clusterwide=True,
            stop_flag=stop,
            ready_flag=ready,
        )
        running = asyncio.create_task(
            asyncio.to_thread(asyncio.run, operator)
        )  # at its end it cancels its loop's tasks
        try:
            await until(lambda: ready.is_set() or running.done(), "the operator is ready", WITHIN_SECONDS)
            yield Operated(api, url, module, stop, running)
        finally:
            stop.set()
            await asyncio.wait_for(running, WITHIN_SECONDS)


async def test_a_backup_is_taken_between_its_hooks(operated, fleet, diary, monkeypatch):
    await fleet.start("db-0", "db-1")
    monkeypatch.setattr(operated.module, "COMMAND", ["/bin/sh", "-c", f'echo "backup $1" >> {diary.path}', "-"])
    await operated.create("nightly", diary.note("freeze"), diary.note("thaw"))
    await until(lambda: operated.status("nightly"), "a status", WITHIN_SECONDS)
    assert operated.status("nightly")["phase"] == "Succeeded"
    assert diary.lines == ["freeze", "freeze", "backup default", "thaw", "thaw"]


async def test_a_freeze_that_fails_takes_no_backup_and_is_thawed_all_the_same(operated, fleet, diary, monkeypatch):
    await fleet.start("db-0")
    monkeypatch.setattr(operated.module, "COMMAND", ["/bin/sh", "-c", f"echo backup >> {diary.path}"])
    await operated.create("nightly", "echo no >&2; exit 3", diary.note("thaw"))
    await until(lambda: operated.status("nightly"), "a status", WITHIN_SECONDS)
    assert operated.status("nightly")["phase"] == "Failed"
    assert operated.status("nightly")["reason"].startswith("default/db-0: ")
    assert diary.lines == ["thaw"]


async def test_a_backup_without_agents_says_so(operated):
    await operated.create("nightly", "echo freeze", "echo thaw")
    await until(lambda: operated.status("nightly"), "a status", WITHIN_SECONDS)
    assert "matches no agent" in operated.status("nightly")["reason"]


async def test_deleting_a_backup_cancels_its_hook_in_the_pods_and_thaws(operated, fleet, diary):
    """kopf cancels the handler; the run that it waits for is cancelled, to its very process."""
    await fleet.spawn("db-0")
    still = f"trap '{diary.note('stopped')}; exit 1' TERM; {diary.note('freeze')}; sleep 60 & wait"
    await operated.create("nightly", still, diary.note("thaw"))
    await until(lambda: diary.lines == ["freeze"], "the freeze began", WITHIN_SECONDS)
    await operated.delete("nightly")
    await until(lambda: len(diary.lines) == 3, "the hook was stopped, and thaws", WITHIN_SECONDS)
    assert diary.lines == ["freeze", "stopped", "thaw"]


async def test_an_operator_that_ends_cancels_its_hooks_too(operated, fleet, diary):
    await fleet.spawn("db-0")
    still = f"trap '{diary.note('stopped')}; exit 1' TERM; {diary.note('freeze')}; sleep 60 & wait"
    await operated.create("nightly", still, diary.note("thaw"))
    await until(lambda: diary.lines == ["freeze"], "the freeze began", WITHIN_SECONDS)
    operated.stop.set()
    await asyncio.wait_for(asyncio.shield(operated.running), WITHIN_SECONDS)
    assert diary.lines == ["freeze", "stopped", "thaw"]


def test_the_shipped_files_are_right():
    definition = yaml.safe_load((EXAMPLE / "crd.yaml").read_text())
    check(definition)
    backup = yaml.safe_load((EXAMPLE / "backup.yaml").read_text())
    assert f"{backup['apiVersion']}/{definition['spec']['names']['plural']}" == BACKUPS
    for part in ("before", "after"):
        (found,) = load_hooks(json.dumps(backup["spec"][part]))
        assert found.missing() is None
