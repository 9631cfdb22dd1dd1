"""`podhook demo`: the whole path on one machine - a real broker, five real agents, a file of hooks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import options
from agent.cli.exits import Exit, errors_as_exits, logs_for_people

if TYPE_CHECKING:
    from agent.coordinator import Coordinator, RunResult

#: An installed podhook has no examples beside it; a checkout has.
_IN_CHECKOUT = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"
EXAMPLE = _IN_CHECKOUT if _IN_CHECKOUT.exists() else Path(__file__).with_name("demo.yaml")
#: Five interpreters start at once; a loaded machine takes long for that.
START_SECONDS = 60
STOP_SECONDS = 10
TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class DemoPod:
    """A made-up pod."""

    namespace: str
    name: str
    labels: dict[str, str]


PODS = (
    DemoPod("shop", "db-0", {"app": "db", "tier": "primary"}),
    DemoPod("shop", "db-1", {"app": "db", "tier": "replica"}),
    DemoPod("shop", "web-0", {"app": "web", "tier": "front"}),
    DemoPod("lab", "db-0", {"app": "db", "tier": "primary"}),
    DemoPod("lab", "web-0", {"app": "web", "tier": "front"}),
)
#: What these hooks are there to show.
MEANT_TO_FAIL = frozenset({"one-that-fails", "one-that-times-out"})


def command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Hooks to run.", show_default="examples/demo.yaml")
    ] = EXAMPLE,
) -> None:
    """See it work on this machine: no root, no services, nothing left behind.

    Starts an embedded broker on a free loopback port and five agents as processes of their own in two made-up
    namespaces, runs a file of hooks through them as `podhook run` does, shows what came of each, and stops
    everything again, also on Ctrl-C. Exit codes: 0 as it was meant, 1 not so, 130 interrupted.
    """
    with errors_as_exits():
        from agent.cli.check import read_file
        from agent.coordinator import HookCall, load_hooks

        calls = [
            HookCall(hook, namespaces=None, timeout_seconds=TIMEOUT_SECONDS)
            for hook in load_hooks(read_file(file), name=file.stem)
        ]
        for call in calls:
            call.check()
        logs_for_people()
        raise typer.Exit(asyncio.run(_demo(file, calls)))


async def _demo(file: Path, calls: Sequence[object]) -> Exit:
    from agent.bus.embedded import EmbeddedBroker
    from agent.cli.running import execute, exit_code
    from agent.coordinator import Coordinator

    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podhook-demo-")))
        print("1. a broker: NATS with its MQTT gateway, on a free port of this machine", flush=True)
        broker = await stack.enter_async_context(EmbeddedBroker())
        print(f"   {broker.url}")
        port = await stack.enter_async_context(_web_server())
        keys = _make_keys(directory)
        print(
            f"2. {len(PODS)} agents, each a process of its own (web server for them: http://127.0.0.1:{port})",
            flush=True,
        )
        print("   they obey only what is signed with a key that was made for this demo, and sign what they say")

        def connect() -> Coordinator:
            return Coordinator(broker.url, key=keys / "demo.key", agent_keys=keys / "agents")

        await stack.enter_async_context(_agents(directory, broker.url, port, keys))
        await _wait_for_agents(connect)
        print(f"3. the hooks of {_shown(file)}, as `podhook run --all-namespaces --keep-going --timeout 2s` runs them")
        executed = await execute(
            connect,
            calls,  # type: ignore[arg-type]
            output=options.Format.TABLE,
            keep_going=True,
            quiet=True,
            before=lambda call: print(f"\n-- {call.hook.name}", flush=True),
        )
        print("\nstopping everything", flush=True)
    if executed.interrupted:
        return exit_code(executed)
    return _summarize(executed.runs)


def _summarize(runs: Sequence[RunResult]) -> Exit:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from agent.cli.view import summary_of
    from agent.coordinator import Outcome, Verdict

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("HOOK", "VERDICT", "PODS", "OUTCOMES"):
        table.add_column(column)
    surprises = []
    for run in runs:
        outcomes = [each.result.outcome for each in run.targets]
        counts = ", ".join(f"{outcomes.count(o)} {o}" for o in Outcome if o in outcomes)
        style = "green" if run.verdict is Verdict.SUCCEEDED else "red"
        table.add_row(run.hook, f"[{style}]{run.verdict}[/]", str(len(outcomes)), counts)
        if (run.verdict is Verdict.SUCCEEDED) == (run.hook in MEANT_TO_FAIL):
            surprises.append(run.hook)
    Console().print(table)
    actions = sum(len(run.targets) for run in runs)
    namespaces = len({pod.namespace for pod in PODS})
    sentence = (
        f"{len(runs)} hooks ran {actions} actions on {len(PODS)} agents in {namespaces} namespaces over MQTT: "
        f"{summary_of(runs)}"
    )
    if surprises:
        print(f"{sentence}. Not as it was meant to: {', '.join(surprises)}.")
        return Exit.FAILED
    meant = ", ".join(sorted(MEANT_TO_FAIL & {run.hook for run in runs}))
    shown = f" - {meant} were meant to, to show what failure looks like" if meant else ""
    print(f"{sentence}{shown}. Nothing is left running.")
    return Exit.SUCCEEDED


@contextlib.asynccontextmanager
async def _web_server() -> AsyncIterator[int]:
    """A small server for the HTTP and TCP hooks; yields its port."""
    from aiohttp import web

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def announce(request: web.Request) -> web.Response:
        if request.content_type == "application/json":
            return web.json_response({"heard": await request.json()})
        form = await request.post()
        return web.json_response({"heard": [[key, str(value)] for key, value in form.items()]})

    application = web.Application()
    application.add_routes([web.get("/health", health), web.post("/announce", announce)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _agents(directory: Path, broker_url: str, port: int, keys: Path) -> AsyncIterator[None]:
    """The agents as processes; ended with us, however we end."""
    from agent.bus import leash

    description = directory / "pod.json"
    ports = [{"name": "http", "containerPort": port}]
    description.write_text(json.dumps({"containers": [{"name": "app", "ports": ports}]}), encoding="utf-8")
    processes: list[tuple[DemoPod, asyncio.subprocess.Process]] = []
    try:
        for pod in PODS:
            home = directory / f"{pod.namespace}-{pod.name}"
            home.mkdir()
            labels = "".join(f'{key}="{value}"\n' for key, value in pod.labels.items())
            (home / "labels").write_text(labels, encoding="utf-8")
            settings = {
                "BROKER": broker_url,
                "NAMESPACE": pod.namespace,
                "POD": pod.name,
                "CONTAINER": "app",
                "LABELS_FILE": str(home / "labels"),
                "POD_FILE": str(description),
                "STATE_DIR": str(home / "state"),
                "TRUSTED_KEYS": str(keys / "demo.pub"),
                "AGENT_KEY": str(keys / f"{pod.namespace}.key"),
                "GRACE_SECONDS": "1",
                "LOG_FORMAT": "json",
            }
            inherited = {key: value for key, value in os.environ.items() if not key.startswith("PODHOOK_")}
            environment = {f"PODHOOK_{key}": value for key, value in settings.items()}
            with (home / "log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-I", "-S", leash.__file__, str(os.getpid())),
                    *(sys.executable, "-m", "agent", "agent"),
                    env={**inherited, **environment, "DEMO_POD": pod.name},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us; we stop them in order
                )
            processes.append((pod, process))
            print(f"   {pod.namespace}/{pod.name:<6} pid {process.pid:<7} labels {_labels(pod)}", flush=True)
        yield
    finally:
        await _stop([process for _, process in processes])


async def _stop(processes: list[asyncio.subprocess.Process]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    ending = [asyncio.create_task(process.wait(), name=f"end of {process.pid}") for process in processes]
    if ending:
        await asyncio.wait(ending, timeout=STOP_SECONDS)
    for process, task in zip(processes, ending, strict=True):
        if not task.done():
            process.kill()
            await task


def _make_keys(directory: Path) -> Path:
    """A coordinator's pair and one a namespace, as `podhook keygen` makes them; returns their directory."""
    from agent.contract.signing.keys import generate, private_text, public_text

    keys = directory / "keys"
    (keys / "agents").mkdir(parents=True)
    for name, public in {"demo": keys, **{pod.namespace: keys / "agents" for pod in PODS}}.items():
        pair = generate(name)
        (keys / f"{name}.key").write_text(private_text(pair), encoding="ascii")
        (public / f"{name}.pub").write_text(public_text(pair), encoding="ascii")
    return keys


async def _wait_for_agents(connect: Callable[[], Coordinator]) -> None:
    from agent.contract.errors import LinkDown

    async with connect() as coordinator:
        try:
            async with asyncio.timeout(START_SECONDS):
                while len(await coordinator.agents()) < len(PODS):
                    await coordinator.presence_changed()
        except TimeoutError as error:
            there = len(await coordinator.agents())
            raise LinkDown(f"only {there} of {len(PODS)} agents came up within {START_SECONDS} s") from error


def _labels(pod: DemoPod) -> str:
    return ",".join(f"{key}={value}" for key, value in pod.labels.items())


def _shown(file: Path) -> str:
    return "examples/demo.yaml" if file == EXAMPLE else str(file)
