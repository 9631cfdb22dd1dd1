"""Values as text: by Go's fmt for the verbs ``%s %v %d %q``, and by its encoding/json.

Every rule is the one Go has for nil, bool, int, float64, string, []any and map[string]any.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from .errors import UnfitError
from .limits import MAX_DEPTH, Meter
from .values import article, in_64_bits, is_character, kind


def printed(value: object, verb: str, meter: Meter) -> str:
    """Print a value as Go's fmt does for ``%s``, ``%v``, ``%d`` or ``%q``; ``verb`` is the letter.

    Raises:
        UnfitError: the verb is not for this value (Go would print ``%!d(string=...)``), or a limit is passed.
    """
    return _joined(_printed(value, verb, MAX_DEPTH), meter)


def _joined(pieces: Iterator[str], meter: Meter) -> str:
    # Piece by piece, because a value that holds another one twice, and so on, prints as gigabytes.
    kept = []
    for piece in pieces:
        meter.spend(len(piece))
        kept.append(piece)
    return "".join(kept)


def _printed(value: object, verb: str, depth: int) -> Iterator[str]:
    if depth < 0:
        raise UnfitError(f"a value nested deeper than {MAX_DEPTH}", "print one of its fields")
    if isinstance(value, (list, tuple)):
        yield "["
        for index, item in enumerate(value):
            if index:
                yield " "
            yield from _element(item, verb, depth)
        yield "]"
    elif isinstance(value, Mapping):
        yield "map["
        for index, key in enumerate(_sorted_keys(value)):
            if index:
                yield " "
            yield from _printed(key, verb, depth - 1)
            yield ":"
            yield from _element(value[key], verb, depth)
        yield "]"
    else:
        yield _printed_scalar(value, verb)


def _printed_scalar(value: object, verb: str) -> str:
    name = kind(value)
    if isinstance(value, str) and verb in "svq":
        return quoted(value) if verb == "q" else str.__str__(value)
    if name == "integer" and verb in "vdq":
        number = in_64_bits(value)
        return quoted(_character(number), "'") if verb == "q" else str(number)
    if verb != "v":
        step = "%v prints any value; default replaces one that is missing"
        raise UnfitError(f"%{verb} for {article(name)}", step)
    if isinstance(value, bool):
        return "true" if value else "false"
    return _float(value, low=-4, high=6) if isinstance(value, float) else "<nil>"


def _element(value: object, verb: str, depth: int) -> Iterator[str]:
    # Inside a list or map Go prints a nil as <nil> under every verb.
    return iter(("<nil>",)) if value is None else _printed(value, verb, depth - 1)


def _sorted_keys(value: Mapping[object, object]) -> list[str]:
    keys = [key for key in value if isinstance(key, str)]
    if len(keys) != len(value):
        raise UnfitError("the data has a map with a key that is no string", "use strings as keys")
    return sorted(keys)


def _character(number: int) -> str:
    return chr(number) if is_character(number) else "\N{REPLACEMENT CHARACTER}"


_NAMED_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}


def quoted(text: str, mark: str = '"') -> str:
    """Quote as Go's ``%q`` does: a Go literal of printable characters."""
    return mark + "".join(_quoted_character(c, mark) for c in text) + mark


def _quoted_character(character: str, mark: str) -> str:
    if character in (mark, "\\"):
        return "\\" + character
    if character.isprintable():
        return character
    if character in _NAMED_ESCAPES:
        return _NAMED_ESCAPES[character]
    number = ord(character)
    if number < 0x20 or number == 0x7F:
        return f"\\x{number:02x}"
    if not is_character(number):
        return r"\ufffd"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _float(value: float, low: int, high: int, exponent_digits: int = 2) -> str:
    """Go's shortest form: an exponent below ``low`` or from ``high`` on is written with ``e``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    # repr has the fewest digits that read back as the same number, as Go's shortest form has.
    mantissa, _, power = float.__repr__(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(power or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    sign = "-" if math.copysign(1, value) < 0 else ""
    if not digits:
        return sign + "0"
    exponent = point - 1
    if low <= exponent < high:
        padded = digits.ljust(point, "0") if point > 0 else "0" * (1 - point) + digits
        cut = max(point, 1)
        return sign + padded[:cut] + ("." + padded[cut:] if padded[cut:] else "")
    tail = "." + digits[1:] if digits[1:] else ""
    return f"{sign}{digits[0]}{tail}e{'-' if exponent < 0 else '+'}{abs(exponent):0{exponent_digits}d}"


def as_json(value: object, meter: Meter) -> str:
    """Write compact JSON as Go's encoding/json does: keys sorted, ``<``, ``>`` and ``&`` escaped.

    Raises:
        UnfitError: JSON has no such value, or a limit is passed.
    """
    return _joined(_json(value, MAX_DEPTH), meter)


def _json(value: object, depth: int) -> Iterator[str]:
    kind(value)
    if depth < 0:
        raise UnfitError(f"a value nested deeper than {MAX_DEPTH}", "print one of its fields")
    if isinstance(value, str):
        yield _json_string(value)
    elif isinstance(value, (list, tuple)):
        yield "["
        for index, item in enumerate(value):
            if index:
                yield ","
            yield from _json(item, depth - 1)
        yield "]"
    elif isinstance(value, Mapping):
        yield "{"
        for index, key in enumerate(_sorted_keys(value)):
            yield ("," if index else "") + _json_string(key) + ":"
            yield from _json(value[key], depth - 1)
        yield "}"
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UnfitError("a float that JSON cannot hold (NaN or infinite)", "give it as a string")
        yield _float(value, low=-6, high=21, exponent_digits=1 if abs(value) < 1 else 2)
    elif value is None or isinstance(value, bool):
        yield "null" if value is None else "true" if value else "false"
    else:
        yield str(in_64_bits(value))


# Go escapes what HTML or JavaScript would read; a consumer sees the same characters.
_JSON_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def _json_string(text: str) -> str:
    return json.dumps(str.__str__(text), ensure_ascii=False).translate(_JSON_ESCAPES)
