"""``${NAME}`` and ``${NAME:=default}``: params and variables, filled before a shell sees the text.

A name begins with a letter or ``_`` and goes on with letters, digits, ``_``, ``.`` and ``-``, because the
names of Kubernetes' params and environment variables do; it does not end in ``-``, so that the shell's
``${NAME-}`` stays the shell's. (``${NAME-x}`` would be a placeholder only for a value called ``NAME-x``.)

Everything else stays for the shell, character by character: ``$NAME``, ``${NAME:-x}``, ``${#NAME}``, a
``${NAME}`` without a value, and ``$${NAME}``, where the shell reads ``$$`` first (an odd number of dollars
leaves one for the placeholder). A ``${NAME}`` inside such another form, as in ``${X:-${NAME}}``, is filled.
A backslash or a single quote does not protect a placeholder: that would take a shell's parser, and a body is
not shell at all.

As in the shell, ``:=`` gives its default when the value is missing *or empty*, and the default ends at the
first ``}`` that does not close a ``${`` inside it. Placeholders in a default are filled like any others. A
value is never read again, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .errors import Place, Source, UnfitError
from .limits import MAX_OUTPUT_BYTES

_BRACES = re.compile(r"(\$+)\{|\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class _Placeholder:
    """Offsets of its ``$``, of its ``}``, and of its default if it has one."""

    name: str
    start: int
    end: int
    default: int | None


def fill(text: str, values: Mapping[str, str]) -> str:
    """Fill in the placeholders that have a value or a default; leave every other character as it is.

    Text in which nothing is filled is returned as it came, by identity.

    Raises:
        RenderError: with its values the text would pass MAX_OUTPUT_BYTES, or a value is not UTF-8.
    """
    try:
        return substitute(text, values)
    except UnfitError as unfit:
        raise Source(text).error(unfit.problem, Place(unfit.at, unfit.at), unfit.next_step) from unfit


def placeholders(text: str) -> frozenset[str]:
    """Name everything ``fill`` would look for, in defaults too; the shell's own variables are among them."""
    return frozenset(item.name for item in _events(text) if isinstance(item, _Placeholder))


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Do what ``fill`` does, for a piece of text whose place is known elsewhere.

    Raises:
        UnfitError: as ``fill``, with the placeholder's offset.
    """
    if "${" not in text:
        return text
    pieces: list[str] = []
    taken = 0  # everything before this offset is in pieces, or was replaced
    closing: list[int] = []  # where the defaults being copied end, the innermost last
    size = len(text)
    for event in _events(text):
        if isinstance(event, int):
            if closing and closing[-1] == event:
                pieces.append(text[taken:event])
                taken = closing.pop() + 1
        elif event.start < taken:
            continue  # in a default that is not used
        elif values.get(event.name) or (event.name in values and event.default is None):
            value = values[event.name]
            size += _size(value, event)
            if size > MAX_OUTPUT_BYTES:
                problem = f"more than {MAX_OUTPUT_BYTES} bytes of text and values"
                raise UnfitError(problem, "use shorter values", event.start)
            pieces += text[taken : event.start], value
            taken = event.end + 1
        elif event.default is not None:
            pieces.append(text[taken : event.start])
            taken = event.default
            closing.append(event.end)
    return "".join((*pieces, text[taken:])) if taken else text


def _size(value: str, placeholder: _Placeholder) -> int:
    # A very long value is refused by its length, before it is copied.
    if len(value) > MAX_OUTPUT_BYTES:
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise UnfitError(
            f"a value of {placeholder.name} with half of a surrogate pair",
            "give text that is valid Unicode",
            placeholder.start,
        ) from None


def _events(text: str) -> Iterator[_Placeholder | int]:
    """Yield, in order, each placeholder where it starts and the offset of each ``}``."""
    ends = _ends(text)
    for found in _BRACES.finditer(text):
        if found[1] is None:
            yield found.start()
            continue
        start = found.end() - 2
        name = _NAME.match(text, found.end())
        if len(found[1]) % 2 == 0 or name is None or name[0].endswith("-") or start not in ends:
            continue
        end = ends[start]
        if name.end() == end:
            yield _Placeholder(name[0], start, end, None)
        elif text.startswith(":=", name.end()):
            yield _Placeholder(name[0], start, end, name.end() + 2)


def _ends(text: str) -> dict[int, int]:
    # One pass for all of them: looking for each end on its own would take quadratic time on nested ones.
    ends: dict[int, int] = {}
    opened: list[int] = []
    for found in _BRACES.finditer(text):
        if found[1] is not None:
            opened.append(found.end() - 2)
        elif opened:
            ends[opened.pop()] = found.start()
    return ends
