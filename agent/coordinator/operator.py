"""The Operator executor: the coordinator runs the action itself, by the agent's own code (SEMANTICS).

Requests go out from here, and a command runs on this machine as the coordinator's user, with its environment but for
podhook's own settings. There is no journal here: if the coordinator dies, what the action did is not known.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.contract.actions import Action
from agent.contract.errors import InvalidHook, Problem, Refusal
from agent.contract.messages import DEFAULT_OUTPUT_LIMIT_BYTES, Result
from agent.contract.outcomes import failure
from agent.contract.states import Outcome

if TYPE_CHECKING:
    from agent.actions.stop import Stop
    from agent.contract.redaction import Redactor

#: What commands on this machine do not get: the broker's password may be among it.
_OWN_SETTINGS = "PODHOOK_"


@dataclass(frozen=True, slots=True)
class OperatorOptions:
    """How the coordinator runs actions itself.

    `verify_http`: verify TLS of HTTP actions; `ca_file`: by these PEM authorities instead of the system's.
    `secrets_dir`: where `valueFrom.file` is read. `output_limit_bytes` is kept of each stream, and of a body.
    """

    verify_http: bool = True
    ca_file: Path | None = None
    secrets_dir: Path | None = None
    output_limit_bytes: int = DEFAULT_OUTPUT_LIMIT_BYTES


def check_here(action: Action) -> None:
    """What an action needs to run where no pod is.

    Raises:
        InvalidHook: it names something that only a pod has: a container, a port's name, the pod's own address, a user.
    """
    problems = []
    if action.exec_ is not None:
        if action.container_name:
            text = (
                f"is {action.container_name!r}, and the Operator executor runs commands on the coordinator's own "
                "machine; use type: Pod, or remove containerName"
            )
            problems.append(Problem("action.containerName", text))
        if action.exec_.user is not None:
            text = f"is {action.exec_.user!r}; the Operator executor runs commands as the coordinator's user: remove it"
            problems.append(Problem("action.exec.user", text))
    for kind, target in (
        ("httpGet", action.http_get),
        ("httpPost", action.http_post),
        ("tcpSocket", action.tcp_socket),
    ):
        if target is None:
            continue
        if not target.host:
            text = "is required with the Operator executor, which runs in no pod of the hook's: write the host's name"
            problems.append(Problem(f"action.{kind}.host", text))
        if not isinstance(target.port, int):
            text = f"is {target.port!r}, a name that only a pod's container has; write the number"
            problems.append(Problem(f"action.{kind}.port", text))
    if problems:
        raise InvalidHook(problems)


async def run_here(action: Action, *, mark: str, run_id: str, options: OperatorOptions, stop: Stop) -> Result:
    """Run an action that `check_here` accepts to its end; `stop` ends it sooner, and its clock begins here.

    Args:
        action: with its parameters filled in.
        mark: of this attempt alone; processes that it started are known by it.
        run_id: told to commands as PODHOOK_RUN_ID.
        options: see there.
        stop: has the timeout.

    Never raises for what an action does: every way it can end is a result.
    """
    from agent.actions.exec import ExecOptions, run_exec  # noqa: PLC0415 (only where an Operator hook is run)
    from agent.actions.secret_files import with_secrets  # noqa: PLC0415
    from agent.actions.tcp import run_tcp  # noqa: PLC0415
    from agent.contract.outcomes import redacted  # noqa: PLC0415
    from agent.pod.job import MINIMAL_PATH  # noqa: PLC0415
    from agent.pod.processes import MARK_VARIABLE, LocalLauncher  # noqa: PLC0415

    try:
        action, of_files = with_secrets(action, options.secrets_dir)
    except Refusal as refusal:
        return failure(Outcome.REJECTED, refusal.code, str(refusal))
    redactor = _redactor(action, of_files)
    stop.start_clock()
    try:
        if action.exec_ is not None:
            wanted = action.exec_
            own = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_SETTINGS)}
            if wanted.environment == "minimal":
                own = {"PATH": MINIMAL_PATH.decode(), "HOME": own.get("HOME", "/")}
            given = {each.name: each.value for each in wanted.env or []}
            result = await run_exec(
                wanted,
                LocalLauncher(),
                ExecOptions(
                    container="",
                    environment={**own, **given, "PODHOOK_RUN_ID": run_id, MARK_VARIABLE: mark},
                    mark=mark,
                    limit_bytes=options.output_limit_bytes,
                    redactor=redactor,
                ),
                stop,
            )
        elif action.tcp_socket is not None:
            result = await run_tcp(action.tcp_socket, pod_address="", port=_number(action.tcp_socket.port), stop=stop)
        else:
            result = await _http(action, options, redactor, stop)
    finally:
        stop.close()
    return redacted(result, redactor)


async def _http(action: Action, options: OperatorOptions, redactor: Redactor, stop: Stop) -> Result:
    from agent import __version__  # noqa: PLC0415
    from agent.actions.http import HttpOptions, run_http  # noqa: PLC0415 (9 MB of aiohttp, for those who use it)

    request = action.http_get or action.http_post
    assert request is not None
    return await run_http(
        request,
        pod_address="",
        port=_number(request.port),
        options=HttpOptions(
            user_agent=f"podhook/{__version__}",
            verify_host=options.verify_http,
            ca_file=options.ca_file,
            body_limit_bytes=options.output_limit_bytes,
            redactor=redactor,
        ),
        stop=stop,
    )


def _redactor(action: Action, of_files: list[bytes]) -> Redactor:
    """Knows what must not be seen in what is said of the action: its own secrets, and our environment's."""
    from agent.contract.action_secrets import secrets_of_action  # noqa: PLC0415
    from agent.contract.redaction import Redactor  # noqa: PLC0415
    from agent.contract.secret_names import secrets_of  # noqa: PLC0415

    ours = [secret for name, value in os.environb.items() for secret in secrets_of(name, value)]
    return Redactor([*of_files, *secrets_of_action(action), *ours])


def _number(port: int | str) -> int:
    assert isinstance(port, int)  # check_here
    return port
