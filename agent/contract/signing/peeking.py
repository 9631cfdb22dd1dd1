"""What a payload says, signed or not, believed by nobody. Needs no cryptography until something is signed."""

from __future__ import annotations

from agent.contract.messages import MAX_COMMAND_BYTES

#: How files of public keys are named, where a directory has them.
KEY_SUFFIXES = frozenset({".pub", ".jwk", ".jwks", ".json"})


def looks_signed(payload: bytes) -> bool:
    """A JWS begins with the base64 of `{`, a CloudEvent with the character itself."""
    return payload[:2] == b"ey"


def peek(payload: bytes) -> bytes:
    """The CloudEvent in a payload, without a look at its signature. Raises Unverified for a JWS of no form."""
    if not looks_signed(payload):
        return payload
    from agent.contract.signing.envelope import unverified  # noqa: PLC0415 (10 MB, for who meets what is signed)

    return unverified(payload, limit_bytes=MAX_COMMAND_BYTES)
