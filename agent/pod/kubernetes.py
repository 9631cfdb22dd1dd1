"""What the API server says about the agent's own pod: its containers, their ports, its owners.

The one file that imports kubernetes_asyncio, and only when it asks: that takes 38 MB, which an agent without
`PODHOOK_KUBERNETES=true` never pays. One right is needed, `get` on this one pod (docs/kubernetes.md). Each reading
makes a client of its own and closes it, so a rotated token or certificate is never an old one.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import shlex
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from agent.contract.errors import ClusterUnavailable, InvalidSettings
from agent.pod.identity import Container, Identity, OwnerReference, PodDescription

#: Where the kubelet puts a pod's credentials (Kubernetes: "Accessing the API from within a Pod").
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_SECONDS = 10.0
#: etcd keeps no object above 1.5 MiB (its default `--max-request-bytes`); as JSON it may be twice that.
MAX_ANSWER_BYTES = 3 * 1024 * 1024
#: The first pause between two tries; it doubles up to the ceiling.
PAUSE_SECONDS = 1.0
CEILING_SECONDS = 300.0
#: Of what a server says, so much stands in a sentence of ours.
_EXCERPT_CHARS = 256


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


class _Status(_Part):
    """The API server's no (meta/v1 Status)."""

    message: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    retry_after: str
    body: bytes


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
        await asyncio.to_thread(_load)  # most of a second, in which the agent has other things to do
        configuration = await self._configuration()
        server = f"the API server at {re.sub('//[^/@]*@', '//', configuration.host)}"
        answer = await self._get(configuration, server)
        if answer.status != 200:
            raise self._refusal(answer, server)
        if len(answer.body) > MAX_ANSWER_BYTES:
            raise ClusterUnavailable(
                f"{server} answered with more than {MAX_ANSWER_BYTES} bytes for pod {self._identity}, and no pod has "
                "so many; check that it is the API server"
            )
        try:
            pod = _Pod.model_validate_json(answer.body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the answer"
            raise ClusterUnavailable(
                f"{server} answered with something that is no pod ({place}: {_excerpt(first['msg'])}); "
                "check that it is the API server"
            ) from error
        if pod.metadata.uid != self._identity.pod_uid:
            raise ClusterUnavailable(
                f"pod {self._identity} has the uid {_excerpt(pod.metadata.uid)!r} in the cluster, and this agent is of "
                f"{self._identity.pod_uid!r}; set PODHOOK_POD_UID from metadata.uid (downward API) - if it is, this "
                "pod was replaced by another of its name"
            )
        return pod.description()

    # -- where, and who we are there

    async def _configuration(self) -> Any:
        from kubernetes_asyncio import client  # noqa: PLC0415

        configuration = client.Configuration()
        # Python 3.13 wants key identifiers in certificates; the authorities of many clusters have none, and neither
        # the kubelet nor kubectl asks for them.
        configuration.disable_strict_ssl_verification = True
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            self._in_cluster(configuration)
        else:
            await self._by_kubeconfig(configuration)
        # A file that somebody wrote by hand ends with a newline, which no header may have.
        configuration.api_key = {name: key.strip() for name, key in configuration.api_key.items()}
        return configuration

    def _in_cluster(self, configuration: Any) -> None:
        from kubernetes_asyncio import config  # noqa: PLC0415

        token = self._service_account / "token"
        try:
            config.load_incluster_config(
                client_configuration=configuration,
                try_refresh_token=False,  # it is read anew each time
                token_filename=str(token),
                cert_filename=str(self._service_account / "ca.crt"),
            )
        except PermissionError as error:
            raise ClusterUnavailable(
                f"{token} is not readable for this agent (uid {os.geteuid()}, gid {os.getegid()}); in a pod with an "
                "fsGroup only that group may read it: give the agent a pod description instead (PODHOOK_POD_FILE)"
            ) from error
        except (config.ConfigException, OSError, ValueError) as error:
            raise ClusterUnavailable(
                f"the service account in {self._service_account} cannot be used "
                f"({_excerpt(str(error)).rstrip('.')}); set automountServiceAccountToken: true in the pod"
            ) from error

    async def _by_kubeconfig(self, configuration: Any) -> None:
        from kubernetes_asyncio import config  # noqa: PLC0415

        paths = _kubeconfig()
        by_hand = f"kubectl -n {self._identity.namespace} get pod {self._identity.pod}"
        try:
            async with asyncio.timeout(self._timeout_seconds):  # it may start a program that logs in
                await config.load_kube_config(paths, client_configuration=configuration, persist_config=False)
        except TimeoutError as error:
            # The vendor forgets the program that it started: trying again would start another, and another.
            raise InvalidSettings(
                f"the kubeconfig {paths} did not log in within {self._timeout_seconds:g} s; log in with: {by_hand} - "
                "and start the agent again"
            ) from error
        except Exception as error:
            # The loader lets out whatever happens to it, and its own messages quote the file with the keys in it.
            raise ClusterUnavailable(
                f"the kubeconfig {paths} cannot be used ({type(error).__name__}); find out why with: {by_hand}"
            ) from error

    # -- the question

    async def _get(self, configuration: Any, server: str) -> _Answer:
        from kubernetes_asyncio import client  # noqa: PLC0415

        identity, seconds = self._identity, self._timeout_seconds
        try:
            async with asyncio.timeout(seconds), client.ApiClient(configuration) as api:
                response = await client.CoreV1Api(api).read_namespaced_pod(
                    identity.pod,
                    identity.namespace,
                    _preload_content=False,  # it would take in an answer of any size
                    _request_timeout=seconds,
                )
                async with response:
                    body = bytearray()
                    async for chunk in response.content.iter_any():
                        body += chunk
                        if len(body) > MAX_ANSWER_BYTES:
                            break
                    return _Answer(response.status, response.headers.get("Retry-After", ""), bytes(body))
        except Exception as error:  # aiohttp's, ssl's, the system's, and the vendor's own
            raise ClusterUnavailable(f"{server} {self._why(error, configuration)}") from error

    def _why(self, error: Exception, configuration: Any) -> str:
        """Why there was no answer, and what to do."""
        import aiohttp  # noqa: PLC0415 (9 MB; it is loaded by now)

        match error:
            case TimeoutError():
                seconds = f"{self._timeout_seconds:g} s"
                return f"did not answer within {seconds}; check that no network policy or firewall drops it"
            case aiohttp.ClientConnectorCertificateError():
                why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
                trusted = configuration.ssl_ca_cert or "the system's authorities"
                return f"shows a certificate that {trusted} does not vouch for ({_excerpt(why)}); correct either"
            case aiohttp.ClientConnectorDNSError():
                return "is not known by that name; check its spelling and the DNS"
            case aiohttp.ClientConnectorError(os_error=ssl.SSLError() as cause):
                return f"does not speak TLS as it should ({_excerpt(str(cause))}); check its address"
            case aiohttp.ClientConnectorError(os_error=cause):
                why = os.strerror(cause.errno) if cause.errno else str(cause)
                return f"cannot be reached ({_excerpt(why)}); check its address and this pod's network"
            case _:
                return f"could not be asked ({type(error).__name__}: {_excerpt(str(error))}); check its address"

    # -- its no

    def _refusal(self, answer: _Answer, server: str) -> ClusterUnavailable:
        try:
            message = _excerpt(_Status.model_validate_json(answer.body[:MAX_ANSWER_BYTES]).message)
        except ValidationError:
            message = ""  # a proxy's page; its status says enough
        said = f"({answer.status}{': ' if message else ''}{message})"
        match answer.status:
            case 401:
                return ClusterUnavailable(
                    f"{server} does not accept this agent's credentials {said}; check that the pod's service account "
                    "still exists, or log in again if there is a kubeconfig"
                )
            case 403:
                return ClusterUnavailable(
                    f"{server} does not let this agent get its own pod {self._identity} {said}; allow it: "
                    + self._rule(message)
                )
            case 404:
                return ClusterUnavailable(
                    f"{server} has no pod {self._identity} {said}; set PODHOOK_NAMESPACE and PODHOOK_POD from "
                    "metadata.namespace and metadata.name (downward API), and check that this is the pod's cluster"
                )
            case 429 | 500 | 502 | 503 | 504:
                asked = int(answer.retry_after) if re.fullmatch("[0-9]{1,9}", answer.retry_after) else 0
                return ClusterUnavailable(f"{server} cannot answer now {said}", retry_after_seconds=asked)
            case _:
                return ClusterUnavailable(f"{server} answered the question for pod {self._identity} with a no {said}")

    def _rule(self, message: str) -> str:
        """The commands that make the Role and the RoleBinding that are missing."""
        named = re.search(r'User "([^"]+)"', message)
        user = named[1] if named else f"system:serviceaccount:{self._identity.namespace}:default"
        account = user.removeprefix("system:serviceaccount:")
        whom = f"--user={user}" if account == user else f"--serviceaccount={account}"
        kubectl, name = f"kubectl -n {self._identity.namespace} create", f"podhook-{self._identity.pod}"
        return (
            f"{kubectl} role {name} --verb=get --resource=pods --resource-name={self._identity.pod} && "
            f"{kubectl} rolebinding {name} --role={name} {shlex.quote(whom)} (as YAML: docs/kubernetes.md)"
        )


def _load() -> None:
    try:
        import kubernetes_asyncio.client  # noqa: PLC0415
        import kubernetes_asyncio.config  # noqa: F401, PLC0415
    except ImportError as error:
        raise InvalidSettings(
            f"PODHOOK_KUBERNETES is true, and kubernetes-asyncio cannot be imported ({error}); install it: "
            "pip install 'podhook[kubernetes]', or set PODHOOK_KUBERNETES=false"
        ) from error
    except RuntimeError as error:  # Path.home(), which it calls while it is imported
        raise InvalidSettings(
            f"PODHOOK_KUBERNETES is true, and kubernetes-asyncio cannot be imported ({error}); set HOME to any "
            "directory"
        ) from error


def _kubeconfig() -> str:
    """The usual kubeconfig, as kubectl finds it: one path, or several with a colon between."""
    paths = os.environ.get("KUBECONFIG") or "~/.kube/config"
    if not any(os.access(Path(path).expanduser(), os.R_OK) for path in paths.split(os.pathsep) if path):
        raise ClusterUnavailable(
            "there is no cluster to ask: KUBERNETES_SERVICE_HOST is not set, as it is in every pod, and there is no "
            f"kubeconfig to be read at {paths}; set KUBECONFIG, or PODHOOK_KUBERNETES=false"
        )
    return paths


def _excerpt(text: str) -> str:
    """`text` on one line, with nothing invisible, at most 256 characters."""
    return "".join(c if c.isprintable() else " " for c in text[:_EXCERPT_CHARS])
