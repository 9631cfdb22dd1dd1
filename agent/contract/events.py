"""CloudEvents 1.0, structured JSON (`application/cloudevents+json`): every payload is one.

Opening reads the type first, then validates the whole once. What cannot be opened raises an error that names
what is wrong; nothing else ever comes out of here, whatever the bytes are.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from agent.contract.errors import MalformedMessage, UnknownType
from agent.contract.messages import MESSAGES, Message
from agent.contract.strict_json import parse

CONTENT_TYPE = "application/cloudevents+json"
_TYPE = re.compile(r"(?P<kind>[a-z0-9.-]+)\.v(?P<major>[0-9]{1,4})")

D = TypeVar("D", bound=Message)


class Event(BaseModel, Generic[D]):
    """The envelope: CloudEvents' context attributes around one message."""

    model_config = ConfigDict(extra="allow", frozen=True)

    specversion: Literal["1.0"]
    id: Annotated[str, Field(min_length=1, max_length=256)]
    source: Annotated[str, Field(min_length=1, max_length=1024)]
    type: Annotated[str, Field(max_length=256)]
    time: AwareDatetime
    datacontenttype: Literal["application/json"] = "application/json"
    #: Extension attributes: the key that signs it, for whom (`namespace/pod/pod uid`), until when. Signed commands have
    #: all three; without the first, somebody else could sign the very same event and be taken for its author.
    issuer: Annotated[str, Field(max_length=64)] | None = None
    audience: Annotated[str, Field(max_length=1024)] | None = None
    expirytime: AwareDatetime | None = None
    data: D


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which message types a reader understands, by name; what it does not is refused by that name."""

    accepted: frozenset[str]

    @classmethod
    def of(cls, *models: type[Message]) -> Kinds:
        """Make it from message classes."""
        return cls(frozenset(model.TYPE for model in models))


_EVENTS: dict[str, type[Event[Any]]] = {name: Event[model] for name, model in MESSAGES.items()}  # type: ignore[valid-type]


def digest(event: bytes) -> str:
    """What tells a trigger from every other: the SHA-256 (hexadecimal) of its CloudEvent, whether signed or not."""
    return hashlib.sha256(event).hexdigest()


def digest_of_unverified(payload: bytes) -> str:
    """What an answer names that refuses to believe a payload: a hash of all that came, in a space of its own.

    Never the hash of the CloudEvent within: somebody who strips a signature, or breaks it, would otherwise make the
    agent say of the very trigger that it also got whole that it was refused.
    """
    return hashlib.sha256(b"podhook-unverified\0" + payload).hexdigest()


def seal(
    message: Message,
    *,
    source: str,
    time: datetime,
    event_id: str,
    issuer: str | None = None,
    audience: str | None = None,
    expires: datetime | None = None,
) -> bytes:
    """Write a message as a CloudEvent. `source` is a URI reference such as `/agents/shop/db-0`."""
    event = _EVENTS[message.TYPE].model_construct(
        specversion="1.0",
        id=event_id,
        source=source,
        type=message.TYPE,
        time=time,
        datacontenttype="application/json",
        issuer=issuer,
        audience=audience,
        expirytime=expires,
        data=message,
    )
    return event.model_dump_json(by_alias=True, exclude_none=True).encode()


def open_event(payload: bytes, kinds: Kinds, *, limit_bytes: int) -> Event[Any]:
    """Read a payload of one of the `kinds`.

    Raises:
        MalformedMessage: too large, not JSON, not a CloudEvent, or fields that do not fit; says which.
        UnknownType: a type or a major version that is not among `kinds`; names it.
    """
    if len(payload) > limit_bytes:
        raise MalformedMessage(f"payload of {len(payload)} bytes is too large; the limit is {limit_bytes}")
    try:
        raw = parse(payload)
    except ValueError as error:
        raise MalformedMessage(f"payload of {len(payload)} bytes is not JSON: {_short(str(error))}") from error
    if not isinstance(raw, dict):
        raise MalformedMessage(f"payload is a JSON {type(raw).__name__}, not an object with CloudEvents attributes")
    name = raw.get("type")
    if not isinstance(name, str):
        raise MalformedMessage("payload has no CloudEvents attribute 'type'")
    if name not in kinds.accepted:
        raise UnknownType(_unknown(name, kinds))
    try:
        return _EVENTS[name].model_validate_json(payload, strict=True)
    except (ValidationError, RecursionError) as error:
        raise MalformedMessage(f"{name}: {_reasons(error)}") from error


def _unknown(name: str, kinds: Kinds) -> str:
    known = sorted(kinds.accepted)
    matched = _TYPE.fullmatch(name)
    if matched:
        same = [other for other in known if other.startswith(f"{matched['kind']}.v")]
        if same:
            newer = int(matched["major"]) > max(int(other.rpartition(".v")[2]) for other in same)
            age, who = ("a newer", "this podhook") if newer else ("an older", "its sender")
            known_as = f"than this podhook speaks ({same[0]})"
            return f"message type {name!r} is of {age} major version {known_as}; upgrade {who}"
    return f"unknown message type {_short(name)!r} (known: {', '.join(known)})"


def _reasons(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    reasons = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        place = ".".join(str(part) for part in detail["loc"])
        reason = "unknown field" if detail["type"] == "extra_forbidden" else detail["msg"]
        reasons.append(f"{_short(place)}: {reason.removeprefix('Value error, ')}")
    more = error.error_count() - len(reasons)
    return _short("; ".join(reasons), 600) + (f" (and {more} more)" if more > 0 else "")


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
