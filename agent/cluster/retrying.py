"""When to ask again, and how long to wait before. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.contract.errors import ClusterUnavailable


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a question is asked at most, and for how long.

    The first pause doubles up to the ceiling, less up to half of it (so that many do not ask at once), on top of what
    the server asks to wait for. Defaults: five tries take 5 to 8 s if nobody answers; a server that is told to say
    "later" (API priority and fairness says 1 s) has a minute.
    """

    tries: int = 5
    seconds: float = 60.0
    pause_seconds: float = 0.5
    ceiling_seconds: float = 30.0

    def pause(self, failures: int, error: ClusterUnavailable, spread: float) -> float:
        """Seconds before the next try, after so many failures (1 and more); `spread` is in [0, 1)."""
        doubled = math.ldexp(self.pause_seconds, min(failures - 1, 64))
        return error.retry_after_seconds + min(self.ceiling_seconds, doubled) * (1 - spread / 2)


#: One question.
QUESTION = Patience()
#: A watch: nothing waits for each of its tries, and a control plane that is upgraded is away for minutes.
WATCH = Patience(tries=1000, seconds=300.0, pause_seconds=1.0)
