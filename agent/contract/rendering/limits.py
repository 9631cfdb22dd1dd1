"""How large a template may be and how much it may do. All are ours: Go's text/template has none."""

from __future__ import annotations

from .errors import UnfitError

MAX_TEXT_BYTES = 64 * 1024
"""The largest template, as UTF-8. An argv element or a request body beyond this belongs in a file."""

MAX_OUTPUT_BYTES = 256 * 1024
"""The largest result, as UTF-8; a param may be long, but an outcome or a trigger must still carry it."""

MAX_DEPTH = 32
"""Blocks and parentheses inside one another, and lists and maps inside one another in a printed value."""

MAX_WORK_CHARACTERS = 2 * 1024 * 1024
"""Characters that all functions of one rendering may read and write together, which bounds its time: a
hundred functions in a pipeline over a long value would otherwise cost a hundred times its length."""


class Meter:
    """Counts what one rendering has read and written."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_WORK_CHARACTERS

    def spend(self, characters: int) -> None:
        """Take ``characters`` from what is left.

        Raises:
            UnfitError: nothing is left.
        """
        self._left -= characters
        if self._left < 0:
            raise UnfitError(
                f"the functions handle more than {MAX_WORK_CHARACTERS} characters",
                "use shorter values, or fewer functions on them",
            )
