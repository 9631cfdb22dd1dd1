"""Named hooks with typed parameters: a name and values in, an action out.

A parameter fills a place *inside* one element of a command, one piece of a path, one value of a form or one string of
a JSON body. What it holds is never read again: not by a shell, not as a placeholder, not as another element.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import quote

from pydantic import ValidationError

from agent.contract.actions import Action
from agent.contract.errors import ErrorCode, Refusal
from agent.sidecar.policy.params import Param

#: `${name}`; `$${` is a literal `${`.
_PLACEHOLDER = re.compile(r"\$\$\{|\$\{([^}]*)\}")
#: Programs that read an argument as shell text.
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "fish", "busybox", "su", "runuser", "eval"})
#: Options that shells, `su` and `env` take text by: -c, -lc, --command, -S.
_TEXT_OPTION = re.compile(r"-[A-Za-z]*[cS][A-Za-z]*|--(command|split-string)(=.*)?", re.DOTALL)
_SHELL_TEXT = (
    "is shell text, and parameters never become that; pass the value as an argument instead: "
    """[sh, -c, 'dump "$1"', sh, "${database}"]"""
)

Place: TypeAlias = tuple[int | str, ...]
Finding: TypeAlias = tuple[Place, str]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a parameter's value goes."""

    name: str


Pieces: TypeAlias = tuple[str | Slot, ...]


@functools.lru_cache(maxsize=4096)
def pieces_of(text: str) -> Pieces:
    """A text cut at its placeholders."""
    found: list[str | Slot] = []
    at = 0
    for match in _PLACEHOLDER.finditer(text):
        literal = text[at : match.start()]
        if match[1] is None:
            literal += "${"
        found += [literal] if literal else []
        found += [Slot(match[1])] if match[1] is not None else []
        at = match.end()
    return (*found, text[at:]) if text[at:] else tuple(found)


def slots(pieces: Pieces) -> list[str]:
    """The parameters that a text uses."""
    return [piece.name for piece in pieces if isinstance(piece, Slot)]


def texts(action: Mapping[Any, Any], path: Place = ()) -> Iterator[tuple[Place, str]]:
    """Every text in an action as it was written (camelCase), with its place."""
    items: Iterator[tuple[int | str, Any]] = iter(action.items())
    for key, value in items:
        yield from _texts_of(value, (*path, key))


