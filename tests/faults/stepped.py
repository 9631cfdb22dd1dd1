"""`podhook agent` with a clock that can be set: FAULTS_CLOCK names a file that says how many seconds it is ahead.

Everything else is the real agent, from its command line on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from datetime import datetime, timedelta
from pathlib import Path

from agent.entry import main
from agent.sidecar import app

CLOCK = "FAULTS_CLOCK"


def stepped(file: Path) -> datetime:
    """The wall clock, as far ahead as the file says."""
    with contextlib.suppress(OSError):
        return app.utc_now() + timedelta(seconds=float(file.read_text(encoding="ascii")))
    return app.utc_now()


def set_clock(file: Path, seconds: float) -> None:
    """Set the clock of whoever reads this file, at once and as a whole."""
    new = file.with_suffix(".new")
    new.write_text(str(seconds), encoding="ascii")
    new.replace(file)


if __name__ == "__main__":
    clock = functools.partial(stepped, Path(os.environ[CLOCK]))
    app.Agent = functools.partial(app.Agent, now=clock)  # type: ignore[assignment,misc]
    sys.argv = ["podhook", "agent"]
    main()
