"""What runs a hook without an agent: the coordinator itself, or a Job of the cluster."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.contract.errors import InvalidHook, Problem
from agent.contract.templates import Executor, FunctionExecutor
from agent.coordinator.calls import HookCall
from agent.coordinator.operator import OperatorOptions, run_here
from agent.coordinator.solo import Attempt
from agent.coordinator.targets import Target

if TYPE_CHECKING:
    from agent.actions.stop import Stop
    from agent.cluster import Cluster
    from agent.contract.functions import Function
    from agent.contract.messages import Result

#: A Job that is only checked is of no run.
NO_RUN = "00000000-0000-7000-8000-000000000000"
#: What stands for the coordinator itself where a run's targets are named.
OPERATOR = Target("", "operator", "")


@dataclass(frozen=True, slots=True)
class Alone:
    """Prepares hooks of the Operator and the Function executor.

    `functions` are local ones by name; they win over the cluster's.
    """

    operator: OperatorOptions = field(default_factory=OperatorOptions)
    cluster: Cluster | None = None
    functions: Mapping[str, Function] = field(default_factory=dict)

    def check(self, call: HookCall) -> None:
        """What `prepare` would refuse, as far as nobody has to be asked.

        Raises:
            InvalidHook: the hook cannot run so.
        """
        executor = call.executor()
        if executor.function is None:
            return
        self._need_cluster()
        function = call.job_function or self.functions.get(executor.function.name)
        if function is not None:
            _job(call, executor.function, function, NO_RUN, 1)

    def _need_cluster(self) -> Cluster:
        if self.cluster is None:
            text = "is 'Function', whose Job needs a cluster: give --kubeconfig or --context, or run inside one"
            raise InvalidHook([Problem("executor.type", text)])
        return self.cluster

    async def prepare(self, call: HookCall, executor: Executor, run_id: str) -> tuple[Target, Attempt]:
        """What stands for the one target of a run, and what runs an attempt of it.

        Raises:
            InvalidHook: the hook cannot run so; nothing ran.
            ClusterError: the Function cannot be had.
        """
        if executor.function is not None:
            return await self._function(call, executor, run_id)
        action = call.action()

        async def attempt(number: int, stop: Stop, _: Callable[[str], None]) -> Result:
            mark = f"{run_id}/{number}"  # of this attempt alone
            return await run_here(action, mark=mark, run_id=run_id, options=self.operator, stop=stop)

        return OPERATOR, attempt

    async def _function(self, call: HookCall, executor: Executor, run_id: str) -> tuple[Target, Attempt]:
        from agent.coordinator.functions import run_function  # noqa: PLC0415 (only where a Function is run)
        from agent.coordinator.jobs import job_name  # noqa: PLC0415

        cluster, wanted = self._need_cluster(), executor.function
        assert wanted is not None
        namespace = call.job_namespace()
        function = call.job_function or self.functions.get(wanted.name)
        if function is None:
            from agent.coordinator.kubernetes import read_function  # noqa: PLC0415

            function = await read_function(cluster, wanted.name)
        job = functools.partial(_job, call, wanted, function, run_id)

        async def attempt(number: int, stop: Stop, say: Callable[[str], None]) -> Result:
            wanted_to_end = asyncio.Event()
            waiting = asyncio.create_task(_set_when_stopped(wanted_to_end, stop), name=f"stop of {run_id}")
            try:
                return await run_function(
                    cluster,
                    job(number),
                    timeout_seconds=call.timeout_seconds,
                    on_event=lambda event: say(f"{event.kind}: {event.text}" if event.text else event.kind),
                    stop=wanted_to_end,
                    start_window_seconds=call.start_window_seconds,
                )
            finally:
                waiting.cancel()

        job(1)  # whether its parts fit together is known before anything runs
        return Target(namespace, job_name(run_id, 1), ""), attempt


def _job(call: HookCall, wanted: FunctionExecutor, function: Function, run_id: str, number: int) -> dict[str, Any]:
    """The Job of an attempt. Raises InvalidHook where its parts do not fit together."""
    from agent.coordinator.jobs import job_for, own_pod  # noqa: PLC0415

    namespace = call.job_namespace()
    return job_for(
        function,
        wanted,
        call.function,
        namespace=namespace,
        run_id=run_id,
        attempt=number,
        hook=call.hook.name,
        timeout_seconds=call.timeout_seconds,
        action=call.action() if call.hook.spec.action is not None else None,
        owner=own_pod(os.environ, namespace),
    )


async def _set_when_stopped(event: asyncio.Event, stop: Stop) -> None:
    await stop.wait()
    event.set()