def _texts_of(value: Any, path: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        yield from texts(value, path)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _texts_of(each, (*path, index))


def takes_params(place: Place) -> bool:
    """Whether parameters may stand at a place of an action."""
    match place:
        case ("exec", "command", int()) | (("httpGet" | "httpPost"), "path"):
            return True
        case ("httpPost", "body") | ("httpPost", "form", int(), "values", int()):
            return True
    return False


def problems_of(action: Mapping[Any, Any], params: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with the placeholders of a catalogue hook's action, as it was written."""
    used: set[str] = set()
    for place, text in texts(action):
        names = slots(pieces_of(text))
        used.update(names)
        if not names:
            continue
        if not takes_params(place):
            yield place, "parameters may stand only in elements of exec.command, and in path, form values and body"
        for name in dict.fromkeys(names):
            if name not in params:
                yield place, f"there is no parameter {name[:60]!r}{_near(name, params)}; a literal ${{ is written $${{"
        if place == ("exec", "command", 0):
            yield place, "names the program, and that is fixed: put parameters into the other elements"
    for name in params:
        if name not in used:
            yield (
                (),
                f"parameter {str(name)[:60]!r} is not used in the action; use it as ${{{str(name)[:60]}}} or remove it",
            )
    yield from _shell_texts(action)
    body = _of(_of(action, "httpPost"), "body", "")
    if isinstance(body, str) and slots(pieces_of(body)) and not _of(_of(action, "httpPost"), "form", []):
        try:
            json.loads(_sample(body, params))
        except (ValueError, RecursionError):
            yield ("httpPost", "body"), 'with parameters it must be JSON, texts in quotes: {"database": "${database}"}'


def _shell_texts(action: Mapping[Any, Any]) -> Iterator[Finding]:
    command = _of(_of(action, "exec"), "command", [])
    if not isinstance(command, list) or not all(isinstance(each, str) for each in command):
        return
    shell, text_next = False, False
    for index, element in enumerate(command):
        has_param = bool(slots(pieces_of(element)))
        option = _TEXT_OPTION.fullmatch(element)
        is_text = text_next and not element.startswith("-")
        if has_param and shell and (is_text or (option is not None and "=" in element)):
            yield ("exec", "command", index), _SHELL_TEXT
        text_next = (text_next and not is_text) or (shell and option is not None)
        shell = shell or PurePosixPath(element).name in _SHELLS | {"env"}


def _of(part: Any, name: str, otherwise: Any = None) -> Any:
    value = part.get(name) if isinstance(part, Mapping) else None
    return ({} if otherwise is None else otherwise) if value is None else value


def _sample(body: str, params: Mapping[str, Any]) -> str:
    def value(name: str) -> str:
        param = params.get(name)
        kind = param.get("type") if isinstance(param, Mapping) else getattr(param, "type", None)
        return {"integer": "1", "boolean": "true"}.get(str(kind), "x")

    return "".join(piece if isinstance(piece, str) else value(piece.name) for piece in pieces_of(body))


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name[:80], [str(each) for each in known], n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f" (has: {', '.join(str(each) for each in list(known)[:20]) or 'none'})"


@dataclass(frozen=True, slots=True)
class CatalogueHook:
    """One hook of the catalogue. `template` is its action with placeholders, camelCase."""

    name: str
    params: Mapping[str, Param]
    template: Mapping[str, Any]

    @property
    def rule(self) -> str:
        """How decisions name it."""
        return f"catalogue.{self.name}"

    def fill(self, values: Mapping[str, str]) -> Action:
        """The action with these values; a command has exactly as many elements as the catalogue says.

        Values are in no message: they may be credentials.

        Raises:
            Refusal: a parameter is unknown, missing, or not what it is declared to be; says all of it.
        """
        problems = [
            f"param {name[:60]!r} is unknown{_near(name, self.params)}" for name in values if name not in self.params
        ]
        taken: dict[str, str] = {}
        for name, param in self.params.items():
            value = values.get(name)
            if value is None and param.text_default is None:
                problems.append(f"param {name!r} is required ({param.expects()})")
                continue
            taken[name] = text = param.text_default or "" if value is None else value
            if (why := param.why_not(text)) is not None:
                problems.append(f"param {name!r} {why}")
        if problems:
            raise self._refusal("; ".join(problems[:20]))
        document = self._filled(dict(self.template), taken, ())
        try:
            return Action.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            raise self._refusal(f"with these parameters {where} cannot be used: {first['type']}") from None

    def _refusal(self, why: str) -> Refusal:
        return Refusal(ErrorCode.INVALID_PARAMS, f"{self.rule}: {why}", self.rule)

    def _filled(self, part: Any, values: Mapping[str, str], place: Place) -> Any:
        if isinstance(part, str):
            return self._text(part, values, place)
        if isinstance(part, Mapping):
            return {key: self._filled(value, values, (*place, key)) for key, value in part.items()}
        if isinstance(part, list):
            return [self._filled(each, values, (*place, index)) for index, each in enumerate(part)]
        return part

    def _text(self, text: str, values: Mapping[str, str], place: Place) -> str:
        pieces = pieces_of(text)
        if not slots(pieces):
            return "".join(str(piece) for piece in pieces)
        escape = _escape(place)
        filled = [(piece, piece) if isinstance(piece, str) else (piece, escape(values[piece.name])) for piece in pieces]
        done = "".join(written for _, written in filled)
        first = next((piece for piece, written in filled if written), "")
        dash = place[0] == "exec" and done.startswith("-")
        if dash and isinstance(first, Slot) and not self.params[first.name].may_begin_with_dash:
            raise self._refusal(
                f"param {first.name!r} begins an argument with '-', so a program may take it for an option; "
                "declare leadingDash: true if that is meant"
            )
        if place[-1] == "path" and _climbs(done):
            raise self._refusal(f"with these parameters {'.'.join(map(str, place))} has a . or .. segment")
        return done


def _escape(place: Place) -> Any:
    """How a value is written at a place."""
    if place[-1] == "path":
        return lambda value: quote(value, safe="")
    if place[-1] == "body":
        return lambda value: json.dumps(value)[1:-1]
    return str  # an element is an element; a form's values are encoded when it is sent


def _climbs(path: str) -> bool:
    return any(segment in {".", ".."} for segment in path.partition("?")[0].split("/"))
