"""Parts of a pod as Kubernetes writes them (core/v1), where a hook's Function, template or call may hold them.

Only what a mistake could silently change is looked into: the API server drops a field that it does not know, and a
volume whose source is misspelt becomes an empty directory. What is deeper stays as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.alias_generators import to_camel

from agent.contract.actions import Finding, Strict
from agent.contract.documents import shown

__all__ = ["ContainerPort", "EnvFrom", "Resources", "Volume", "VolumeDevice", "VolumeMount", "twice"]

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def _volume_name(value: str) -> str:
    if not _DNS_LABEL.fullmatch(value):
        raise ValueError("is not a volume's name; use at most 63 lower-case letters, digits and '-' (RFC 1123)")
    return value


def _mount_path(value: str) -> str:
    if ":" in value or "\0" in value:
        raise ValueError("is not a place to mount at; a path in a container has no ':' and no NUL character")
    return value


def _quantity(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise ValueError("is not a quantity; write one such as 500m, 1Gi or 2")
    return value


VolumeName = Annotated[str, AfterValidator(_volume_name)]
#: A resource.Quantity: `500m`, `1Gi`, or a number.
Quantity = Annotated[str | int | float, BeforeValidator(_quantity)]
#: What one kind of volume needs; open, since the kinds' own fields grow with Kubernetes.
Source = dict[str, Any] | None


class VolumeMount(Strict):
    """Where a volume is seen in the container."""

    name: VolumeName
    mount_path: Annotated[str, Field(min_length=1), AfterValidator(_mount_path)]
    sub_path: str | None = None
    sub_path_expr: str | None = None
    read_only: bool | None = None
    recursive_read_only: str | None = None
    mount_propagation: str | None = None

    def document(self) -> dict[str, Any]:
        """It as Kubernetes writes it."""
        return _document(self)


class VolumeDevice(Strict):
    """Where a block device is seen in the container."""

    name: VolumeName
    device_path: Annotated[str, Field(min_length=1)]

    def document(self) -> dict[str, Any]:
        """It as Kubernetes writes it."""
        return _document(self)


class Volume(Strict):
    """A volume of the pod: its name, and exactly one source. Kubernetes makes an empty directory of one without."""

    name: VolumeName
    aws_elastic_block_store: Source = None
    azure_disk: Source = None
    azure_file: Source = None
    cephfs: Source = None
    cinder: Source = None
    config_map: Source = None
    csi: Source = None
    downward_api: Source = Field(default=None, alias="downwardAPI")
    empty_dir: Source = None
    ephemeral: Source = None
    fc: Source = None
    flex_volume: Source = None
    flocker: Source = None
    gce_persistent_disk: Source = None
    git_repo: Source = None
    glusterfs: Source = None
    host_path: Source = None
    image: Source = None
    iscsi: Source = None
    nfs: Source = None
    persistent_volume_claim: Source = None
    photon_persistent_disk: Source = None
    portworx_volume: Source = None
    projected: Source = None
    quobyte: Source = None
    rbd: Source = None
    scale_io: Source = Field(default=None, alias="scaleIO")
    secret: Source = None
    storageos: Source = None
    vsphere_volume: Source = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Exactly one source."""
        known = {field.alias or to_camel(name) for name, field in cls.model_fields.items()}
        given = [name for name, source in written.items() if name in known - {"name"} and source is not None]
        if len(given) > 1:
            yield (), f"names {len(given)} sources ({', '.join(given)}); a volume has one: keep one"
        elif not given and written.keys() <= known:  # else the odd field is named
            yield (), "names no source, and would be an empty directory; give one, or write emptyDir: {}"

    def document(self) -> dict[str, Any]:
        """It as Kubernetes writes it."""
        return _document(self)


class ContainerPort(Strict):
    """A port that the container names."""

    container_port: Annotated[int, Field(ge=1, le=65535)]
    name: str | None = None
    protocol: str | None = None
    host_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    host_ip: str | None = Field(default=None, alias="hostIP")

    def document(self) -> dict[str, Any]:
        """It as Kubernetes writes it."""
        return _document(self)


class Reference(Strict):
    """A ConfigMap or a Secret of the Job's namespace, whole. `optional`: it may be absent."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    optional: bool | None = None


class EnvFrom(Strict):
    """Every key of a ConfigMap or a Secret, as variables."""

    prefix: str | None = None
    config_map_ref: Reference | None = None
    secret_ref: Reference | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Exactly one source."""
        given = [name for name in ("configMapRef", "secretRef") if written.get(name) is not None]
        if len(given) > 1:
            yield (), f"names both {' and '.join(given)}; make two entries of it"
        elif not given and written.keys() <= {"prefix", "configMapRef", "secretRef"}:
            yield (), "names no source; give configMapRef or secretRef"

    def document(self) -> dict[str, Any]:
        """It as Kubernetes writes it."""
        return _document(self)


class Resources(Strict):
    """What a container may use, and what is kept for it."""

    limits: dict[str, Quantity] | None = None
    requests: dict[str, Quantity] | None = None
    claims: list[dict[str, Any]] | None = None


def twice(written: Mapping[Any, Any], field: str, key: str) -> Iterator[Finding]:
    """Find what stands a second time in a list of mappings."""
    seen: set[str] = set()
    part = written.get(field)
    for index, each in enumerate(part if isinstance(part, list) else ()):
        value = each.get(key) if isinstance(each, dict) else None
        if isinstance(value, str):
            if value in seen:
                yield (field, index, key), f"{shown(value)} stands here a second time; keep one"
            seen.add(value)


def _document(part: Strict) -> dict[str, Any]:
    return part.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
