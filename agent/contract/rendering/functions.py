"""The functions a template may call: those of text/template, and six of sprig's, with their argument order.

``and`` and ``or`` are here for their argument counts only; they evaluate their own arguments (evaluate.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .errors import UnfitError
from .limits import Meter
from .printing import as_json, printed, quoted
from .values import article, equal, kind, truth

Apply: TypeAlias = Callable[[Sequence[object], Meter], object]


@dataclass(frozen=True, slots=True)
class Function:
    """How many arguments a function takes (``most`` None: any number), and what it makes of them.

    ``apply`` raises UnfitError when an argument is not what the function wants.
    """

    least: int
    most: int | None
    usage: str
    apply: Apply


def _string(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    step = 'use default "..." for what may be missing, or printf "%v" to make a string'
    raise UnfitError(f"{name} wants a string, not {article(kind(value))}", step)


def _eq(arguments: Sequence[object], _meter: Meter) -> bool:
    # In order and no further than the first match: Go does not look at what stands behind it either.
    return any(equal(arguments[0], other) for other in arguments[1:])


def _default(arguments: Sequence[object], _meter: Meter) -> object:
    given = arguments[1:]
    return given[0] if given and truth(given[0]) else arguments[0]


def _quote(arguments: Sequence[object], meter: Meter) -> str:
    return " ".join(quoted(printed(value, "v", meter)) for value in arguments if value is not None)


def _upper(arguments: Sequence[object], _meter: Meter) -> str:
    return "".join(map(_upper_character, _string("upper", arguments[0])))


def _upper_character(character: str) -> str:
    # Go maps one character to one ("ß" stays); Python's upper may give several, its title form then may not.
    for changed in (character.upper(), character.title()):
        if len(changed) == 1:
            return changed
    return character


def _lower(arguments: Sequence[object], _meter: Meter) -> str:
    # One character at a time and to one character, as above: a final sigma stays an ordinary one in Go.
    return "".join(character.lower()[0] for character in _string("lower", arguments[0]))


# Unicode's White_Space, which Go's TrimSpace removes; Python's strip removes four control characters more.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
_WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"


def _trim(arguments: Sequence[object], _meter: Meter) -> str:
    return _string("trim", arguments[0]).strip(_WHITE_SPACE)


def _replace(arguments: Sequence[object], meter: Meter) -> str:
    old, new, text = (_string("replace", argument) for argument in arguments)
    # Paid for before it is made: three short arguments can ask for gigabytes.
    meter.spend(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


_VERB = re.compile(r"%(.?)", re.DOTALL)
_VERBS = "sdvq%"


def check_format(text: str) -> None:
    """Refuse a printf format that has more than ``%s %v %d %q %%``.

    Raises:
        UnfitError: it has a width, a flag, another verb, or a ``%`` at its end.
    """
    for found in _VERB.finditer(text):
        if not found[1] or found[1] not in _VERBS:
            step = "use %s, %v, %d, %q or %%, without widths or flags"
            raise UnfitError(f'a printf format with "{found[0]}"', step)


def _printf(arguments: Sequence[object], meter: Meter) -> str:
    text = _string("printf", arguments[0])
    check_format(text)
    values = iter(arguments[1:])
    wanted = sum(found[1] != "%" for found in _VERB.finditer(text))
    given = len(arguments) - 1
    # Go would print %!s(MISSING) or %!(EXTRA ...) into the command.
    if wanted != given:
        problem = f"a printf whose format takes {wanted} values but gets {given}"
        raise UnfitError(problem, "give one value for each verb")
    pieces: list[str] = []
    end = 0
    for found in _VERB.finditer(text):
        pieces.append(text[end : found.start()])
        pieces.append("%" if found[1] == "%" else printed(next(values), found[1], meter))
        end = found.end()
    return "".join((*pieces, text[end:]))


def _lazy(arguments: Sequence[object], _meter: Meter) -> object:
    raise NotImplementedError("and, or: the evaluator has their rule")


FUNCTIONS: dict[str, Function] = {
    "and": Function(1, None, "and VALUE...", _lazy),
    "default": Function(1, None, "default DEFAULT VALUE", _default),
    "eq": Function(2, None, "eq VALUE OTHER...", _eq),
    "lower": Function(1, 1, "lower STRING", _lower),
    "ne": Function(2, 2, "ne VALUE OTHER", lambda arguments, _: not equal(*arguments)),
    "not": Function(1, 1, "not VALUE", lambda arguments, _: not truth(arguments[0])),
    "or": Function(1, None, "or VALUE...", _lazy),
    "printf": Function(1, None, "printf FORMAT VALUE...", _printf),
    "quote": Function(0, None, "quote VALUE...", _quote),
    "replace": Function(3, 3, "replace OLD NEW STRING", _replace),
    "toJson": Function(1, 1, "toJson VALUE", lambda arguments, meter: as_json(arguments[0], meter)),
    "trim": Function(1, 1, "trim STRING", _trim),
    "upper": Function(1, 1, "upper STRING", _upper),
}

SUPPORTED = "supported: " + ", ".join(FUNCTIONS) + "; if, else, with, end; fields such as .Params.NAME"
"""The next step for whoever used something else."""
