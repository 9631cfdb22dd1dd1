"""Literals as the Go language specification writes them: interpreted strings, raw strings, integers."""

from __future__ import annotations

import re

from .errors import UnfitError
from .values import is_character

_QUOTED = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
_ESCAPE = re.compile(
    r'\\(?:(?P<plain>[abfnrtv\\"])|x(?P<byte>[0-9a-fA-F]{2})|(?P<octal>[0-7]{3})'
    r"|u(?P<short>[0-9a-fA-F]{4})|U(?P<long>[0-9a-fA-F]{8}))"
)
_PLAIN = {
    "a": b"\a",
    "b": b"\b",
    "f": b"\f",
    "n": b"\n",
    "r": b"\r",
    "t": b"\t",
    "v": b"\v",
    "\\": b"\\",
    '"': b'"',
}
_INTEGER = re.compile(
    r"(?P<sign>[+-]?)(?:0[xX](?P<hex>(?:_?[0-9a-fA-F])+)|0[bB](?P<binary>(?:_?[01])+)"
    r"|0[oO]?(?P<octal>(?:_?[0-7])+)|(?P<decimal>0|[1-9](?:_?[0-9])*))"
)
_BASES = {"hex": 16, "binary": 2, "octal": 8, "decimal": 10}
# Python refuses to convert very long digits; no 64-bit integer needs this many, zeros in front included.
_INTEGER_CHARACTERS = 100


def quoted_string(text: str, start: int) -> tuple[str, int]:
    """Read the double-quoted string that begins at ``start``: its value, and the offset after it.

    Raises:
        UnfitError: it does not end on its line, has an escape Go does not have, or is not UTF-8.
    """
    found = _QUOTED.match(text, start)
    if found is None:
        raise UnfitError(
            "a quoted string that does not end on its line",
            'close it with ", or use `...` for several lines',
        )
    body = text[start + 1 : found.end() - 1]
    if "\\" not in body:
        return body, found.end()
    # Bytes, because Go's \x and octal escapes name bytes: "\xc3\xa9" is one character.
    value = bytearray()
    at = 0
    while (slash := body.find("\\", at)) >= 0:
        value += body[at:slash].encode()
        escape = _ESCAPE.match(body, slash)
        if escape is None:
            raise UnfitError(f"an unknown escape {body[slash : slash + 2]}", _ESCAPES_OF_GO)
        value += _escaped(escape)
        at = escape.end()
    value += body[at:].encode()
    try:
        return value.decode(), found.end()
    except UnicodeDecodeError:
        raise UnfitError("a string whose escapes are not UTF-8", r"write characters as \u00e9") from None


_ESCAPES_OF_GO = r"Go has \a \b \f \n \r \t \v \\ \" \xHH \ooo \uHHHH \UHHHHHHHH; in `...` a backslash is itself"


def _escaped(escape: re.Match[str]) -> bytes:
    if plain := escape["plain"]:
        return _PLAIN[plain]
    if escape["byte"]:
        return bytes([int(escape["byte"], 16)])
    if escape["octal"]:
        number = int(escape["octal"], 8)
        if number <= 0xFF:
            return bytes([number])
    else:
        number = int(escape["short"] or escape["long"], 16)
        if is_character(number):
            return chr(number).encode()
    raise UnfitError(f"an escape {escape[0]} that names no character", _ESCAPES_OF_GO)


def raw_string(text: str, start: int) -> tuple[str, int]:
    """Read the back-quoted string that begins at ``start``: its value, and the offset after it.

    As in Go, nothing in it is an escape and carriage returns are dropped.

    Raises:
        UnfitError: it never ends.
    """
    end = text.find("`", start + 1)
    if end < 0:
        raise UnfitError("a raw string that never ends", "close it with `")
    return text[start + 1 : end].replace("\r", ""), end + 1


def integer(text: str) -> int:
    """Read a whole integer literal (decimal, 0x, 0b, 0o or a leading 0 for octal, ``_`` between digits).

    Raises:
        UnfitError: it is another kind of number, or does not fit in 64 bits.
    """
    found = _INTEGER.fullmatch(text) if len(text) <= _INTEGER_CHARACTERS else None
    if found is None:
        problem = f"a number {text[:20]} that is not an integer"
        raise UnfitError(problem, "write an integer, or quote it as a string")
    base = next(name for name in _BASES if found[name] is not None)
    value = int(found["sign"] + found[base].replace("_", ""), _BASES[base])
    if not -(2**63) <= value < 2**63:
        raise UnfitError(f"an integer {text[:20]} beyond 64 bits", "quote it as a string")
    return value
