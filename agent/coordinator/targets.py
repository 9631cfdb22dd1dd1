"""Who must answer: the set of a run's targets, fixed before the first trigger leaves.

Presence is the source here; the Kubernetes source (which knows pods without an agent) answers the same question.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from agent.contract.errors import InvalidHook, Problem
from agent.contract.messages import Owner, Presence
from agent.contract.selectors import parse_selector
from agent.contract.templates import OwnerFilter, PodExecutor


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One pod that a run aims at. Sorts by name, as ExecuteOnOne tries them."""

    namespace: str
    pod: str
    pod_uid: str

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, pod): what its topics are made of."""
        return self.namespace, self.pod

    @classmethod
    def of(cls, presence: Presence) -> Self:
        """The pod whose presence this is."""
        return cls(presence.namespace, presence.pod, presence.pod_uid)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"


@dataclass(frozen=True, slots=True)
class Selection:
    """The pods that a hook's executor selects: those with a live agent, and those without.

    `doubted` are those of the missing whose presence does not verify: whether the selector means them, nobody knows.
    """

    targets: tuple[Target, ...]
    missing: tuple[Target, ...]
    doubted: tuple[Target, ...] = ()

    @property
    def found(self) -> int:
        """How many pods were selected, with an agent or without."""
        return len(self.targets) + len(self.missing)


def select(presences: Iterable[Presence], executor: PodExecutor, namespaces: frozenset[str] | None) -> Selection:
    """Apply the selector, the owner filter and the namespaces (None: all of them)."""
    selector = parse_selector(executor.selector)
    online: list[Target] = []
    offline: list[Target] = []
    for presence in presences:
        if namespaces is not None and presence.namespace not in namespaces:
            continue
        if not selector.matches(presence.labels) or not owned_by(presence.owners, executor.owner):
            continue
        target = Target.of(presence)
        (online if presence.state == "online" else offline).append(target)
    return Selection(tuple(sorted(online)), tuple(sorted(offline)))


def owned_by(owners: Iterable[Owner], wanted: OwnerFilter | None) -> bool:
    """Whether any owner of the pod fits; of the filter only the fields given count (SEMANTICS: Which pods).

    `blockOwnerDeletion` is read, because it stands in copied ownerReferences, and selects nothing.
    """
    if wanted is None:
        return True
    return any(
        (not wanted.api_version or owner.api_version == wanted.api_version)
        and (not wanted.kind or owner.kind == wanted.kind)
        and (not wanted.name or owner.name == wanted.name)
        and (not wanted.uid or owner.uid == wanted.uid)
        and (wanted.controller is None or bool(owner.controller) == wanted.controller)
        for owner in owners
    )


def executor_of(executor: object) -> PodExecutor:
    """The Pod executor of a hook.

    Raises:
        InvalidHook: Operator or Function, which this version only reads.
    """
    kind = getattr(executor, "type", None)
    pod: PodExecutor | None = getattr(executor, "pod", None)
    if pod is None:
        raise InvalidHook(
            [
                Problem(
                    "executor.type",
                    f"{kind!r} is understood but cannot be run yet: Operator and Function executors come with the "
                    "Kubernetes coordinator; use type: Pod",
                )
            ]
        )
    return pod
