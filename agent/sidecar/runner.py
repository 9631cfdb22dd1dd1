"""One trigger in, one result out. Knows no MQTT and no journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.actions.addresses import NO_POLICY, Reach
from agent.actions.exec import ExecOptions, run_exec
from agent.actions.secret_files import with_secrets
from agent.actions.start_errors import obstacle
from agent.actions.stop import Stop
from agent.actions.tcp import run_tcp
from agent.contract.action_secrets import secrets_of_action, secrets_of_params
from agent.contract.actions import Action
from agent.contract.errors import ErrorCode, Refusal
from agent.contract.messages import Result, Trigger
from agent.contract.outcomes import failure, redacted
from agent.contract.redaction import Redactor
from agent.contract.secret_names import secrets_of
from agent.contract.states import Outcome
from agent.pod.containers import Containers
from agent.pod.environments import Learnt
from agent.pod.job import MINIMAL_PATH
from agent.pod.processes import MARK_VARIABLE, Launcher, StartError
from agent.sidecar.policy import Asked, Policy, judge
from agent.sidecar.policy.judge import hook_action, judge_redirect

if TYPE_CHECKING:
    from agent.actions.http import HttpOptions

log = structlog.get_logger("podhook.runner")

#: How long a request waits until it is known what must not be seen of its answer: the launcher takes milliseconds.
LEARN_SECONDS = 5
NOT_LEARNT = "what was answered was not searched for secrets in the environment of {what}"


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How actions are run here. `http_*` and `secrets_dir` are as in the settings of the agent.

    `secrets` tells what must never be seen, whatever runs: the agent's own.
    """

    address: str
    user_agent: str
    output_limit_bytes: int
    http_verify_pod: bool = False
    http_verify_host: bool = True
    http_ca_file: Path | None = None
    secrets_dir: Path | None = None
    secrets: Sequence[bytes] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A trigger that passed every check which does nothing: its container and port are known.

    `action` is what will run, also of a hook from the catalogue, with the values that it had by reference; `redactor`
    knows them. `rule` is what allowed it, `reach` where it may connect. All of it was judged together, and is what
    runs, whatever the policy says by then.
    """

    trigger: Trigger
    action: Action = field(repr=False)
    container: str = ""
    own: bool = True
    port: int = 0
    rule: str = NO_POLICY
    reach: Reach = field(default_factory=Reach)
    policy: Policy | None = None
    redactor: Redactor = field(default_factory=Redactor, repr=False)
    kid: str = ""


def mark_of(pod_uid: str, trigger_id: str, kid: str) -> str:
    """What tells the processes of one attempt in one pod from all others. Ids are each key's own."""
    return f"{pod_uid}/{trigger_id}/{kid}" if kid else f"{pod_uid}/{trigger_id}"


