"""The parameters of a catalogue hook: what values they take, and how values are checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, StrictBool, StrictInt, StrictStr

from agent.contract.actions import Finding, Strict
from agent.sidecar.policy.patterns import Pattern

#: Of a text, unless `maxLength` says less or more. An argument of a command is rarely longer.
DEFAULT_MAX_LENGTH = 256
#: No parameter is longer, whatever its policy says.
MAX_LENGTH = 4096
MAX_VALUES = 200
#: What a 64-bit program can read.
_LEAST, _MOST = -(2**63), 2**63 - 1
_MAX_DIGITS = 20
#: One spelling a number: `007` is 7 to one program and octal to another.
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
#: Field -> the types that have it.
_FIELDS = {
    "pattern": ("string",),
    "maxLength": ("string",),
    "values": ("enum",),
    "minimum": ("integer",),
    "maximum": ("integer",),
    "leadingDash": ("string", "integer"),
}


def _pattern(text: str) -> str:
    Pattern(text)
    return text


class Param(Strict):
    """One parameter. It is required unless it has a default."""

    type: Literal["string", "enum", "integer", "boolean"]
    description: str = ""
    required: bool | None = None
    default: StrictStr | StrictInt | StrictBool | None = None
    pattern: Annotated[str, AfterValidator(_pattern)] | None = None
    max_length: Annotated[int, Field(ge=0, le=MAX_LENGTH)] = DEFAULT_MAX_LENGTH
    values: Annotated[list[str], Field(min_length=1, max_length=MAX_VALUES)] | None = None
    minimum: int = _LEAST
    maximum: int = _MOST
    leading_dash: bool = False
    _compiled: Pattern | None = PrivateAttr(default=None)

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Fields that belong to the type; a default that the parameter itself would take."""
        kind = written.get("type")
        for name, kinds in _FIELDS.items():
            if isinstance(kind, str) and name in written and kind not in kinds:
                yield (name,), f"belongs to {' and '.join(kinds)} only; remove it or change the type"
        if kind == "string" and written.get("pattern") is None:
            yield ("pattern",), "is required for a string: say what the whole value looks like, such as [a-z0-9_]+"
        if kind == "enum" and written.get("values") is None:
            yield ("values",), "is required for an enum: list what may be given"
        least, most = written.get("minimum"), written.get("maximum")
        if isinstance(least, int) and isinstance(most, int) and least > most:
            yield ("minimum",), f"is above maximum ({most}); no number fits"
        has_default = written.get("default") is not None
        if written.get("required") is True and has_default:
            yield ("required",), "has a default beside it, so nobody has to give it; remove one of them"
        if written.get("required") is False and not has_default:
            yield ("required",), "is false, and there is no default; give one"

    def model_post_init(self, _: Any) -> None:
        """Compile the pattern once; judging happens for every trigger."""
        self._compiled = Pattern(self.pattern) if self.pattern is not None else None

    @property
    def text_default(self) -> str | None:
        """The default as a value that was given; None when there is none."""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return None if self.default is None else str(self.default)

    @property
    def may_begin_with_dash(self) -> bool:
        """Whether a value may begin an argument with `-`: said so, or every value was listed by the author."""
        return self.leading_dash or self.type == "enum"

    def why_not(self, value: str) -> str | None:
        """Why a value cannot be taken; None when it can. The value itself is not in the sentence."""
        try:
            value.encode()
        except UnicodeEncodeError:
            return "is no text that could be sent (half a surrogate pair)"
        if self.type == "enum":
            return None if value in (self.values or ()) else f"is not one of {', '.join((self.values or [])[:20])}"
        if self.type == "boolean":
            return None if value in {"true", "false"} else "is neither true nor false"
        if self.type == "integer":
            return self._why_no_integer(value)
        if len(value) > self.max_length:
            return f"has {len(value)} characters; the limit is {self.max_length}"
        if "\0" in value:
            return "has a NUL character, which no argument can hold"
        assert self._compiled is not None
        return None if self._compiled.matches(value) else f"does not match {self.pattern} as a whole"

    def _why_no_integer(self, value: str) -> str | None:
        if len(value) > _MAX_DIGITS or not _INTEGER.fullmatch(value):
            return "is not an integer (digits only, without leading zeros)"
        if not self.minimum <= int(value) <= self.maximum:
            return f"is out of range ({self.minimum} to {self.maximum})"
        return None

    def expects(self) -> str:
        """What a value looks like, for people."""
        if self.type == "enum":
            return f"one of {', '.join((self.values or [])[:20])}"
        if self.type == "integer":
            low = "" if self.minimum == _LEAST else f" from {self.minimum}"
            high = "" if self.maximum == _MOST else f" to {self.maximum}"
            return f"integer{low}{high}"
        if self.type == "boolean":
            return "true or false"
        return f"text like {self.pattern}, at most {self.max_length} characters"
