"""What is wrong with a document, in the words of the person who wrote it: pydantic's errors as problems."""

from __future__ import annotations

import difflib
import types
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from agent.contract.documents import shown
from agent.contract.errors import Problem

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

#: What pydantic calls it -> what a value should have been, and what to do.
_WANTED = {
    "string_type": "not a string; put it in quotes",
    "bool_type": "not a boolean; write true or false without quotes",
    "list_type": "not a list; begin each item with '- '",
    "dict_type": "not a mapping; write its fields as name: value",
    "model_type": "not a mapping; write its fields as name: value",
}


def explain(model: type[BaseModel], error: ValidationError) -> list[Problem]:
    """Turn every error of reading a document as `model` into a problem with its path and the next step."""
    return [_problem(model, detail) for detail in error.errors(include_url=False)]


def type_name(value: object) -> str:
    """Name the type of a YAML value."""
    names = {dict: "mapping", list: "list", str: "text", int: "number", float: "number", bool: "boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _problem(model: type[BaseModel], detail: ErrorDetails) -> Problem:
    path = _path(detail["loc"])
    value = detail.get("input")
    kind = detail["type"]
    if kind == "extra_forbidden":
        return Problem(path, f"unknown field; {_nearest(model, detail['loc'])}")
    if kind == "missing":
        return Problem(path, "is required")
    if kind == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        about_value = message.startswith(("is ", "has ")) and not isinstance(value, dict | BaseModel)
        return Problem(path, f"{shown(value)} {message}" if about_value else message)
    if kind == "literal_error":
        options = str(detail.get("ctx", {}).get("expected", ""))
        near = difflib.get_close_matches(str(value), options.replace("'", "").replace(" or ", ", ").split(", "), n=1)
        return Problem(
            path, f"{shown(value)} is not one of {options}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if kind in _WANTED:
        return Problem(path, f"{shown(value)} is a {type_name(value)}, {_WANTED[kind]}")
    if kind in ("too_short", "string_too_short"):
        return Problem(path, "is empty; give it a value")
    return Problem(path, f"{shown(value)}: {detail['msg']}")


def _nearest(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    known = _known_fields(model, loc[:-1])
    near = difflib.get_close_matches(str(loc[-1])[:80], known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(known)}"


def _known_fields(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The field names (as written in YAML) of the model at `loc`."""
    present: type[BaseModel] = model
    steps = iter(loc)
    for step in steps:
        if isinstance(step, int):
            continue
        field = next((f for n, f in present.model_fields.items() if step in (n, f.alias)), None)
        inner = _model_of(field.annotation) if field is not None else None
        if inner is None:
            return []
        present = inner
        if field is not None and get_origin(_bare(field.annotation)) is dict:
            next(steps, None)  # the entry's own name
    return [field.alias or name for name, field in present.model_fields.items()]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list, dict, Annotated):
        return next((found for part in get_args(annotation) if (found := _model_of(part))), None)
    return None


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _path(loc: tuple[int | str, ...]) -> str:
    text = ""
    for step in loc:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step[:80]}" if text else step[:80]
    return text
