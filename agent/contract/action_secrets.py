"""What of a trigger must not be seen in what is said of it: who names a password in a hook names it to us, too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import parse_qsl

from agent.contract.actions import Action, HttpGetAction, HttpPostAction
from agent.contract.messages import Trigger
from agent.contract.redaction import Redactor
from agent.contract.secret_names import inside, looks_secret, secrets_of

#: A header's value often begins with a word that is none of the secret (RFC 9110, section 11.4).
_SCHEMES = ("basic ", "bearer ", "digest ", "token ", "apikey ")


def redactor_of(trigger: Trigger) -> Redactor:
    """Knows the secrets that a trigger itself tells: for logs and the audit, where nothing else of it is said."""
    found: list[bytes] = []
    if trigger.action is not None:
        found += secrets_of_action(trigger.action)
    if trigger.hook is not None:
        found += secrets_of_params(trigger.hook.params)
    return Redactor(found)


def secrets_of_params(params: Mapping[str, str]) -> list[bytes]:
    """Values of a catalogue hook's parameters whose names look secret."""
    return [secret for name, value in params.items() for secret in _named(name, value)]


def secrets_of_action(action: Action) -> list[bytes]:
    """Values with a secret's name in variables, `--name=value` arguments, headers, queries and forms; and userinfo."""
    found: list[bytes] = []
    if action.exec_ is not None:
        found += _of_argv(action.exec_.command)
        for variable in action.exec_.env or []:
            found += _named(variable.name, variable.value)
    for request in (action.http_get, action.http_post):
        if request is not None:
            found += _of_request(request)
    return found


def _of_argv(argv: Sequence[str]) -> Iterator[bytes]:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        yield from inside(_bytes(argument))
        name, equals, value = argument.partition("=")
        if equals and " " not in name:
            yield from _named(name, value)
        elif argument.startswith("--") and not following.startswith("-"):
            yield from _named(argument, following)


def _of_request(request: HttpGetAction) -> Iterator[bytes]:
    for header in request.http_headers:
        yield from _named(header.name, header.value)
        lower = header.value.lower()
        if looks_secret(_bytes(header.name)):
            yield from (_bytes(header.value[len(each) :].strip()) for each in _SCHEMES if lower.startswith(each))
    yield from _named_pairs(parse_qsl(request.path.partition("?")[2], keep_blank_values=True))
    if isinstance(request, HttpPostAction):
        yield from _named_pairs((field.key, value) for field in request.form for value in field.values)
        yield from inside(_bytes(request.body))


def _named_pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    for name, value in pairs:
        yield from _named(name, value)


def _named(name: str, value: str) -> list[bytes]:
    return secrets_of(_bytes(name), _bytes(value))


def _bytes(text: str) -> bytes:
    """As the kernel gets it; half a surrogate pair that no file system knows is nothing that could be printed."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode(errors="replace")
