"""Where messages travel. The namespace is a level of its own, so one broker rule can cover it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.contract.errors import BadInput, MalformedMessage

VERSION = "v1"

#: Kubernetes names: RFC 1123 labels and subdomains. Nothing in them is special to MQTT.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_ROOT = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_LEVEL = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def check_name(what: str, value: str) -> str:
    """Return `value` if it is a Kubernetes name; such a name is safe as a topic level.

    Raises:
        BadInput: naming `what`, the value and the rule.
    """
    if len(value) > 253 or not _NAME.fullmatch(value):
        raise BadInput(
            f"{what} {value[:80]!r} is not a Kubernetes name: lower-case letters, digits, '-' and '.', "
            "at most 253, each part between dots beginning and ending with a letter or digit"
        )
    return value


@dataclass(frozen=True, slots=True)
class ReplyAddress:
    """Who said it, about which run, to which coordinator: the levels of a reply's topic."""

    coordinator: str
    run_id: str
    namespace: str
    pod: str


@dataclass(frozen=True, slots=True)
class Topics:
    """All topic names below one root (`podhook` by default).

    Raises:
        BadInput: the root is empty or has wildcards, empty levels or a leading `$`.
    """

    root: str = "podhook"

    def __post_init__(self) -> None:
        if not _ROOT.fullmatch(self.root) or len(self.root) > 128:
            raise BadInput(
                f"topic root {self.root[:80]!r} cannot be used: "
                "letters, digits, '-' and '_', at most 128, with '/' between levels"
            )

    def commands(self, namespace: str, pod: str) -> str:
        """Coordinator to agent; QoS 1, persistent session."""
        return f"{self.root}/{VERSION}/agents/{namespace}/{pod}/commands"

    def presence(self, namespace: str, pod: str) -> str:
        """Agent to all; retained, with a will."""
        return f"{self.root}/{VERSION}/agents/{namespace}/{pod}/presence"

    def presences(self, namespace: str | None = None) -> str:
        """The filter for the presence of a namespace's agents, or of all."""
        return f"{self.root}/{VERSION}/agents/{namespace or '+'}/+/presence"

    def reply(self, coordinator: str, run_id: str, namespace: str, pod: str) -> str:
        """Agent to coordinator, one topic a run and target."""
        return f"{self.root}/{VERSION}/runs/{coordinator}/{run_id}/{namespace}/{pod}"

    def replies(self, coordinator: str) -> str:
        """The filter for everything said to one coordinator."""
        return f"{self.root}/{VERSION}/runs/{coordinator}/#"

    def is_presence(self, topic: str) -> bool:
        """Whether a topic is below `agents`, where presence is; a pod may be called `presence` elsewhere."""
        return topic.startswith(f"{self.root}/{VERSION}/agents/")

    def parse_reply(self, topic: str) -> ReplyAddress:
        """Take a reply's topic apart.

        Raises:
            MalformedMessage: not a reply topic below this root.
        """
        levels = topic.removeprefix(f"{self.root}/{VERSION}/runs/").split("/")
        if not topic.startswith(f"{self.root}/{VERSION}/runs/") or len(levels) != 4 or not all(levels):
            raise MalformedMessage(f"{topic[:200]!r} is not a reply topic of root {self.root!r}")
        return ReplyAddress(*levels)

    def parse_presence(self, topic: str) -> tuple[str, str]:
        """Return (namespace, pod) of a presence topic.

        Raises:
            MalformedMessage: not a presence topic below this root.
        """
        prefix = f"{self.root}/{VERSION}/agents/"
        levels = topic.removeprefix(prefix).split("/")
        if not topic.startswith(prefix) or len(levels) != 3 or levels[2] != "presence" or not all(levels):
            raise MalformedMessage(f"{topic[:200]!r} is not a presence topic of root {self.root!r}")
        return levels[0], levels[1]


def is_level(text: str) -> bool:
    """Whether `text` can stand as one level of a topic: no wildcard, no separator, at most 128 characters."""
    return _LEVEL.fullmatch(text) is not None


def client_id(namespace: str, pod: str, suffix: str) -> str:
    """An agent's MQTT client id. NATS refuses dots in client ids (code 133), so they become `__`."""
    return f"{namespace}_{pod}_{suffix}".replace(".", "__")
