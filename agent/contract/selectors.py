"""Label selectors in all of Kubernetes' forms: `a=b,c!=d,e in (x, y),f notin (z),g,!h`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.contract.errors import BadInput

_KEY = re.compile(r"(?:[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_SET = re.compile(r"(?P<key>\S+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)")
MAX_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a selector. `values` is empty for `exists` and `!exists`."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels satisfy it. As in Kubernetes, `!=` and `notin` also match an absent key."""
        present = self.key in labels
        if self.operator == "exists":
            return present
        if self.operator == "!exists":
            return not present
        inside = present and labels[self.key] in self.values
        return inside if self.operator == "in" else not inside


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector; all its requirements must hold. An empty one matches everything."""

    requirements: tuple[Requirement, ...]
    text: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a pod with these labels is selected."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return self.text


def parse_selector(text: str) -> Selector:
    """Parse a selector; spaces are allowed around every part.

    Raises:
        BadInput: naming the part that cannot be read and the forms that can.
    """
    if len(text) > MAX_CHARACTERS:
        raise BadInput(f"selector of {len(text)} characters is too long; the limit is {MAX_CHARACTERS}")
    return Selector(tuple(_requirement(part, text) for part in _split(text)), text)


def _split(text: str) -> list[str]:
    """Split at commas outside parentheses; an empty text has no parts, an empty part is an error."""
    if not text.strip():
        return []
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    return parts


def _requirement(part: str, text: str) -> Requirement:
    if matched := _SET.fullmatch(part):
        values = [value.strip() for value in matched["values"].split(",")]
        return _checked(matched["key"], matched["op"], values, part, text)
    if part.startswith("!"):
        return _checked(part[1:].strip(), "!exists", [], part, text)
    for sign, operator in (("!=", "notin"), ("==", "in"), ("=", "in")):
        key, found, value = part.partition(sign)
        if found:
            return _checked(key.strip(), operator, [value.strip()], part, text)
    return _checked(part, "exists", [], part, text)


def _checked(key: str, operator: str, values: list[str], part: str, text: str) -> Requirement:
    if not _KEY.fullmatch(key) or not all(_VALUE.fullmatch(value) for value in values):
        raise BadInput(
            f"cannot read {part[:80]!r} in selector {text[:160]!r}; "
            "write a=b, a!=b, a in (x,y), a notin (x,y), a or !a, separated by commas"
        )
    return Requirement(key, operator, frozenset(values))
