"""Which cluster, and who we are there: a pod's service account, or a kubeconfig. Exec plugins are the vendor's."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agent.cluster.vendor import Vendor
from agent.cluster.words import Words, excerpt, public
from agent.contract.errors import ClusterUnavailable, InvalidSettings

#: Where the kubelet puts a pod's credentials (Kubernetes: "Accessing the API from within a Pod").
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_USUAL_KUBECONFIG = "~/.kube/config"
_MAX_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Login:
    """The vendor's configuration of a client, and the namespace that is meant where none is named."""

    configuration: Any
    namespace: str

    @property
    def server(self) -> str:
        """How sentences name the API server; a URL with a password in it stays without."""
        return f"the API server at {public(self.configuration.host)}"


@dataclass(frozen=True, slots=True)
class Way:
    """How to get in. A kubeconfig (or several, with a colon between) or a context that is given wins over the pod's
    own service account, which wins over the usual kubeconfig."""

    kubeconfig: str = ""
    context: str = ""
    service_account: Path = SERVICE_ACCOUNT

    async def log_in(self, vendor: Vendor, words: Words, timeout_seconds: float) -> Login:
        """Read the credentials as they are now: each login sees a rotated token or certificate.

        Raises:
            ClusterUnavailable: there is no cluster, or what leads there cannot be used.
            InvalidSettings: no such context, or a login that hangs: trying again would start another, and another.
        """
        configuration = vendor.client.Configuration()
        # Python 3.13 wants key identifiers in certificates; the authorities of many clusters have none, and neither
        # the kubelet nor kubectl asks for them.
        configuration.disable_strict_ssl_verification = True
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not (self.kubeconfig or self.context):
            namespace = self._in_cluster(vendor, words, configuration)
        else:
            namespace = await self._by_kubeconfig(vendor, words, configuration, timeout_seconds)
        # A file that somebody wrote by hand ends with a newline, which no header may have.
        configuration.api_key = {name: key.strip() for name, key in configuration.api_key.items()}
        return Login(configuration, namespace or "default")

    def _in_cluster(self, vendor: Vendor, words: Words, configuration: Any) -> str:
        token = self.service_account / "token"
        try:
            vendor.config.load_incluster_config(
                client_configuration=configuration,
                try_refresh_token=False,  # it is read anew with each login
                token_filename=str(token),
                cert_filename=str(self.service_account / "ca.crt"),
            )
        except PermissionError as error:
            raise ClusterUnavailable(
                f"{token} is not readable for {words.who} (uid {os.geteuid()}, gid {os.getegid()}); in a pod with an "
                f"fsGroup only that group may read it: {words.unreadable}"
            ) from error
        except (vendor.config.ConfigException, OSError, ValueError) as error:
            raise ClusterUnavailable(
                f"the service account in {self.service_account} cannot be used "
                f"({excerpt(str(error)).rstrip('.')}); set automountServiceAccountToken: true in the pod"
            ) from error
        try:
            return (self.service_account / "namespace").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    async def _by_kubeconfig(self, vendor: Vendor, words: Words, configuration: Any, timeout_seconds: float) -> str:
        paths = self._kubeconfig(words)
        if self.context and self.context not in (names := _contexts(paths)):
            has = ", ".join(sorted(names)[:_MAX_NAMES_SHOWN]) or "none"
            raise InvalidSettings(
                f"the kubeconfig {paths} has no context {self.context[:80]!r} (has: {excerpt(has)}); set --context to "
                "one of them"
            )
        try:
            async with asyncio.timeout(timeout_seconds):  # it may start a program that logs in
                loader = await vendor.config.load_kube_config(
                    paths, context=self.context or None, client_configuration=configuration, persist_config=False
                )
            chosen = loader.current_context["context"]
            return str(chosen.get("namespace") or "")
        except TimeoutError as error:
            # The vendor forgets the program that it started.
            raise InvalidSettings(
                f"the kubeconfig {paths} did not log in within {timeout_seconds:g} s; log in with: {words.by_hand} - "
                f"and {words.again}"
            ) from error
        except Exception as error:
            # The loader lets out whatever happens to it, and its own messages quote the file with the keys in it.
            raise ClusterUnavailable(
                f"the kubeconfig {paths} cannot be used ({type(error).__name__}); find out why with: {words.by_hand}"
            ) from error

    def _kubeconfig(self, words: Words) -> str:
        """The kubeconfig, as kubectl finds it: one path, or several with a colon between."""
        paths = self.kubeconfig or os.environ.get("KUBECONFIG") or _USUAL_KUBECONFIG
        if any(os.access(path, os.R_OK) for path in _each(paths)):
            return paths
        if self.kubeconfig or self.context:
            raise InvalidSettings(f"there is no kubeconfig to be read at {paths}; correct the path or its mode")
        raise ClusterUnavailable(
            "there is no cluster to ask: KUBERNETES_SERVICE_HOST is not set, as it is in every pod, and there is no "
            f"kubeconfig to be read at {paths}; {words.kubeconfig}"
        )


def _each(paths: str) -> list[Path]:
    return [Path(path).expanduser() for path in paths.split(os.pathsep) if path]


def _contexts(paths: str) -> set[str]:
    """The names of the contexts in the files; a file that is no kubeconfig has none (the loader names it)."""
    names: set[str] = set()
    for path in _each(paths):
        try:
            written = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        contexts = written.get("contexts") if isinstance(written, dict) else None
        for context in contexts if isinstance(contexts, list) else []:
            if isinstance(context, dict) and isinstance(context.get("name"), str):
                names.add(context["name"])
    return names
