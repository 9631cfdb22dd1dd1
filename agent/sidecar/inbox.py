"""Bytes to commands. Whatever the bytes are, what comes out is a command or an error that names what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from agent.contract.errors import ErrorCode, MalformedMessage, Unverified
from agent.contract.events import Event, Kinds, digest, digest_of_unverified, open_event
from agent.contract.messages import (
    CLOCK_TOLERANCE_SECONDS,
    COMMANDS,
    MAX_COMMAND_BYTES,
    MAX_START_WINDOW_SECONDS,
    Cancel,
    Go,
    Query,
    Release,
    Renew,
    Trigger,
    TriggerAddress,
)
from agent.contract.signing.peeking import peek
from agent.contract.strict_json import parse
from agent.pod.identity import Identity
from agent.sidecar.trust import ANYBODY, Trust, Voucher

_KINDS = Kinds.of(*COMMANDS)

CommandData = Trigger | Go | Cancel | Renew | Release | Query


@dataclass(frozen=True, slots=True)
class Command:
    """A command, the SHA-256 (hexadecimal) of the CloudEvent that said it, and who vouches for it.

    `expires` is when it ends to be good, None if nobody signed it.
    """

    data: CommandData
    hash: str
    event_id: str
    source: str
    voucher: Voucher
    expires: datetime | None = None


class InvalidTrigger(MalformedMessage):
    """A trigger that cannot be understood, or is not vouched for, from a sender who can be told so."""

    def __init__(
        self,
        code: ErrorCode,
        reason: str,
        address: TriggerAddress,
        trigger_hash: str,
        voucher: Voucher = ANYBODY,
        said_hash: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.address = address
        self.hash = trigger_hash
        self.voucher = voucher
        self.said_hash = said_hash


def open_command(
    payload: bytes, trust: Trust, identity: Identity, now: datetime, *, oversize_bytes: int = 0
) -> Command:
    """Open a payload of the commands topic.

    `oversize_bytes` is how large the packet was if its body was thrown away for being over the limit.

    Raises:
        InvalidTrigger: a trigger with something wrong in it (a newer action, say), or not signed as it must be; has
            the address to answer.
        Unverified: it is not signed as it must be, or for somebody else, or its time is over; says which.
        MalformedMessage: it is no message of ours; says why.
        UnknownType: a type or version that this agent does not speak; names it.
    """
    if oversize_bytes:
        raise MalformedMessage(
            f"payload is too large: the packet has {oversize_bytes} bytes; the limit is {MAX_COMMAND_BYTES}"
        )
    said, voucher = payload, ANYBODY
    try:
        said, voucher = trust.open(payload)
        event: Any = _event(said)
        if voucher.kid:
            _check_issuer(event, voucher)
            _check_audience(event, identity)
            _check_life(event, now)
    except Unverified as error:
        claimed = said if voucher.kid else _claimed(payload)
        address = _address(claimed)
        if address is None or claimed is None:
            raise
        refusal = digest_of_unverified(payload)
        raise InvalidTrigger(error.code, str(error), address, refusal, voucher, digest(claimed)) from error
    return Command(event.data, digest(said), event.id, event.source, voucher, event.expirytime if voucher.kid else None)


def _event(said: bytes) -> Event[Any]:
    try:
        return open_event(said, _KINDS, limit_bytes=MAX_COMMAND_BYTES)
    except MalformedMessage as error:
        address = _address(said)
        if address is None:
            raise
        raise InvalidTrigger(ErrorCode.INVALID_ACTION, str(error), address, digest(said)) from error


def _check_issuer(event: Event[Any], voucher: Voucher) -> None:
    """Who signed it is who made it: nobody takes over what another key said by signing it, too."""
    if event.issuer != voucher.kid:
        raise Unverified(
            ErrorCode.BAD_SIGNATURE,
            f"it is signed with key {voucher.kid}, and names {event.issuer or 'nobody'} as its issuer; they must agree",
        )


def _check_audience(event: Event[Any], identity: Identity) -> None:
    """It is for us. A trigger or a query for our predecessor is answered, so that its sender learns of us."""
    name, audience = f"{identity}/", event.audience or ""
    uid = audience.removeprefix(name)
    meant = getattr(event.data, "pod_uid", None) or uid
    if not audience.startswith(name) or uid != meant:
        raise Unverified(
            ErrorCode.WRONG_AUDIENCE,
            f"it is signed for {audience[:200]!r}, and this agent is {name}{identity.pod_uid}; they must agree",
        )
    if uid != identity.pod_uid and not isinstance(event.data, Trigger | Query):
        raise Unverified(
            ErrorCode.WRONG_AUDIENCE, f"it is signed for pod uid {uid}, but {identity} has uid {identity.pod_uid}"
        )


def _check_life(event: Event[Any], now: datetime) -> None:
    """It has an end, and not too late a one. Of a trigger its own times are judged, after what is known of it."""
    if event.expirytime is None:
        raise Unverified(ErrorCode.EXPIRED, "a signed command must have an expirytime")
    life = (event.expirytime - event.time).total_seconds()
    if life > MAX_START_WINDOW_SECONDS + CLOCK_TOLERANCE_SECONDS:
        raise Unverified(
            ErrorCode.DEADLINE_TOO_FAR,
            f"it is good for {life:.0f} s; the limit is {MAX_START_WINDOW_SECONDS + CLOCK_TOLERANCE_SECONDS} s",
        )
    if isinstance(event.data, Trigger):
        return
    # A question from the future may be asked: how else would anybody learn that the clocks differ?
    if not isinstance(event.data, Query) and event.time > now + timedelta(seconds=CLOCK_TOLERANCE_SECONDS):
        raise Unverified(
            ErrorCode.CLOCK_SKEW, f"it was signed at {event.time.isoformat()}, and it is {now.isoformat()} here"
        )
    if now > event.expirytime:
        raise Unverified(
            ErrorCode.EXPIRED, f"it was good until {event.expirytime.isoformat()}, it is {now.isoformat()} here"
        )


def _claimed(payload: bytes) -> bytes | None:
    try:
        return peek(payload)
    except Unverified:
        return None


def _address(payload: bytes | None) -> TriggerAddress | None:
    """Who sent a trigger, if the payload is one at all and at least that can be read."""
    try:
        document = parse(payload or b"")
        if document.get("type") != Trigger.TYPE:
            return None
        return TriggerAddress.model_validate(document.get("data"), strict=True)
    except (ValueError, AttributeError):
        return None
