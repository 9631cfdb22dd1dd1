"""From Kubernetes YAML to what podman can play: pure functions that stand in for the kubelet.

podman has no API server, no kubelet and no downward API, so what these would do is done here, on a copy:

- the pod gets a uid, a name of its own, and `fieldRef`, `secretKeyRef` and `configMapKeyRef` become plain values;
- each container gets the kubelet's termination log: a file `.../pods/<pod uid>/containers/<name>/<8 hex>` of the host,
  mounted at its `terminationMessagePath`. This line in `/proc/PID/mountinfo` is how podhook knows whose process it is;
- `emptyDir`, `configMap`, `secret` and `downwardAPI` volumes become directories of the host (podman would give each a
  name that all pods on the machine share), with the links by which Kubernetes renews them, their modes and their group;
- `fsGroup` becomes a supplementary group; the pod's `runAsUser` and `runAsGroup` go to its containers;
- probes and ports go: `play` does the readiness probe itself, and podman would publish the ports on the host.
"""

from __future__ import annotations

import copy
import json
import re
import secrets as random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.mounted import Mounted

Json = dict[str, Any]
TERMINATION_LOG = "/dev/termination-log"
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The one pod of a YAML file. Other kinds are what a cluster is for."""

    pod: Json

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a file that has exactly one Pod."""
        documents = [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]
        (pod,) = (each for each in documents if each["kind"] == "Pod")
        return cls(pod)

    def container(self, name: str) -> Json:
        """A container's part, to be changed in place."""
        (found,) = (each for each in self.pod["spec"]["containers"] if each["name"] == name)
        return dict_of(found)

    def copy(self) -> Manifest:
        """An independent copy."""
        return copy.deepcopy(self)


@dataclass(frozen=True, slots=True)
class Place:
    """What a cluster would have decided about a pod: its name, uid and address, and a directory for what it mounts."""

    name: str
    uid: str
    ip: str
    directory: Path


def dict_of(value: Any) -> Json:
    """The same value, known to be a mapping."""
    assert isinstance(value, dict), value
    return value


@dataclass(frozen=True, slots=True)
class Objects:
    """The Secrets and ConfigMaps of a pod's namespace: name -> key -> value."""

    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def playable(manifest: Manifest, place: Place, objects: Objects) -> Json:
    """The pod as podman can play it. Makes the files and directories that it mounts below `place.directory`.

    Raises:
        KeyError: a field, secret or ConfigMap that is not there; names it.
    """
    pod = copy.deepcopy(manifest.pod)
    pod["metadata"]["name"] = place.name
    pod["metadata"].setdefault("namespace", "default")
    scene = _Scene(pod["metadata"], place, objects)
    spec = pod["spec"]
    shared = spec.get("securityContext", {})
    spec["volumes"] = [_volume(volume, scene, shared.get("fsGroup")) for volume in spec.get("volumes", [])]
    if "fsGroup" in shared:
        shared.setdefault("supplementalGroups", []).append(shared.pop("fsGroup"))
    for container in spec["containers"]:
        for gone in ("ports", "livenessProbe", "readinessProbe", "startupProbe", "terminationMessagePolicy"):
            container.pop(gone, None)
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                variable["value"] = scene.value(variable.pop("valueFrom"))
        own = container.setdefault("securityContext", {})
        own.update({key: shared[key] for key in ("runAsUser", "runAsGroup") if key in shared and key not in own})
        _add_termination_log(spec, container, place)
    pod["metadata"].pop("annotations", None)  # podman takes no value longer than 63 characters
    return dict_of(pod)


def _add_termination_log(spec: Json, container: Json, place: Place) -> None:
    path = place.directory / "pods" / place.uid / "containers" / container["name"] / random.token_hex(4)
    path.parent.mkdir(parents=True)
    path.touch(0o666)
    volume = f"termination-log-{container['name']}"
    spec["volumes"].append({"name": volume, "hostPath": {"path": str(path), "type": "File"}})
    mount = {"name": volume, "mountPath": container.pop("terminationMessagePath", TERMINATION_LOG)}
    container.setdefault("volumeMounts", []).append(mount)


@dataclass(frozen=True, slots=True)
class _Scene:
    metadata: Json
    place: Place
    objects: Objects

    def value(self, source: Json) -> str:
        ((kind, reference),) = source.items()
        match kind:
            case "fieldRef":
                return self.field(reference["fieldPath"])
            case "secretKeyRef":
                return self.objects.secrets[reference["name"]][reference["key"]]
            case "configMapKeyRef":
                return self.objects.config_maps[reference["name"]][reference["key"]]
        raise KeyError(kind)

    def field(self, path: str) -> str:
        if found := _SUBSCRIPT.fullmatch(path):
            return str(self.metadata[found[1]][found[2]])
        match path:
            case "metadata.name" | "metadata.namespace":
                return str(self.metadata[path.partition(".")[2]])
            case "metadata.uid":
                return self.place.uid
            case "metadata.labels" | "metadata.annotations":
                entries = self.metadata.get(path.partition(".")[2], {})
                return "\n".join(f"{key}={json.dumps(value)}" for key, value in sorted(entries.items()))
            case "status.podIP":
                return self.place.ip
        raise KeyError(path)


def _volume(volume: Json, scene: _Scene, fs_group: int | None) -> Json:
    ((kind, source),) = ((key, value) for key, value in volume.items() if key != "name")
    if kind == "hostPath":
        return volume
    directory = directory_of(scene.place, volume["name"])
    directory.mkdir(parents=True)
    directory.chmod(0o777 if kind == "emptyDir" else 0o755)
    if kind != "emptyDir":
        mount(directory, source, _files(kind, source, scene), fs_group)
    return {"name": volume["name"], "hostPath": {"path": str(directory), "type": "Directory"}}


def directory_of(place: Place, volume: str) -> Path:
    """Where a volume of a pod is on the host."""
    return place.directory / "volumes" / volume


def mount(directory: Path, source: Json, files: Mapping[str, str], fs_group: int | None) -> None:
    """Put files where a volume is, in place of those that were there."""
    content = {name: text.encode() for name, text in files.items()}
    Mounted(directory, content, source.get("defaultMode", 0o644), fs_group)


def _files(kind: str, source: Json, scene: _Scene) -> Mapping[str, str]:
    match kind:
        case "configMap":
            return scene.objects.config_maps[source["name"]]
        case "secret":
            return scene.objects.secrets[source["secretName"]]
        case "downwardAPI":
            return {item["path"]: scene.field(item["fieldRef"]["fieldPath"]) for item in source["items"]}
    raise KeyError(kind)
