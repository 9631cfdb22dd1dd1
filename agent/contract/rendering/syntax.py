"""What a template is once it is parsed. Nothing here knows how it is written or what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .errors import Place, Source


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, an integer, ``true``, ``false`` or ``nil`` (None)."""

    value: str | int | bool | None
    place: Place


@dataclass(frozen=True, slots=True)
class Path:
    """Fields of dot, or of a parenthesized pipeline; without names it is dot itself."""

    base: Pipeline | None
    names: tuple[str, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Call:
    """A function and its arguments, without the one that a pipeline adds."""

    name: str
    arguments: tuple[Expression, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages, each but the first a Call that gets the value before it as its last argument."""

    first: Expression
    rest: tuple[Call, ...]
    place: Place


Expression: TypeAlias = Literal | Path | Call | Pipeline


@dataclass(frozen=True, slots=True)
class Text:
    """What stands outside the actions, already trimmed."""

    value: str
    place: Place


@dataclass(frozen=True, slots=True)
class Output:
    """An action that prints its value."""

    pipeline: Pipeline
    place: Place


@dataclass(frozen=True, slots=True)
class If:
    """``if`` with its ``else if``s: the first true condition's body, else ``otherwise``."""

    branches: tuple[tuple[Pipeline, tuple[Node, ...]], ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class With:
    """``with``: the body with dot set to the value if that is true, else ``otherwise`` with dot as it was."""

    pipeline: Pipeline
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


Node: TypeAlias = Text | Output | If | With


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template, with its text for the errors that only data can bring out."""

    source: Source
    nodes: tuple[Node, ...]
