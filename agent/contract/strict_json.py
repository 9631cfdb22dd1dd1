"""JSON that means one thing: UTF-8, no member twice, no NaN, not nested without end (RFC 8259, RFC 7493)."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

#: Nothing of ours nests deeper than a dozen; what an owner's newer message adds may.
MAX_DEPTH = 64
#: No number of ours has more, and int() takes long for many.
MAX_DIGITS = 4300


def parse(text: bytes) -> Any:
    """Read a JSON text.

    Raises:
        ValueError: it is none, or ambiguous; says what, and repeats at most a member's name.
    """
    try:
        value = json.loads(
            text.decode(), object_pairs_hook=_once, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start} is {text[error.start]:#04x}") from None
    if b"\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but nothing that could travel
    # Only what has that many brackets can be that deep: most is never walked.
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"member {twice[:60]!r} is given twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; the limit is {MAX_DIGITS}")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:40]} is out of range")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
