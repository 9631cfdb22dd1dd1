"""The agent as it is, with another clock or another version: `python -m tests.delivery.altered agent`.

PODHOOK_TEST_CLOCK names a file with how many seconds its clock stands ahead (read anew at each look) and
PODHOOK_TEST_VERSION says which version it claims to be, PODHOOK_TEST_MAX_ROWS how many attempts its journal holds. It
prunes its journal all the time, not every ten minutes.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import agent

agent.__version__ = os.environ.get("PODHOOK_TEST_VERSION", agent.__version__)

from agent.cli.main import main  # noqa: E402 (the version is read at import)
from agent.journal import record  # noqa: E402
from agent.sidecar import app  # noqa: E402

if TYPE_CHECKING:
    from agent.sidecar.settings import AgentSettings


def now() -> datetime:
    """The wall clock, as wrong as the file says."""
    file = os.environ.get("PODHOOK_TEST_CLOCK")
    return app.utc_now() + timedelta(seconds=float(Path(file).read_text(encoding="ascii")) if file else 0)


class AlteredAgent(app.Agent):
    """The agent with our clock."""

    def __init__(self, settings: AgentSettings) -> None:
        super().__init__(settings, now=now)


if __name__ == "__main__":
    app.Agent = AlteredAgent
    app.LOOK_SECONDS, app.PRUNE_SECONDS = 0.1, 0
    record.MAX_ROWS = int(os.environ.get("PODHOOK_TEST_MAX_ROWS", record.MAX_ROWS))
    main()
