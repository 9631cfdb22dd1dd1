"""Which container a hook means, and which port a name stands for."""

from __future__ import annotations

from dataclasses import dataclass

from agent.contract.errors import ErrorCode, Refusal
from agent.pod.identity import Container, PodDescription


@dataclass(frozen=True, slots=True)
class Containers:
    """The pod's containers as described, and the one that the agent itself runs in (`own`)."""

    description: PodDescription
    own: str
    pod: str

    @property
    def names(self) -> list[str]:
        """Every name that a hook can give, in the order of the pod's manifest."""
        listed = [container.name for container in self.description.containers]
        return listed if self.own in listed else [*listed, self.own]

    def for_exec(self, wanted: str) -> str:
        """The container in which a command shall run: `wanted`, or the pod's first when empty.

        Raises:
            Refusal: no such container, or one that this agent cannot enter.
        """
        first = self.description.containers[0].name if self.description.containers else self.own
        name = wanted or first
        if name not in self.names:
            raise Refusal(ErrorCode.UNKNOWN_CONTAINER, self._unknown(name))
        if name != self.own:
            raise Refusal(
                ErrorCode.CONTAINER_NOT_ENTERABLE,
                f"container {name!r} of pod {self.pod} is not the agent's own ({self.own!r}), and this version runs "
                f"commands only there; run the agent inside {name!r}, or name {self.own!r} in containerName",
            )
        return name

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
            "give it a pod description (PODHOOK_POD_FILE), or use the port's number",
        )

    def _unknown(self, name: str) -> str:
        return (
            f"container {name!r} is not in pod {self.pod} (has: {', '.join(self.names)}); "
            "set containerName to one of them"
        )
