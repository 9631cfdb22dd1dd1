"""When a broker is to read its files again: decided from what each look at them found. Pure.

A signal at the wrong moment does harm: mosquitto 2.0.11 that is told to reload while its ACL file is missing lets every
user do everything, and one whose certificate and key do not belong together speaks to nobody. So a change counts only
when two looks in a row found the same, and not at all while a file that was there is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

#: File -> the hash of what is in it.
Snapshot = Mapping[str, bytes]

EMPTY = hashlib.sha256().digest()
#: A file that is written in place shows pieces of itself; two looks in a row that are equal show the whole.
STABLE_LOOKS = 2
#: Emptying a file is the first step of writing it in place, and seldom what somebody wants: it gets more time.
EMPTIED_LOOKS = 10


class Changes:
    """What a broker has not read yet. Fed with one snapshot a look; `took` says that it was told to read."""

    def __init__(self) -> None:
        self._applied: dict[str, bytes] = {}
        self._told = False
        self._last: dict[str, bytes] | None = None
        self._equal_looks = 0
        self._known: set[str] = set()

    def look(self, now: Snapshot) -> None:
        """Take in what is there at this moment."""
        if self._last != now:
            self._last, self._equal_looks = dict(now), 0
        self._equal_looks += 1
        self._known |= now.keys()

    def unreadable(self) -> None:
        """Take in that a look failed: whatever was seen before it has to prove itself anew."""
        self._last, self._equal_looks = None, 0

    @property
    def gone(self) -> tuple[str, ...]:
        """Files that were there once and are not now."""
        return tuple(sorted(self._known - (self._last or {}).keys()))

    @property
    def changed(self) -> tuple[str, ...]:
        """Files whose content the broker was not told to read."""
        return tuple(sorted(name for name, content in (self._last or {}).items() if self._applied.get(name) != content))

    @property
    def due(self) -> bool:
        """Whether the broker is to read its files now. It always is at first: nobody knows what changed before."""
        if self._last is None or self.gone or not (self.changed or not self._told):
            return False
        emptied = any(self._last[name] == EMPTY and self._applied.get(name, EMPTY) != EMPTY for name in self.changed)
        return self._equal_looks >= (EMPTIED_LOOKS if emptied else STABLE_LOOKS)

    def took(self) -> None:
        """Note that the broker was told to read what the last look found."""
        self._applied, self._told = dict(self._last or {}), True
