"""The values templates see: those of JSON, with text/template's ideas of truth and equality.

A field that is missing and a field that is None are the same here: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import UnfitError


def kind(value: object) -> str:
    """Name what a value is, for rules and messages.

    Raises:
        UnfitError: it is none of the plain values; nothing about it is read but its type's name.
    """
    if value is None:
        return "nothing"
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    raise UnfitError(
        f"the data has a {type(value).__name__} here",
        "give maps, lists, strings, numbers, booleans and None only",
    )


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "boolean"),  # before int, of which Python makes it a subclass
    (int, "integer"),
    (float, "float"),
    (str, "string"),
    ((list, tuple), "list"),
    (Mapping, "map"),
)


def truth(value: object) -> bool:
    """Go's truth: false, 0, nothing, and an empty string, list or map are false."""
    return bool(value)


def equal(left: object, right: object) -> bool:
    """Go's ``eq``: of one kind only; nothing equals only nothing.

    Raises:
        UnfitError: the kinds differ, or are lists or maps, which Go does not compare.
    """
    if left is None or right is None:
        return left is right
    kinds = kind(left), kind(right)
    if kinds[0] != kinds[1]:
        raise UnfitError(
            f"a comparison of {article(kinds[0])} with {article(kinds[1])}",
            'compare like with like; printf "%v" makes a string of any value',
        )
    if kinds[0] in ("list", "map"):
        raise UnfitError(f"a comparison of two {kinds[0]}s", "compare their fields, or what toJson makes of them")
    return left == right


def article(name: str) -> str:
    """Put the article before a kind's name."""
    return name if name == "nothing" else f"an {name}" if name[0] in "aeiou" else f"a {name}"


def is_character(number: int) -> bool:
    """Whether Unicode has a character of this number: Go's ``utf8.ValidRune``."""
    return 0 <= number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF


def in_64_bits(value: object) -> int:
    """Return the integer.

    Raises:
        UnfitError: it takes more than 64 bits.
    """
    # Go has no larger integer, and Python refuses to print very large ones.
    if not isinstance(value, int) or not -(2**63) <= value < 2**64:
        raise UnfitError("an integer beyond 64 bits", "give it as a string")
    return int(value)
