"""The secrets in the environments of the pod's containers: read once in the life of each, kept no longer than that.

A command's container tells its secrets when the command starts. For what runs in no container - a request to the pod -
they are read by a child of the launcher that steps in, looks, and ends (`stepping`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from agent.pod.census import MainProcess
from agent.pod.processes import Interrupted, StartError

Variables = Sequence[tuple[bytes, bytes]]
#: Steps at which it was not the container's fault, and looking again may help.
_PASSING = ("launcher", "memfd_create", "open /proc/PID")


@dataclass(frozen=True, slots=True)
class Learnt:
    """The variables of a container that are secrets (name, value); or why they are not known."""

    container: str
    variables: Variables = field(default=(), repr=False)
    why_not: StartError | Interrupted | None = None


class Environments:
    """What was read, by container and main process. `read` reads one; raises StartError or Interrupted."""

    def __init__(self, read: Callable[[MainProcess], Awaitable[Variables]]) -> None:
        self._read = read
        self._known: dict[tuple[str, int, int], Learnt] = {}
        self._reading = asyncio.Lock()  # whoever comes second finds what the first has read

    async def of(self, mains: Collection[MainProcess]) -> list[Learnt]:
        """What is known of these; whoever was not looked at is looked at now, all at once."""
        async with self._reading:
            unknown = [main for main in mains if _key(main) not in self._known]
            found = dict(zip(unknown, await asyncio.gather(*map(self._look, unknown)), strict=True))
        self._known |= {_key(main): learnt for main, learnt in found.items() if not _passes(learnt)}
        return [found.get(main) or self._known[_key(main)] for main in mains]

    def keep(self, mains: Collection[MainProcess]) -> None:
        """Forget everybody else: they are gone."""
        living = {_key(main) for main in mains}
        self._known = {key: learnt for key, learnt in self._known.items() if key in living}

    async def _look(self, main: MainProcess) -> Learnt:
        try:
            return Learnt(main.container, await self._read(main))
        except (StartError, Interrupted) as error:
            return Learnt(main.container, why_not=error)


def _key(main: MainProcess) -> tuple[str, int, int]:
    return main.container, main.pid, main.started


def _passes(learnt: Learnt) -> bool:
    """Whether looking again may tell more of the same process."""
    error = learnt.why_not
    return isinstance(error, Interrupted) or (isinstance(error, StartError) and error.step.startswith(_PASSING))
