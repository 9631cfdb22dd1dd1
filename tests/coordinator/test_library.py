"""The coordinator as a library: its example runs as it stands, and its types are what a caller's checker sees."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import agent.coordinator
from agent.coordinator import Coordinator, Verdict, load_hooks
from tests.coordinator.conftest import sh

ROOT = Path(__file__).resolve().parents[2]


def example_of(documented) -> str:
    """The code after the first `::` of a docstring."""
    lines = documented.__doc__.expandtabs().splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip() == "::") + 1
    indent = len(lines[start + 1]) - len(lines[start + 1].lstrip())
    block = []
    for line in lines[start:]:
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            break
        block.append(line)
    return textwrap.dedent("\n".join(block)).strip()


async def run_example(code: str, fleet, text: str, **names) -> dict[str, object]:
    for old, new in (
        ('"mqtt://127.0.0.1:1883"', f'"{fleet.broker.url}", topic_root="{fleet.root}"'),
        ('"shop"', '"default"'),
    ):
        code = code.replace(old, new)
    body = textwrap.indent(code, "    ")
    namespace: dict[str, object] = {"text": text, **names}
    exec(compile(f"async def example():\n{body}\n    return locals()\n", "example", "exec"), namespace)
    return await namespace["example"]()


def hooks(script: str) -> str:
    return sh(script).spec.model_dump_json(by_alias=True, exclude_none=True)


async def test_the_example_in_the_docstring_runs_as_it_stands(fleet, diary):
    await fleet.start("db-0")
    code = example_of(agent.coordinator)
    assert "load_hooks" in code
    await run_example(code, fleet, hooks(diary.note()))
    assert len(diary.lines) == 1


async def test_the_example_in_the_docstring_ends_when_a_hook_fails(fleet):
    await fleet.start("db-0")
    with pytest.raises(SystemExit, match="hook: failed"):
        await run_example(example_of(agent.coordinator), fleet, hooks("exit 1"))


async def test_the_examples_of_the_page_run_as_they_stand(fleet, diary):
    await fleet.start("db-0", "db-1", "db-2")
    page = (ROOT / "docs" / "library.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = await run_example(first, fleet, hooks(diary.note()))
    assert (done["run"].verdict, len(diary.lines)) == (Verdict.SUCCEEDED, 3)
    done = await run_example(second, fleet, hooks(diary.note()), load_hooks=load_hooks, Coordinator=Coordinator)
    assert [each.pod for each in done["selection"].targets] == ["db-0", "db-1", "db-2"]
    assert (done["run"].verdict, len(diary.lines)) == (Verdict.SUCCEEDED, 6)
    with pytest.raises(RuntimeError, match="hook: failed"):
        await run_example(first, fleet, hooks("exit 1"))


def test_the_page_names_everything_public_and_nothing_else():
    page = (ROOT / "docs" / "library.md").read_text()
    named = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(agent.coordinator.__all__)
    methods = re.search(r"the methods (.*?) \|", page)[1]
    for name in re.findall(r"`(\w+)`", methods):
        assert callable(getattr(Coordinator, name))


async def test_a_hook_alone_runs_in_its_own_namespace(fleet, diary):
    await fleet.start("db-0", namespace="shop")
    await fleet.start("db-1")
    in_shop = {
        "apiVersion": "podhook.dev/v1alpha1",
        "kind": "HookTemplate",
        "metadata": {"name": "h", "namespace": "shop"},
    }
    text = json.dumps({**in_shop, "spec": json.loads(hooks("exit 0"))})
    async with fleet.coordinator() as coordinator:
        of_shop = await coordinator.run(load_hooks(text)[0])
        of_nobody = await coordinator.run(load_hooks(hooks("exit 0"))[0])
    assert [str(each.target) for each in of_shop.targets] == ["shop/db-0"]
    assert [str(each.target) for each in of_nobody.targets] == ["default/db-1"]


def test_its_types_are_shipped():
    assert (ROOT / "agent" / "py.typed").exists()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert (settings["packages"], "exclude" in settings) == (["agent"], False)


async def test_the_example_of_the_class_runs_too(fleet, diary, capsys):
    await fleet.start("db-0")
    names = {name: getattr(agent.coordinator, name) for name in agent.coordinator.__all__}
    await run_example(example_of(Coordinator), fleet, hooks(diary.note()), **names)
    assert "succeeded" in capsys.readouterr().out.splitlines()


def test_everything_public_is_documented():
    for name in agent.coordinator.__all__:
        assert getattr(agent.coordinator, name).__doc__, name


RIGHT = """
import asyncio
from datetime import datetime

from agent.coordinator import (
    BrokerRefused, Coordinator, Hook, HookCall, InvalidHook, LinkDown, OperatorOptions, Outcome, PodSeen, RunEvent,
    RunResult, Selection, Source, Target, TargetResult, Verdict, load_hooks,
)
from agent.coordinator.annotated import AnnotatedPod, AnnotatedRuns, Terms, run_annotated

def watch(event: RunEvent) -> None:
    target: Target | None = event.target
    print(event.kind, target)

async def main(text: str) -> Verdict:
    hooks: list[Hook] = load_hooks(text)
    try:
        options = OperatorOptions(verify_http=False)
        async with Coordinator(
            "mqtt://127.0.0.1:1883", topic_root="podhook", operator=options, source=Source.PRESENCE
        ) as coordinator:
            call = HookCall(hooks[0], namespaces=frozenset({"shop"}), params={"A": "b"}, timeout_seconds=30.0)
            run: RunResult = await coordinator.run(call, on_event=watch)
            started: datetime = run.started_at
            failed: list[TargetResult] = [t for t in run.targets if t.result.outcome is not Outcome.SUCCEEDED]
            print(started, failed, [a.pod for a in await coordinator.agents()])
            alone: RunResult = await coordinator.run(hooks[0], on_event=lambda event: print(event.text))
            selection: Selection = await coordinator.select(call)
            seen = PodSeen("shop", "db-0", selection.targets[0].pod_uid)
            await coordinator.run(HookCall(hooks[0], only=(seen,)), run_id=alone.run_id)
            done: AnnotatedRuns = await run_annotated(coordinator, [AnnotatedPod(seen)], "pre", terms=Terms(expect=1))
            print(done.verdict, [one.hook for one in done.runs])
            coordinator.cancel(within_seconds=3)
            return run.verdict
    except (BrokerRefused, InvalidHook, LinkDown):
        raise

asyncio.run(main(""))
"""
WRONG = """
from agent.coordinator import Coordinator, HookCall, RunResult, load_hooks

async def main() -> None:
    async with Coordinator("mqtt://127.0.0.1:1883") as coordinator:
        HookCall(load_hooks(b""), timeout_seconds="5m")
        run: str = await coordinator.run(HookCall(load_hooks("")[0]))
        await coordinator.run("freeze.yaml")
        run.verdikt
"""


def mypy(tmp_path, code: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(code)
    arguments = ["--strict", "--follow-imports=silent", "--config-file=", f"--cache-dir={ROOT}/.mypy_cache/public"]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, str(snippet)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_a_strict_type_checker_accepts_the_public_api_and_finds_its_misuse(tmp_path):
    right = mypy(tmp_path, RIGHT)
    assert right.returncode == 0, right.stdout + right.stderr
    wrong = mypy(tmp_path, WRONG)
    assert "timeout_seconds" in wrong.stdout
    assert 'expression has type "RunResult", variable has type "str"' in wrong.stdout
    assert len([line for line in wrong.stdout.splitlines() if ": error:" in line]) == 5
