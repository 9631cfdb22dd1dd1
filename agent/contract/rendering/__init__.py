"""Templates in hooks: a sandboxed subset of Go's text/template, and ``${NAME}`` placeholders.

The rules are those of "Templates and parameters" in the semantics of hooks. Whatever is accepted renders as
Go would render it, with these decisions where Go's way is unsafe or has no counterpart here:

- Nothing is looked up but the keys of maps: no attributes, no methods, no code of the data's.
- None counts as missing: it prints ``<no value>``, and so does a field of it.
- What Go would print as ``%!d(string=...)``, ``%!s(MISSING)`` or ``%!(EXTRA ...)`` is refused: no command
  should get that as an argument. Floats, character constants and variables cannot be written.
- Argument counts are checked for the whole template, not only for the branch that is taken.
- The limits: MAX_TEXT_BYTES, MAX_OUTPUT_BYTES, MAX_DEPTH, MAX_WORK_CHARACTERS.

``fill`` and then ``render`` would run a ``{{`` that came in a param; ``render`` and then ``fill`` would fill
a ``${NAME}`` that came in the data. ``expand`` does both at once, so that neither is ever read again.
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import RenderError
from .evaluate import evaluate
from .limits import MAX_DEPTH, MAX_OUTPUT_BYTES, MAX_TEXT_BYTES, MAX_WORK_CHARACTERS
from .parser import parse
from .placeholders import fill, placeholders

__all__ = [
    "MAX_DEPTH",
    "MAX_OUTPUT_BYTES",
    "MAX_TEXT_BYTES",
    "MAX_WORK_CHARACTERS",
    "RenderError",
    "check",
    "expand",
    "fill",
    "placeholders",
    "render",
]


def render(text: str, data: Mapping[str, object]) -> str:
    """Render a template with data of maps, lists (or tuples), str, int, float, bool and None.

    Text without ``{{`` is no template, whatever its size: it is returned as it came, by identity.

    Raises:
        RenderError: the template or a value in it cannot be rendered; see ``check`` for what is found before.
    """
    return evaluate(parse(text), data) if "{{" in text else text


def check(text: str) -> None:
    """Find what is wrong with a template without data: before anything runs, on the coordinator's side.

    Raises:
        RenderError: as ``render``, except for what depends on values (their kinds, the result's size).
    """
    if "{{" in text:
        parse(text)


def expand(text: str, data: Mapping[str, object], values: Mapping[str, str]) -> str:
    """Render a template and fill its placeholders in one pass: neither data nor values are read again.

    Placeholders are filled in the text between the actions and in the strings inside them, after trimming;
    one whose default holds an action is not a placeholder, since the action ends the text before it.

    Raises:
        RenderError: as ``render`` and ``fill``.
    """
    return evaluate(parse(text), data, values) if "{{" in text else fill(text, values)
