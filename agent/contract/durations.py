"""Durations as Kubernetes writes them: Go's `time.ParseDuration` and `Duration.String`."""

from __future__ import annotations

import re
from decimal import Decimal

from agent.contract.errors import BadInput

_UNIT_SECONDS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_BARE_NUMBER = re.compile(r"\+?(\d+(\.\d*)?|\.\d+)", re.ASCII)

#: Go's Duration is an int64 of nanoseconds.
MAX_SECONDS = 9_223_372_036


def parse_duration(text: str) -> float:
    """Read `30s`, `5m` or `1h30m` and return seconds.

    A negative duration is refused: nothing in a hook call can last less than nothing.

    Raises:
        BadInput: not a duration; the message says what to write.
    """
    shown = text if len(text) <= 40 else text[:40] + "..."
    if text in ("0", "+0", "-0"):  # Go accepts a bare zero, and only that
        return 0.0
    if text.startswith("-"):
        raise BadInput(f"{shown!r} is negative; write a duration of at least 0s, such as 30s")
    if _BARE_NUMBER.fullmatch(text):
        raise BadInput(f"{shown!r} is not a duration: a unit is missing; write {shown}s for seconds")
    body = text.removeprefix("+")
    total = Decimal(0)
    position = 0
    while position < len(body) and len(body) <= 64:
        part = _PART.match(body, position)
        if part is None:
            break
        total += Decimal(part[1]) * _UNIT_SECONDS[part[2]]
        position = part.end()
    if not body or position != len(body):
        raise BadInput(f"{shown!r} is not a duration; write numbers with units h, m, s, ms, such as 30s, 5m or 1h30m")
    if total > MAX_SECONDS:
        raise BadInput(f"{shown!r} is too long; the limit is {format_duration(MAX_SECONDS)} (292 years)")
    return float(total)


def format_duration(seconds: float) -> str:
    """Write seconds as people read them in Kubernetes: `1h30m`, `5s`, `1.5s`, `250ms`."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{round(seconds * 1000, 1):g}ms" if seconds >= 0.001 else f"{round(seconds * 1e6, 1):g}us"
    whole, fraction = divmod(round(seconds, 3), 1)
    minutes, left = divmod(int(whole), 60)
    hours, minutes = divmod(minutes, 60)
    tail = f"{left + fraction:.3f}".rstrip("0").rstrip(".")
    text = (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")
    return text + (f"{tail}s" if tail != "0" or not text else "")
