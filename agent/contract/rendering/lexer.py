"""A template's text as tokens, by the lexical rules of Go's text/template (its ``parse`` package)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from . import literals
from .errors import Place, RenderError, Source, UnfitError

# What Go's lexer calls a space, and what a trim marker removes.
_SPACES = " \t\r\n"
# A minus trims only with a space on its inner side: "{{-3}}" prints the number -3.
_TRIM_BEFORE = tuple("{{-" + space for space in _SPACES)
_TRIM_AFTER = tuple(space + "-}}" for space in _SPACES)


class Kind(Enum):
    """The kinds of token."""

    TEXT = auto()
    OPEN = auto()
    CLOSE = auto()
    SPACE = auto()
    DOT = auto()
    FIELD = auto()
    WORD = auto()
    STRING = auto()
    INTEGER = auto()
    PIPE = auto()
    LEFT = auto()
    RIGHT = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Token:
    """One token; ``value`` is the text, a field's name without its dot, a word, or a literal's value."""

    kind: Kind
    place: Place
    value: str | int = ""


def tokens(source: Source) -> Iterator[Token]:
    """Yield the tokens of a template, one END last. Comments and trimmed space are gone.

    Raises:
        RenderError: at the first thing that is no token, or no token of ours.
    """
    text = source.text
    at = 0
    trims_after = False
    while True:
        start = text.find("{{", at)
        piece = text[at:] if start < 0 else text[at:start]
        if trims_after:
            kept = piece.lstrip(_SPACES)
            at += len(piece) - len(kept)
            piece = kept
        trims_before = start >= 0 and text.startswith(_TRIM_BEFORE, start)
        if trims_before:
            piece = piece.rstrip(_SPACES)
        if piece:
            yield Token(Kind.TEXT, Place(at, at), piece)
        if start < 0:
            yield Token(Kind.END, Place(len(text), len(text)))
            return
        inside = start + (4 if trims_before else 2)
        if text.startswith("/*", inside):
            at, trims_after = _after_comment(source, start, inside)
        else:
            yield Token(Kind.OPEN, Place(start, start))
            at, trims_after = yield from _Action(source, start, inside).tokens()


def _after_comment(source: Source, start: int, inside: int) -> tuple[int, bool]:
    text = source.text
    end = text.find("*/", inside + 2)
    if end < 0:
        raise source.error("a comment that never ends", Place(start, start), "close it with */}}")
    end += 2
    if text.startswith("}}", end):
        return end + 2, False
    if text.startswith(_TRIM_AFTER, end):
        return end + 4, True
    raise source.error(
        "something after a comment", Place(end, start), "end it with */}} or */ -}}; a comment stands alone"
    )


def _in_a_word(character: str) -> bool:
    # Go's letters and digits; \w would take superscripts as well.
    return character == "_" or character.isalpha() or character.isdecimal()


class _Action:
    """The inside of one ``{{ }}``."""

    def __init__(self, source: Source, start: int, inside: int) -> None:
        self._source = source
        self._text = source.text
        self._start = start
        self._at = inside
        self._parentheses = 0

    def tokens(self) -> Generator[Token, None, tuple[int, bool]]:
        """Yield up to and with CLOSE; return the offset after it and whether it trims what follows."""
        text = self._text
        while True:
            if self._at >= len(text):
                raise self._source.error(
                    "an action that never ends",
                    Place(self._start, self._start),
                    "close it with }}; to print {{ itself write {{`{{`}}",
                )
            begin = self._at
            self._skip_spaces()
            trimming = self._at > begin and text.startswith("-}}", self._at)
            if trimming or text.startswith("}}", self._at):
                if self._parentheses:
                    raise self._error("a parenthesis that is not closed", self._at, "add )")
                yield Token(Kind.CLOSE, self._place(self._at))
                return self._at + (3 if trimming else 2), trimming
            if self._at > begin:
                yield Token(Kind.SPACE, self._place(begin))
            elif self._at < len(text):
                yield self._token(text[self._at])

    def _token(self, first: str) -> Token:
        text = self._text
        begin = self._at
        place = self._place(begin)
        if first in "|()":
            self._at += 1
            return self._punctuation(first, place)
        if first in ('"', "`"):
            read = literals.quoted_string if first == '"' else literals.raw_string
            try:
                value, self._at = read(text, begin)
            except UnfitError as unfit:
                raise self._source.error(unfit.problem, place, unfit.next_step) from unfit
            return Token(Kind.STRING, place, value)
        if first == "." and not "0" <= text[begin + 1 : begin + 2] <= "9":
            self._at += 1
            if self._at_terminator():
                return Token(Kind.DOT, place)
            return Token(Kind.FIELD, place, self._word(begin))
        if first in ".+-" or "0" <= first <= "9":
            return self._number(place)
        if _in_a_word(first):
            return Token(Kind.WORD, place, self._word(begin))
        raise self._unsupported(first, begin)

    def _punctuation(self, character: str, place: Place) -> Token:
        if character == "|":
            return Token(Kind.PIPE, place)
        if character == "(":
            self._parentheses += 1
            return Token(Kind.LEFT, place)
        self._parentheses -= 1
        if self._parentheses < 0:
            raise self._error("a ) without its (", place.at, "remove it, or add the (")
        return Token(Kind.RIGHT, place)

    def _word(self, begin: int) -> str:
        start = self._at
        while self._at < len(self._text) and _in_a_word(self._text[self._at]):
            self._at += 1
        if not self._at_terminator():
            raise self._error(
                f'an unexpected "{self._text[self._at]}" after {self._text[begin : self._at][-40:]}',
                self._at,
                "a name has letters, digits and _ only; a param with another name can be written ${NAME}",
            )
        return self._text[start : self._at]

    def _number(self, place: Place) -> Token:
        self._at += 1
        while self._at < len(self._text):
            character = self._text[self._at]
            if character != "." and not _in_a_word(character):
                break
            self._at += 1
        try:
            value = literals.integer(self._text[place.at : self._at])
        except UnfitError as unfit:
            raise self._source.error(unfit.problem, place, unfit.next_step) from unfit
        return Token(Kind.INTEGER, place, value)

    def _skip_spaces(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in _SPACES:
            self._at += 1

    def _at_terminator(self) -> bool:
        # Go's list of what may follow a name, so that .X.Y is two and .X+1 an error.
        following = self._text[self._at : self._at + 1]
        return following in (*_SPACES, "", *".,|:)(") or self._text.startswith("}}", self._at)

    def _place(self, at: int) -> Place:
        return Place(at, self._start)

    def _error(self, problem: str, at: int, next_step: str) -> RenderError:
        return self._source.error(problem, self._place(at), next_step)

    def _unsupported(self, character: str, at: int) -> RenderError:
        if character == "$":
            step = "variables are not supported; write the field itself, as in .Params.NAME"
            return self._error("a variable", at, step)
        if character == "'":
            return self._error("a character constant", at, 'write a string: "x"')
        step = "quote it if it belongs to a string"
        if character == "/":
            step = "a comment stands right behind {{, as in {{/* ... */}}"
        if character in ":=,":
            step = "variables are not supported, so there is nothing to assign"
        return self._error(f'an unexpected "{character}"', at, step)
