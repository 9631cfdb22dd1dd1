"""Standard streams that are closed: that must not reach what a command writes."""

from __future__ import annotations

import os
import sys


def fill_closed() -> None:
    """Put /dev/null where standard streams were closed (`2>&-`); what is started has them closed, as it was given.

    Otherwise the next file or socket gets their number, and Python's print writes to standard output what was meant
    for a standard error that is not there: into the middle of a dump.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, closed on exec
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
