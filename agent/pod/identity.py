"""Who am I: namespace, pod, uid, address, labels, and what the pod's description says about it.

The labels file is the downward API's (`key="value"`, one a line, values quoted as Go quotes them). The description
is a small JSON file, a subset of the pod's own manifest::

    {"containers": [{"name": "mysql", "ports": [{"name": "db", "containerPort": 3306}]}],
     "owners": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "mysql"}]}

`containers` stand in the order of `spec.containers`, so the first is the one that hooks without `containerName` mean.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from agent.contract.errors import InvalidSettings
from agent.contract.messages import Owner

MAX_FILE_BYTES = 256 * 1024
#: Labels, as JSON: they stand in presence and in the will, whose limit is 65,535 bytes, signature and base64 included.
MAX_LABELS_BYTES = 24 * 1024


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class ContainerPort(_Part):
    """A named port of a container."""

    container_port: int = Field(ge=1, le=65535)
    name: str = ""
    protocol: str = "TCP"


class Container(_Part):
    """A container of the pod and its ports."""

    name: str = Field(min_length=1, max_length=253)
    ports: list[ContainerPort] = []


class OwnerReference(_Part):
    """One of the pod's owners, or of its owners' owners."""

    api_version: str
    kind: str
    name: str
    uid: str | None = None
    controller: bool | None = None


class PodDescription(_Part):
    """What the description file says. Empty when there is none."""

    containers: list[Container] = []
    owners: list[OwnerReference] = []

    def presence_owners(self) -> list[Owner]:
        """The owners as presence carries them."""
        return [Owner.model_validate(owner.model_dump()) for owner in self.owners]


@dataclass(frozen=True, slots=True)
class Identity:
    """The pod that this agent speaks for. `address` is where actions without a host go."""

    namespace: str
    pod: str
    pod_uid: str
    address: str = "127.0.0.1"

    @property
    def source(self) -> str:
        """The CloudEvents source of what the agent says."""
        return f"/agents/{self.namespace}/{self.pod}"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"


@dataclass(slots=True)
class WatchedFile:
    """A small file that is read again when it changed (another inode, size or time of change).

    Kubernetes swaps symlinks, so the target is what is compared. None means that no such file was configured.
    """

    path: Path | None
    _seen: tuple[int, int, int] | None = field(default=None, init=False)
    _failed: str = field(default="", init=False)

    def changed(self) -> str | None:
        """The new text if it changed since the last call, else None.

        Raises:
            InvalidSettings: it cannot be read, or is larger than 256 KiB. The same error comes once in a row.
        """
        if self.path is None:
            return None
        try:
            stat = self.path.stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if stamp == self._seen:
                return None
            self._seen = stamp
            if stat.st_size > MAX_FILE_BYTES:
                raise InvalidSettings(f"{self.path} has {stat.st_size} bytes; the limit is {MAX_FILE_BYTES}")
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._seen = None  # a right or a mount can come back without a trace in the stamp
            message = f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}"
            if message == self._failed:
                return None
            self._failed = message
            raise InvalidSettings(message) from error
        self._failed = ""
        return text


def parse_labels(text: str) -> dict[str, str]:
    """Read a downward API labels file.

    Raises:
        InvalidSettings: a line is not `key="value"`, naming the line's number; or they are more than presence carries.
    """
    labels = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        key, equals, value = line.partition("=")
        try:
            if not equals or not key.strip() or not re.fullmatch(r'".*"', value.strip()):
                raise ValueError
            text_value = str(json.loads(value.strip()))  # labels need no escape that JSON does not have
            (key + text_value).encode()  # half a surrogate pair is JSON, but nothing that could travel
            labels[key.strip()] = text_value
        except ValueError as error:
            raise InvalidSettings(f'labels file, line {number}: write key="value"') from error
    size = len(json.dumps(labels, ensure_ascii=False).encode())
    if size > MAX_LABELS_BYTES:
        raise InvalidSettings(
            f"the labels have {size} bytes; the limit is {MAX_LABELS_BYTES}, for presence carries them: mount fewer"
        )
    return labels


def parse_description(text: str) -> PodDescription:
    """Read a pod description.

    Raises:
        InvalidSettings: not JSON of that form; names the place.
    """
    try:
        return PodDescription.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidSettings(f"pod description: {place}: {first['msg']}") from error
