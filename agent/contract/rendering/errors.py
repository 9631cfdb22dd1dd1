"""What a template may not do, and where in it that was found."""

from __future__ import annotations

from dataclasses import dataclass

# A message is one line in a log and in a terminal; the place says where to read on.
_EXPRESSION_CHARACTERS = 80


class RenderError(ValueError):
    """A template that cannot be rendered, or a value that does not fit where it is used.

    The template's author can mend it; repeating it cannot help. Values from the data are never part of the
    message, since it goes to logs; the template's own text is.

    Attributes:
        problem: what is wrong, without its place.
        expression: the action it is wrong in, from ``{{`` to ``}}``, on one line and cut to 80 characters.
        line: counted from 1.
        column: counted from 1, in characters.
        next_step: what to write instead.
    """

    def __init__(self, problem: str, expression: str, line: int, column: int, next_step: str) -> None:
        # All of them in args, so that the error survives being copied between processes.
        super().__init__(problem, expression, line, column, next_step)
        self.problem = problem
        self.expression = expression
        self.line = line
        self.column = column
        self.next_step = next_step

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.problem} in {self.expression}; {self.next_step}"


class UnfitError(Exception):
    """Something does not fit; raised where the place in the template is not known and caught where it is.

    ``at`` is an offset in characters into the piece of text that was being read, where there is one.
    """

    def __init__(self, problem: str, next_step: str, at: int = 0) -> None:
        super().__init__(problem)
        self.problem = problem
        self.next_step = next_step
        self.at = at


@dataclass(frozen=True, slots=True)
class Place:
    """Offsets in characters: of the thing itself, and of the ``{{`` (or ``${``) that it belongs to."""

    at: int
    action: int


@dataclass(frozen=True, slots=True)
class Source:
    """A template's text, which knows how to point into itself."""

    text: str

    def error(self, problem: str, place: Place, next_step: str) -> RenderError:
        """Build the error for a place; lines are counted only now, since most templates have no error."""
        line = self.text.count("\n", 0, place.at) + 1
        column = place.at - self.text.rfind("\n", 0, place.at)
        return RenderError(problem, self._expression(place), line, column, next_step)

    def _expression(self, place: Place) -> str:
        limit = place.action + _EXPRESSION_CHARACTERS
        closing = "}}" if self.text.startswith("{{", place.action) else "}"
        end = self.text.find(closing, place.at, limit)
        whole = end >= 0 or len(self.text) <= limit
        shown = self.text[place.action : end + len(closing) if end >= 0 else limit]
        one_line = " ".join(shown.split())
        printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in one_line)
        return printable if whole else printable + "..."
