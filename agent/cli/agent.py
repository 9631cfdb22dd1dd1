"""`podhook agent`: the sidecar."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.exits import Exit, errors_as_exits, tell
from agent.contract.errors import InvalidSettings
from agent.sidecar.settings import AgentSettings


def _help(name: str) -> str:
    field = AgentSettings.model_fields[name]
    shown = "" if field.default_factory is not None or field.default in ("", None) else f" [default: {field.default}]"
    return f"{field.description}. Also PODHOOK_{name.upper()}.{shown}"


def _option(name: str, *more: str) -> typer.models.OptionInfo:
    flag = f"--{name.replace('_', '-')}"
    if AgentSettings.model_fields[name].annotation is bool:
        flag += f"/--no-{flag[2:]}"
    option: typer.models.OptionInfo = typer.Option(flag, *more, help=_help(name))
    return option


#: Set by Kubernetes in every container.
IN_KUBERNETES = "KUBERNETES_SERVICE_HOST"


def _settings(load: Callable[..., AgentSettings], flags: dict[str, object]) -> AgentSettings:
    """The settings. In a pod a mistake in them must not become a crash loop, which would take the pod's readiness.

    Raises:
        InvalidSettings: outside of Kubernetes, where somebody waits for the answer.
    """
    try:
        return load(**flags)
    except InvalidSettings as error:
        if IN_KUBERNETES not in os.environ:
            raise
        tell(f"{error}. Nothing is served; correct it and restart the pod. Waiting for SIGTERM")
        asyncio.run(_wait_to_end())
        raise typer.Exit(Exit.SUCCEEDED) from error


async def _wait_to_end() -> None:
    """Do nothing until somebody ends us, but answer the liveness probe: it would make the crash loop after all."""
    from agent import __version__
    from agent.sidecar.health import Health, serving_health

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    port = os.environ.get("PODHOOK_HEALTH_PORT", "")
    health = Health(os.environ.get("PODHOOK_POD", ""), __version__, ("settings",))
    async with serving_health(int(port) if port.isdecimal() and int(port) < 65536 else 0, lambda: health):
        await stop.wait()


PR_SET_CHILD_SUBREAPER = 36


def command(
    broker: Annotated[str | None, _option("broker")] = None,
    broker_user_file: Annotated[Path | None, _option("broker_user_file")] = None,
    broker_password_file: Annotated[Path | None, _option("broker_password_file")] = None,
    broker_ca_file: Annotated[Path | None, _option("broker_ca_file")] = None,
    broker_cert_file: Annotated[Path | None, _option("broker_cert_file")] = None,
    broker_key_file: Annotated[Path | None, _option("broker_key_file")] = None,
    broker_protocol: Annotated[str | None, _option("broker_protocol")] = None,
    topic_root: Annotated[str | None, _option("topic_root")] = None,
    namespace: Annotated[str | None, _option("namespace", "-n")] = None,
    pod: Annotated[str | None, _option("pod")] = None,
    pod_uid: Annotated[str | None, _option("pod_uid")] = None,
    pod_ip: Annotated[str | None, _option("pod_ip")] = None,
    container: Annotated[str | None, _option("container")] = None,
    labels_file: Annotated[Path | None, _option("labels_file")] = None,
    pod_file: Annotated[Path | None, _option("pod_file")] = None,
    kubernetes: Annotated[bool | None, _option("kubernetes")] = None,
    state_dir: Annotated[Path | None, _option("state_dir")] = None,
    max_concurrent: Annotated[int | None, _option("max_concurrent")] = None,
    grace_seconds: Annotated[float | None, _option("grace_seconds")] = None,
    output_limit_bytes: Annotated[int | None, _option("output_limit_bytes")] = None,
    http_verify_pod: Annotated[bool | None, _option("http_verify_pod")] = None,
    http_verify_host: Annotated[bool | None, _option("http_verify_host")] = None,
    http_ca_file: Annotated[Path | None, _option("http_ca_file")] = None,
    trusted_keys: Annotated[Path | None, _option("trusted_keys")] = None,
    agent_key: Annotated[Path | None, _option("agent_key")] = None,
    secrets_dir: Annotated[Path | None, _option("secrets_dir")] = None,
    audit: Annotated[str | None, _option("audit")] = None,
    allow_unsigned: Annotated[bool | None, _option("allow_unsigned")] = None,
    policy: Annotated[Path | None, _option("policy")] = None,
    health_port: Annotated[int | None, _option("health_port")] = None,
    log_format: Annotated[str | None, _option("log_format")] = None,
    log_level: Annotated[str | None, _option("log_level")] = None,
) -> None:
    """Be an agent: run hooks in this pod when a trigger arrives.

    Every setting is also an environment variable, PODHOOK_ and its name; a flag wins. The agent stays up whatever is
    missing - broker, disk, key - and says what is wrong in its log and in its presence (see `podhook agents`).
    SIGTERM drains it: no new work, running hooks get their grace, outcomes are delivered, goodbye is said.
    """
    flags = dict(locals())
    with errors_as_exits():
        from agent.sidecar.app import Agent
        from agent.sidecar.logs import configure_logging
        from agent.sidecar.settings import load_settings

        settings = _settings(load_settings, flags)
        configure_logging(settings.log_format, settings.log_level)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what daemonizes away comes to us

        async def serve() -> None:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGHUP, signal.SIGQUIT):  # what we ignore (nohup), every command would ignore, too
                if signal.getsignal(number) is signal.SIG_IGN:
                    loop.add_signal_handler(number, lambda: None)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            await Agent(settings).run(stop)

        with asyncio.Runner() as runner:
            runner.run(serve())
            # All is written and said. A name look-up that hangs in a thread would be waited for, so leave without it.
            sys.stderr.flush()
            os._exit(0)
