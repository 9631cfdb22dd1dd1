"""Which container a hook means, and which port a name stands for."""

from __future__ import annotations

from dataclasses import dataclass

from agent.contract.errors import ErrorCode, Refusal
from agent.pod.identity import Container, PodDescription


@dataclass(frozen=True, slots=True)
class Containers:
    """The pod's containers as described, and the one that the agent itself runs in (`own`).

    `running` are the others whose processes are seen; `why_not` says why commands cannot run in them, if so. `alone`
    is an agent outside of a pod, where a hook that names no container can only mean the agent's own.
    """

    description: PodDescription
    own: str
    pod: str
    running: tuple[str, ...] = ()
    why_not: str = ""
    alone: bool = False

    @property
    def names(self) -> list[str]:
        """Every name that a hook can give, in the order of the pod's manifest."""
        return list(dict.fromkeys([*self.described, *sorted(self.running), self.own]))

    @property
    def described(self) -> list[str]:
        """Names in the pod's description, in the order of the pod's manifest."""
        return [container.name for container in self.description.containers]

    def for_exec(self, wanted: str) -> str:
        """The container in which a command shall run: `wanted`, or the pod's first when empty.

        Raises:
            Refusal: no such container, or one that this agent cannot enter.
        """
        if self.why_not and not self.alone and wanted != self.own:  # then not even the names are known for sure
            raise self._not_enterable(f"container {wanted!r}" if wanted else "the first container")
        name = wanted or self._first()
        if name not in self.names:
            raise Refusal(ErrorCode.UNKNOWN_CONTAINER, self._unknown(name))
        if self.why_not and name != self.own:
            raise self._not_enterable(f"container {name!r}")
        if name != self.own and name not in self.running:
            raise Refusal(
                ErrorCode.CONTAINER_NOT_ENTERABLE,
                f"container {name!r} of pod {self.pod} is not running now (running: {', '.join(self.running)}); "
                "try again when it is",
            )
        return name

    def _first(self) -> str:
        """The pod's first container, never the agent's: as described, else the only other one there is.

        Raises:
            Refusal: there is none, or more than one; lists them.
        """
        for name in self.described:
            if name != self.own or self.alone:
                return name
        if self.alone:
            return self.own
        if len(self.running) == 1:
            return self.running[0]
        there = f"there are {', '.join(sorted(self.running))}" if self.running else "no other one is seen"
        raise Refusal(
            ErrorCode.UNKNOWN_CONTAINER,
            f"the hook names no container, and the agent does not know which one of pod {self.pod} is the first "
            f"({there}); set containerName to one of them, or give the agent a pod description (PODHOOK_POD_FILE, "
            "PODHOOK_KUBERNETES)",
        )

    def port(self, wanted: int | str, container_name: str) -> int:
        """The number of a port; a name is looked up only in that container's ports.

        Raises:
            Refusal: no such container or no port of that name; lists the names there are.
        """
        if isinstance(wanted, int):
            return wanted
        container = self._described(container_name)
        for port in container.ports:
            if port.name == wanted:
                return port.container_port
        names = ", ".join(port.name for port in container.ports if port.name) or "none"
        raise Refusal(
            ErrorCode.UNKNOWN_PORT,
            f"container {container_name!r} of pod {self.pod} has no port named {wanted!r} (has: {names}); "
            "use one of them or a number",
        )

    def _described(self, name: str) -> Container:
        for container in self.description.containers:
            if container.name == name:
                return container
        if name != self.own:
            raise Refusal(ErrorCode.UNKNOWN_CONTAINER, self._unknown(name))
        raise Refusal(
            ErrorCode.UNKNOWN_PORT,
            f"the ports of container {name!r} in pod {self.pod} are not known to the agent; "
            "give it a pod description (PODHOOK_POD_FILE, PODHOOK_KUBERNETES), or use the port's number",
        )

    def _not_enterable(self, which: str) -> Refusal:
        return Refusal(
            ErrorCode.CONTAINER_NOT_ENTERABLE,
            f"{which} of pod {self.pod} is not the agent's own ({self.own!r}), and commands cannot run there: "
            f"{self.why_not}; mend that, or name {self.own!r} in containerName",
        )

    def _unknown(self, name: str) -> str:
        return (
            f"container {name!r} is not in pod {self.pod} (has: {', '.join(self.names)}); "
            "set containerName to one of them"
        )
