"""What the API server says about the agent's own pod: its containers, their ports, its owners.

Asked by way of `agent.cluster`, and only with `PODHOOK_KUBERNETES=true`: what it imports takes 38 MB. One right is
needed, `get` on this one pod (docs/kubernetes.md). Each reading logs in anew and closes its connections, so a rotated
token or certificate is never an old one.
"""

from __future__ import annotations

import asyncio
import math
import random
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from agent.cluster import vendor
from agent.cluster.login import SERVICE_ACCOUNT, Way
from agent.cluster.reading import MAX_OBJECT_BYTES
from agent.cluster.refusals import TRANSIENT, reason, said, unavailable, unknown_caller, user_of
from agent.cluster.resources import PODS
from agent.cluster.session import Answer, Session
from agent.cluster.words import Words, excerpt
from agent.contract.errors import ClusterUnavailable, InvalidSettings
from agent.pod.identity import Container, Identity, OwnerReference, PodDescription

TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = MAX_OBJECT_BYTES
#: The first pause between two tries; it doubles up to the ceiling.
PAUSE_SECONDS = 1.0
CEILING_SECONDS = 300.0


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class _InitContainer(Container):
    restart_policy: str = ""


class _Metadata(_Part):
    uid: str
    owner_references: list[OwnerReference] = []


class _Spec(_Part):
    containers: list[Container] = Field(min_length=1)
    init_containers: list[_InitContainer] = []


class _Pod(_Part):
    """As much of a pod as is looked at (core/v1)."""

    metadata: _Metadata
    spec: _Spec

    def description(self) -> PodDescription:
        """Containers in the manifest's order, then native sidecars (KEP-753): the others have ended by now."""
        sidecars = [
            Container(name=each.name, ports=each.ports)
            for each in self.spec.init_containers
            if each.restart_policy == "Always"
        ]
        return PodDescription(
            containers=[*self.spec.containers, *sidecars],
            owners=self.metadata.owner_references,
        )


class OwnPod:
    """The agent's own pod, as the API server knows it."""

    def __init__(
        self,
        identity: Identity,
        *,
        service_account: Path = SERVICE_ACCOUNT,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._identity = identity
        self._service_account = service_account
        self._timeout_seconds = timeout_seconds
        self._words = Words(
            who="this agent",
            wanted="PODHOOK_KUBERNETES is true, and ",
            otherwise="set PODHOOK_KUBERNETES=false",
            unreadable="give the agent a pod description instead (PODHOOK_POD_FILE)",
            kubeconfig="set KUBECONFIG, or PODHOOK_KUBERNETES=false",
            by_hand=f"kubectl -n {identity.namespace} get pod {identity.pod}",
            again="start the agent again",
            network="this pod's network",
        )

    async def find(
        self,
        found: Callable[[PodDescription], None],
        problem: Callable[[str | None], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
    ) -> None:
        """Read the pod once, however often that has to be tried, and be done: what was read does not change.

        `problem` hears a sentence after each try that failed, and None before `found` is called. Between two tries
        pass 1 s, doubled up to 5 min, less up to half of it (`spread` gives [0, 1)), and what the server asks for.
        """
        pause = PAUSE_SECONDS
        while True:
            try:
                description = await self.read()
            except InvalidSettings as error:
                problem(str(error))  # nothing that this process could wait for
                return
            except ClusterUnavailable as error:
                wait = min(CEILING_SECONDS, error.retry_after_seconds + pause * (1 - spread() / 2))
                problem(f"{error}; it is tried again in {math.ceil(wait)} s")
                await sleep(wait)
                pause = min(CEILING_SECONDS, pause * 2)
            else:
                problem(None)
                found(description)
                return

    async def read(self) -> PodDescription:
        """Ask once.

        Raises:
            ClusterUnavailable: no cluster, no answer, a no, another pod of this name, or no pod in the answer.
            InvalidSettings: kubernetes-asyncio is not installed, or a kubeconfig's login hangs: not to be tried again.
        """
        identity, seconds = self._identity, self._timeout_seconds
        library = await vendor.load(self._words)
        login = await Way(service_account=self._service_account).log_in(library, self._words, seconds)
        session, server = Session(library, login, self._words), login.server
        try:
            path = PODS.path(identity.namespace, identity.pod)
            answer = await session.ask("GET", path, limit_bytes=MAX_ANSWER_BYTES, timeout_seconds=seconds)
        finally:
            await session.close()
        if answer.status != 200:
            raise self._refusal(answer, server)
        if not answer.whole:
            raise ClusterUnavailable(
                f"{server} answered with more than {MAX_ANSWER_BYTES} bytes for pod {identity}, and no pod has so "
                "many; check that it is the API server"
            )
        try:
            pod = _Pod.model_validate_json(answer.body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the answer"
            raise ClusterUnavailable(
                f"{server} answered with something that is no pod ({place}: {excerpt(first['msg'])}); "
                "check that it is the API server"
            ) from error
        if pod.metadata.uid != self._identity.pod_uid:
            raise ClusterUnavailable(
                f"pod {self._identity} has the uid {excerpt(pod.metadata.uid)!r} in the cluster, and this agent is of "
                f"{self._identity.pod_uid!r}; set PODHOOK_POD_UID from metadata.uid (downward API) - if it is, this "
                "pod was replaced by another of its name"
            )
        return pod.description()

    # -- its no

    def _refusal(self, answer: Answer, server: str) -> ClusterUnavailable:
        """All of them are tried again: nobody else is there to wait until somebody has mended it."""
        status = answer.status
        if status in TRANSIENT:
            return unavailable(answer, server)
        match status:
            case 401:
                said_no = str(unknown_caller(answer, server, self._words))
            case 403:
                said_no = (
                    f"{server} does not let this agent get its own pod {self._identity} {said(answer)}; allow it: "
                    + self._rule(excerpt(reason(answer)))
                )
            case 404:
                said_no = (
                    f"{server} has no pod {self._identity} {said(answer)}; set PODHOOK_NAMESPACE and PODHOOK_POD from "
                    "metadata.namespace and metadata.name (downward API), and check that this is the pod's cluster"
                )
            case _:
                said_no = f"{server} answered the question for pod {self._identity} with a no {said(answer)}"
        return ClusterUnavailable(said_no, status=status)

    def _rule(self, message: str) -> str:
        """The commands that make the Role and the RoleBinding that are missing."""
        user = user_of(message) or f"system:serviceaccount:{self._identity.namespace}:default"
        account = user.removeprefix("system:serviceaccount:")
        whom = f"--user={user}" if account == user else f"--serviceaccount={account}"
        kubectl, name = f"kubectl -n {self._identity.namespace} create", f"podhook-{self._identity.pod}"
        return (
            f"{kubectl} role {name} --verb=get --resource=pods --resource-name={self._identity.pod} && "
            f"{kubectl} rolebinding {name} --role={name} {shlex.quote(whom)} (as YAML: docs/kubernetes.md)"
        )
