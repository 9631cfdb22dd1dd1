"""Who must answer: the set of a run's targets, fixed before the first trigger leaves. Pure.

`select` asks presence, which knows agents only; `among` asks the cluster which pods there are, and presence which of
them have a live agent (SEMANTICS: Which pods).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

from agent.contract.messages import ErrorDetail, Owner, Presence
from agent.contract.selectors import parse_selector
from agent.contract.templates import OwnerFilter, PodExecutor


class Calling(Protocol):
    """What a call says about how many pods there must be; see `HookCall`."""

    @property
    def namespaces(self) -> frozenset[str] | None:
        """Where pods are looked for; None is everywhere."""

    @property
    def expect(self) -> int | None:
        """How many pods must be selected."""

    @property
    def allow_empty(self) -> bool:
        """Whether none may be selected."""

    @property
    def allow_missing(self) -> bool:
        """Whether to go on without those that have no live agent."""


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
class PodSeen:
    """A pod as the cluster has it. `owners` are its controller, the controller's controller, and so on up."""

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    phase: str = "Running"
    ready: bool = True
    deleting: bool = False
    owners: tuple[Owner, ...] = ()
    ip: str = ""

    @property
    def target(self) -> Target:
        """The pod, to aim at."""
        return Target(self.namespace, self.name, self.uid)

    def __str__(self) -> str:
        return str(self.target)


@dataclass(frozen=True, slots=True)
class Selection:
    """The pods that a hook's executor selects: those with a live agent, and those without.

    `doubted` are those of the missing whose presence does not verify: whether the selector means them, nobody knows.
    `unready` have a live agent and are not Ready: ExecuteOnOne tries none of them. `why` says of some of the missing
    what is there instead; `notes` are sentences about pods that were seen and do not count.
    """

    targets: tuple[Target, ...]
    missing: tuple[Target, ...]
    doubted: tuple[Target, ...] = ()
    unready: tuple[Target, ...] = ()
    why: Mapping[Target, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> int:
        """How many pods were selected, with an agent or without."""
        return len(self.targets) + len(self.missing) + len(self.unready)


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


def among(
    pods: Iterable[PodSeen],
    presences: Mapping[tuple[str, str], Presence],
    executor: PodExecutor,
    *,
    doubted: Collection[tuple[str, str]] = (),
) -> Selection:
    """Which of the pods that the cluster selects have a live agent of their own uid.

    Args:
        pods: those that the executor's selector and owner mean, whatever state they are in.
        presences: everybody's, by (namespace, pod).
        executor: ExecuteOnOne takes only pods that are Ready.
        doubted: whose presence does not verify.
    """
    targets, unready, missing, not_believed, passed = [], [], [], [], []
    why: dict[Target, str] = {}
    for pod in sorted(pods, key=lambda each: each.target):
        target, presence = pod.target, presences.get(pod.target.key)
        if pod.deleting or pod.phase != "Running":
            passed.append(f"{target} ({'being deleted' if pod.deleting else pod.phase})")
        elif target.key in doubted:
            missing.append(target)
            not_believed.append(target)
        elif presence is None:
            missing.append(target)
            why[target] = "no agent has said that it is there"
        elif presence.pod_uid != pod.uid:
            missing.append(target)
            why[target] = f"the agent by that name is of pod uid {presence.pod_uid}, and the pod has {pod.uid}"
        elif presence.state != "online":
            missing.append(target)
            why[target] = "its agent is offline"
        elif executor.strategy == "ExecuteOnOne" and not pod.ready:
            unready.append(target)
        else:
            targets.append(target)
    notes = []
    if passed:
        notes.append("not counted, for they are not running: " + _listed(passed))
    if unready:
        notes.append("not tried, for they are not Ready: " + _listed([str(each) for each in unready]))
    return Selection(
        tuple(targets), tuple(missing), tuple(not_believed), unready=tuple(unready), why=why, notes=tuple(notes)
    )


def strangers(pods: Iterable[PodSeen], said: Selection) -> str:
    """A sentence about agents that presence selects (`said`) and whose pods the cluster does not have; or nothing."""
    known = {each.target.key for each in pods}
    gone = [str(each) for each in said.targets if each.key not in known]
    return "agents that the selector fits, of pods that the cluster does not have: " + _listed(gone) if gone else ""


def _listed(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def why_not(call: Calling, executor: PodExecutor, selection: Selection) -> ErrorDetail | None:
    """Why a run must not begin with this selection; None when it may."""
    where = "any namespace" if call.namespaces is None else "namespace " + ", ".join(sorted(call.namespaces))
    what = f"selector {executor.selector!r}" + (" and owner" if executor.owner else "")
    noted = "".join(f"; {each}" for each in selection.notes)
    if call.expect is not None and selection.found != call.expect:
        code, text = (
            "unexpected_count",
            f"{what} in {where} found {selection.found} pods, expected {call.expect}; nothing was triggered"
            + (f" ({_doubts(selection)})" if selection.doubted else "")
            + noted,
        )
    elif selection.missing and not call.allow_missing:
        gone = [_reason(each, selection) for each in selection.missing if each not in selection.doubted]
        code = "missing_agents"
        said = [f"{len(gone)} selected pods have no live agent: {_listed(gone)}"] if gone else []
        said += [_doubts(selection)] if selection.doubted else []
        text = f"{'; '.join(said)}; nothing was triggered. Bring them back, or go on without them with --allow-missing"
    elif selection.missing and not selection.targets and not call.allow_empty:
        code = "missing_agents"
        text = f"every one of the {len(selection.missing)} selected pods is without a live agent; nothing was triggered"
    elif selection.unready and not selection.targets:
        code = "no_ready_pod"
        names = _listed([str(each) for each in selection.unready])
        text = f"none of the selected pods is Ready, and ExecuteOnOne tries no other: {names}; nothing was triggered"
    elif not selection.targets and not call.allow_empty and call.expect != 0:
        code = "no_targets"
        text = (
            f"{what} in {where} matches no agent; nothing was triggered{noted}. See who is there with "
            "`podhook agents`, or accept it with --allow-empty"
        )
    else:
        return None
    return ErrorDetail(code=code, message=text)


def _reason(target: Target, selection: Selection) -> str:
    return f"{target} ({why})" if (why := selection.why.get(target)) else str(target)


def _doubts(selection: Selection) -> str:
    names = _listed([str(each) for each in selection.doubted])
    return (
        f"what stands for the presence of {len(selection.doubted)} pods does not verify: {names}. `podhook agents` "
        "says why; give the right --agent-keys, or clear it with `podhook agents --prune` (who lives says it again)"
    )