class Runner:
    """Runs actions in this pod. `containers` and `environment` are asked anew for each attempt.

    `containers` is told which one shall be entered ("" is the pod's first, None none), so that it looks for no more.
    `environments` tells the secrets in the environments of the other containers, for what is not run in one of them;
    None where they cannot be known.
    """

    def __init__(
        self,
        launcher: Launcher,
        containers: Callable[[str | None], Awaitable[Containers]],
        environment: Callable[[], dict[str, str]],
        options: RunnerOptions,
        *,
        now: Callable[[], datetime],
        policy: Callable[[], Policy | None] = lambda: None,
        environments: Callable[[], Awaitable[Sequence[Learnt]]] | None = None,
    ) -> None:
        self._launcher = launcher
        self._containers = containers
        self._environment = environment
        self._options = options
        self._now = now
        self._policy = policy
        self._environments = environments

    def most_at_once(self, limit: int) -> int:
        """How many attempts may run at once: `limit`, or the policy's where that is less."""
        try:
            policy = self._policy()
        except Refusal:
            return limit  # nothing will be run; it is refused for a better reason
        least = policy.limits.concurrency if policy is not None else None
        return limit if least is None else min(limit, least)

    async def prepare(self, trigger: Trigger, kid: str = "") -> Prepared:
        """Check everything that can be checked without doing it. `kid` is the key that signed it, or "".

        Raises:
            Refusal: something that is asked for does not exist here, is not allowed, or is not built yet.
        """
        if trigger.guard is not None:
            raise Refusal(ErrorCode.UNSUPPORTED, "this version has no guards; send the trigger without one")
        policy = self._policy()
        action, hook = trigger.action, trigger.hook
        if action is None:
            assert hook is not None
            action = hook_action(policy, hook.name, hook.params)
        asked, own = await self._resolved(trigger, action)
        try:
            decision = judge(policy, asked)
            if decision.refusal is not None:
                raise decision.refusal
            action, of_files = with_secrets(action, self._options.secrets_dir)
        except Refusal as refusal:
            refusal.container = asked.container
            raise
        of_params = secrets_of_params(hook.params) if hook is not None else []
        redactor = Redactor([*of_files, *of_params, *secrets_of_action(action), *self._options.secrets])
        return Prepared(
            trigger,
            action,
            asked.container,
            own,
            asked.port,
            decision.rule,
            decision.reach,
            policy=policy,
            redactor=redactor,
            kid=kid,
        )

    async def _resolved(self, trigger: Trigger, action: Action) -> tuple[Asked, bool]:
        """What the names in an action stand for here, and whether it runs in the agent's own container."""
        containers = await self._containers(action.container_name if action.exec_ is not None else None)
        container, port = "", 0
        if action.exec_ is not None:
            container = containers.for_exec(action.container_name)
            if action.exec_.user is not None and container == containers.own:
                raise Refusal(
                    ErrorCode.UNSUPPORTED,
                    f"exec.user {action.exec_.user!r}: in the agent's own container {container!r} commands run as one "
                    "user only; remove it, or name another container",
                )
        else:
            target = action.http_get or action.http_post or action.tcp_socket
            assert target is not None
            port = containers.port(target.port, action.container_name)
        asked = Asked(
            action,
            container=container,
            port=port,
            hook=trigger.hook.name if trigger.hook is not None else "",
            timeout_seconds=trigger.timeout_seconds,
            pod_address=self._options.address,
        )
        return asked, not container or container == containers.own

    async def run(self, prepared: Prepared, stop: Stop) -> Result:
        """Run the action to its end; `stop` has its timeout and whoever wants it to end sooner.

        Never raises for what an action does: every way it can end is a result.
        """
        started_at, begun = self._now(), time.monotonic()
        stop.start_clock()
        try:
            result = await self._act(prepared, stop)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("action.crashed", run_id=prepared.trigger.run_id)
            message = (
                "a fault in podhook itself ended the attempt; whether it took effect is unknown: see the agent's log"
            )
            result = failure(Outcome.FAILED, ErrorCode.INTERNAL, message)
        finally:
            stop.close()
        result = redacted(result, prepared.redactor)
        return result.model_copy(update={"started_at": started_at, "duration_seconds": time.monotonic() - begun})

    async def _act(self, prepared: Prepared, stop: Stop) -> Result:
        action, options = prepared.action, self._options
        if action.exec_ is not None:
            return await run_exec(action.exec_, self._launcher, self._exec_options(prepared), stop)
        if action.tcp_socket is not None:
            return await run_tcp(
                action.tcp_socket, pod_address=options.address, port=prepared.port, stop=stop, reach=prepared.reach
            )
        from agent.actions.http import run_http  # noqa: PLC0415 (9 MB of aiohttp, for those who use it)

        request = action.http_get or action.http_post
        assert request is not None
        redactor, notes = await self._of_the_pod(prepared)
        result = await run_http(
            request,
            pod_address=options.address,
            port=prepared.port,
            options=self._http_options(prepared, redactor),
            stop=stop,
        )
        if result.http_status is None or not notes:
            return result
        return result.model_copy(update={"notes": [*result.notes, *notes]})

    async def _of_the_pod(self, prepared: Prepared) -> tuple[Redactor, list[str]]:
        """Who knows the secrets of the pod's containers, too, if anything of an answer is kept; and whose he does not.

        Who answers may show its environment, and nothing is entered that would tell it.
        """
        if self._environments is None or self._limit(prepared) == 0:
            return prepared.redactor, []
        try:
            async with asyncio.timeout(LEARN_SECONDS):
                learnt = await self._environments()
        except TimeoutError:
            return prepared.redactor, [f"{NOT_LEARNT.format(what='the other containers')}: no answer in time"]
        secrets = [secret for each in learnt for pair in each.variables for secret in secrets_of(*pair)]
        notes = [
            f"{NOT_LEARNT.format(what=f'container {each.container!r}')}: "
            + (obstacle(each.why_not) if isinstance(each.why_not, StartError) else str(each.why_not))
            for each in learnt
            if each.why_not is not None
        ]
        return (prepared.redactor.with_(secrets) if secrets else prepared.redactor), notes

    def _exec_options(self, prepared: Prepared) -> ExecOptions:
        trigger, wanted = prepared.trigger, prepared.action.exec_
        assert wanted is not None
        minimal = wanted.environment == "minimal"
        inherited = self._environment() if prepared.own else {}  # a sibling's is taken where it is: in its process
        if prepared.own and minimal:
            inherited = {"PATH": MINIMAL_PATH.decode(), "HOME": inherited.get("HOME", "/")}
        given = {variable.name: variable.value for variable in wanted.env or []}
        mark = mark_of(trigger.pod_uid, trigger.trigger_id, prepared.kid)
        own = {"PODHOOK_RUN_ID": trigger.run_id, "PODHOOK_TRIGGER_ID": trigger.trigger_id, MARK_VARIABLE: mark}
        return ExecOptions(
            container=prepared.container,
            environment={**inherited, **given, **own},
            mark=mark,
            limit_bytes=self._limit(prepared),
            inherit=not minimal,
            redactor=prepared.redactor,
        )

    def _http_options(self, prepared: Prepared, redactor: Redactor) -> HttpOptions:
        from agent.actions.http import HttpOptions  # noqa: PLC0415

        return HttpOptions(
            user_agent=self._options.user_agent,
            verify_pod=self._options.http_verify_pod,
            verify_host=self._options.http_verify_host,
            ca_file=self._options.http_ca_file,
            body_limit_bytes=self._limit(prepared),
            reach=prepared.reach,
            follow=lambda method, port, path: judge_redirect(
                prepared.policy, self._asked(prepared), method, port, path
            ),
            redactor=redactor,
        )

    def _asked(self, prepared: Prepared) -> Asked:
        """What was asked for, once more, for a redirect."""
        hook = prepared.trigger.hook
        return Asked(
            prepared.action,
            port=prepared.port,
            hook=hook.name if hook is not None else "",
            pod_address=self._options.address,
        )

    def _limit(self, prepared: Prepared) -> int:
        limits = [prepared.trigger.capture.limit_bytes, self._options.output_limit_bytes]
        if prepared.policy is not None and prepared.policy.limits.output_bytes is not None:
            limits.append(prepared.policy.limits.output_bytes)
        return min(limits)
