"""The kinds of objects that podhook asks for, and the paths that lead to them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from agent.contract.errors import BadInput

#: Kubernetes: "Object Names and IDs", DNS subdomain names.
_MAX_NAME_CHARACTERS = 253


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object as the API serves it. `group` is "" for the core's (`v1`)."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As `apiVersion` has it: `v1`, `batch/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Where it is served; `namespace` counts where the resource has one, and None means all of them.

        Raises:
            BadInput: a name that no object can have, and that would lead somewhere else.
        """
        parts = [group_path(self.api_version)]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", _segment("namespace", namespace)]
        parts.append(self.plural)
        if name:
            parts.append(_segment(self.kind, name))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def __str__(self) -> str:
        """As kubectl and RBAC's messages write it: `pods`, `jobs.batch`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def group_path(api_version: str) -> str:
    """Where the resources of `v1` or `group/version` are served."""
    group, slash, version = api_version.partition("/")
    return (
        f"/apis/{_segment('API group', group)}/{_segment('version', version)}"
        if slash
        else (f"/api/{_segment('version', group)}")
    )


def _segment(what: str, name: str) -> str:
    """One part of a path. (Kubernetes: path segment names are not `.` or `..`, and have no `/` and no `%`.)"""
    if (
        not name
        or name in (".", "..")
        or len(name) > _MAX_NAME_CHARACTERS
        or any(c in "/%" or c.isspace() or not c.isprintable() for c in name)
    ):
        raise BadInput(f"{name[:80]!r} is not the name of a {what} in Kubernetes; correct it")
    return quote(name, safe=":")


PODS = Resource("", "v1", "pods", "Pod")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
SECRETS = Resource("", "v1", "secrets", "Secret")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
REPLICATION_CONTROLLERS = Resource("", "v1", "replicationcontrollers", "ReplicationController")
REPLICA_SETS = Resource("apps", "v1", "replicasets", "ReplicaSet")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
STATEFUL_SETS = Resource("apps", "v1", "statefulsets", "StatefulSet")
DAEMON_SETS = Resource("apps", "v1", "daemonsets", "DaemonSet")
JOBS = Resource("batch", "v1", "jobs", "Job")
CRON_JOBS = Resource("batch", "v1", "cronjobs", "CronJob")

#: KubeStash's own, and the same kinds for who has no KubeStash (manifests/crds).
HOOK_TEMPLATES = Resource("core.kubestash.com", "v1alpha1", "hooktemplates", "HookTemplate")
PODHOOK_HOOK_TEMPLATES = Resource("podhook.dev", "v1alpha1", "hooktemplates", "HookTemplate")
FUNCTIONS = Resource("addons.kubestash.com", "v1alpha1", "functions", "Function", namespaced=False)
PODHOOK_FUNCTIONS = Resource("podhook.dev", "v1alpha1", "functions", "Function", namespaced=False)
