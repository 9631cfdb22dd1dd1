"""Patterns of parameters: matched in full and in linear time, whatever pattern and value are.

Python's `re` takes years for `(a+)+b` and thirty letters. pydantic's own engine (Rust's regex crate) never goes back,
and knows therefore no look-around and no back-references.
"""

from __future__ import annotations

from pydantic_core import SchemaError, SchemaValidator, ValidationError, core_schema

MAX_PATTERN_CHARS = 512


class Pattern:
    """A pattern that a whole value must match."""

    __slots__ = ("_validator", "text")

    def __init__(self, text: str) -> None:
        """Compile it. Raises ValueError for what is no pattern."""
        if len(text) > MAX_PATTERN_CHARS:
            raise ValueError(f"has {len(text)} characters; the limit is {MAX_PATTERN_CHARS}")
        self.text = text
        _compiled(text)  # alone: `a)|(b` must not become one by what is put around it
        self._validator = _compiled(rf"\A(?:{text})\z")

    def matches(self, value: str) -> bool:
        """Whether the whole value matches."""
        try:
            self._validator.validate_python(value)
        except ValidationError:
            return False
        return True


def _compiled(text: str) -> SchemaValidator:
    try:
        return SchemaValidator(core_schema.str_schema(pattern=text, regex_engine="rust-regex", strict=True))
    except SchemaError as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("error: ")
        raise ValueError(
            f"is not a pattern: {reason} (syntax of Rust's regex crate: no look-around, no back-references)"
        ) from error
