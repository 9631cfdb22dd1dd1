"""A flood of lines becomes some lines and a number: a token bucket that counts what it held back. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Flood:
    """Lets `burst` through at once and `per_second` after that, by `clock` (seconds that only grow)."""

    clock: Callable[[], float]
    burst: int = 50
    per_second: float = 1.0
    _tokens: float = field(init=False)
    _at: float = field(init=False)
    _held_back: int = 0

    def __post_init__(self) -> None:
        self._tokens = self.burst
        self._at = self.clock()

    def admit(self) -> int | None:
        """None: hold this one back, it is counted. Otherwise how many were held back since the last that passed."""
        self._refill()
        if self._tokens < 1:
            self._held_back += 1
            return None
        self._tokens -= 1
        return self.settle()

    def settle(self) -> int:
        """How many were held back that nobody was told of yet; now somebody is."""
        count, self._held_back = self._held_back, 0
        return count

    def _refill(self) -> None:
        now = self.clock()
        self._tokens = min(self.burst, self._tokens + max(0.0, now - self._at) * self.per_second)
        self._at = now
