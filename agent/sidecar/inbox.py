"""Bytes to commands. Whatever the bytes are, what comes out is a command or an error that names what is wrong."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from agent.contract.errors import MalformedMessage
from agent.contract.events import Kinds, open_event
from agent.contract.messages import (
    COMMANDS,
    MAX_COMMAND_BYTES,
    Cancel,
    Go,
    Query,
    Release,
    Renew,
    Trigger,
    TriggerAddress,
)
from agent.sidecar.audit import NOBODY, Who

_KINDS = Kinds.of(*COMMANDS)

CommandData = Trigger | Go | Cancel | Renew | Release | Query


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and the SHA-256 (hexadecimal) of the bytes that said it. `who` signed it; nobody, as yet."""

    data: CommandData
    hash: str
    event_id: str
    source: str
    who: Who = NOBODY


class InvalidTrigger(MalformedMessage):
    """A trigger that cannot be understood, from a sender who can be told so."""

    def __init__(self, reason: str, address: TriggerAddress, trigger_hash: str) -> None:
        super().__init__(reason)
        self.address = address
        self.hash = trigger_hash


def open_command(payload: bytes, *, oversize_bytes: int = 0) -> Command:
    """Open a payload of the commands topic.

    `oversize_bytes` is how large the packet was if its body was thrown away for being over the limit.

    Raises:
        InvalidTrigger: a trigger with something wrong in it (a newer action, say); has the address to answer.
        MalformedMessage: it is no message of ours; says why.
        UnknownType: a type or version that this agent does not speak; names it.
    """
    if oversize_bytes:
        raise MalformedMessage(
            f"payload is too large: the packet has {oversize_bytes} bytes; the limit is {MAX_COMMAND_BYTES}"
        )
    try:
        event: Any = open_event(payload, _KINDS, limit_bytes=MAX_COMMAND_BYTES)
    except MalformedMessage as error:
        address = _address(payload)
        if address is None:
            raise
        raise InvalidTrigger(str(error), address, hashlib.sha256(payload).hexdigest()) from error
    return Command(event.data, hashlib.sha256(payload).hexdigest(), event.id, event.source)


def _address(payload: bytes) -> TriggerAddress | None:
    """Who sent a trigger, if the payload is one at all and at least that can be read."""
    try:
        document = from_json(payload)
        if document.get("type") != Trigger.TYPE:
            return None
        return TriggerAddress.model_validate(document.get("data"), strict=True)
    except (ValueError, AttributeError, RecursionError):
        return None
