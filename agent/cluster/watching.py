"""What a watch saw, so that losing it and listing anew makes no event twice and loses none. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.cluster.reading import Json

ADDED, MODIFIED, DELETED = "ADDED", "MODIFIED", "DELETED"
Event = tuple[str, Json]


@dataclass(frozen=True, slots=True)
class _Known:
    uid: str
    resource_version: str
    kind: tuple[str, str]

    def gone(self, key: tuple[str, str]) -> Json:
        """What can still be said of an object that went unseen."""
        metadata = {"namespace": key[0], "name": key[1], "uid": self.uid, "resourceVersion": self.resource_version}
        return {"apiVersion": self.kind[0], "kind": self.kind[1], "metadata": metadata}


@dataclass(slots=True)
class Seen:
    """The objects that whoever watches knows of, by (namespace, name)."""

    _objects: dict[tuple[str, str], _Known] = field(default_factory=dict)

    def list(self, objects: Iterable[Json]) -> Iterable[Event]:
        """The events that lead from what is known to `objects`: all of them, as a new list has them.

        An object that vanished unseen is told with its name, namespace, uid and kind alone.
        """
        present = {_key(each): each for each in objects}
        for key in [key for key in self._objects if key not in present]:
            yield DELETED, self._objects.pop(key).gone(key)
        for each in present.values():
            yield from self.event(ADDED, each)

    def event(self, kind: str, item: Json) -> Iterable[Event]:
        """What is new in an event of the API server's: nothing, it, or first the end of its predecessor."""
        key, now = _key(item), _known(item)
        before = self._objects.get(key)
        if kind == DELETED:
            if before is None or before.uid == now.uid:
                self._objects.pop(key, None)
                yield DELETED, item
            return
        self._objects[key] = now
        if before is None:
            yield kind, item
        elif before.uid != now.uid:
            yield DELETED, before.gone(key)
            yield ADDED, item
        elif not now.resource_version or before.resource_version != now.resource_version:
            yield MODIFIED, item


def _key(item: Json) -> tuple[str, str]:
    metadata = item.get("metadata") or {}
    return str(metadata.get("namespace", "")), str(metadata.get("name", ""))


def _known(item: Json) -> _Known:
    metadata = item.get("metadata") or {}
    kind = str(item.get("apiVersion", "")), str(item.get("kind", ""))
    return _Known(str(metadata.get("uid", "")), str(metadata.get("resourceVersion", "")), kind)
