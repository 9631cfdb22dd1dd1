"""The signed envelope: a JWS in compact serialization (RFC 7515), with a profile that leaves no choice.

The algorithm is Ed25519 (`EdDSA`, RFC 8037). The header has exactly `alg`, `kid` and `typ`, and `kid` is a thumbprint
that is looked up among trusted keys and nowhere else. joserfc does the signature; what it would let through - an
unknown `kid` with a single key, `crit: []`, members given twice, the `+/` alphabet - is refused before it is asked.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from agent.contract.errors import ErrorCode, Unverified
from agent.contract.signing.keys import Keyring, SigningKey, TrustedKey
from agent.contract.strict_json import parse

ALGORITHM = "EdDSA"
#: The header of any of ours is shorter.
MAX_HEADER_CHARACTERS = 256
_SIGNATURE_CHARACTERS = 86
#: 32 bytes in base64url: the last character carries four bits, so the two below it are zero.
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_PART = re.compile(rb"[A-Za-z0-9_-]+")


class Typ(StrEnum):
    """What is signed: one can never stand for the other."""

    COMMAND = "podhook-command+jws"
    OUTCOME = "podhook-outcome+jws"


@dataclass(frozen=True, slots=True)
class Verified:
    """What was signed, and by whom."""

    payload: bytes
    key: TrustedKey


class _Profile(JWSRegistry):
    """One algorithm, whatever a header says. Sizes are checked here, before anything is decoded."""

    def get_alg(self, name: str) -> Any:
        """The algorithm; joserfc warns of its older name (RFC 9864), which is the one on our wire."""
        if name != ALGORITHM:
            raise Unverified(ErrorCode.BAD_SIGNATURE, f"algorithm {name[:40]!r} is not {ALGORITHM}")
        return self.algorithms[ALGORITHM]


_PROFILE = _Profile(algorithms=[ALGORITHM])
_PROFILE.max_payload_length = 2**31  # the caller's limit counts


def sign(payload: bytes, key: SigningKey, typ: Typ) -> bytes:
    """Sign a message."""
    header = {"alg": ALGORITHM, "kid": key.kid, "typ": str(typ)}
    return jws.serialize_compact(header, payload, key.jwk, algorithms=[ALGORITHM], registry=_PROFILE).encode()


def verify(token: bytes, keys: Keyring, typ: Typ, *, limit_bytes: int) -> Verified:
    """Check a signature against the keys that are trusted, and return what was signed.

    Raises:
        Unverified: not signed at all, not in this profile, by an unknown key, or not by the key that it names.
    """
    header, payload, _ = _parts(token, limit_bytes)
    kid = _kid(header, typ)
    key = keys.get(kid)
    if key is None:
        raise Unverified(ErrorCode.UNKNOWN_KEY, f"it is signed with key {kid}, which is not among the trusted keys")
    try:
        jws.deserialize_compact(token, keys.jwks, algorithms=[ALGORITHM], registry=_PROFILE)
    except (JoseError, ValueError, TypeError) as error:
        raise Unverified(ErrorCode.BAD_SIGNATURE, f"its signature is not one of key {key}") from error
    return Verified(payload, key)


def unverified(token: bytes, *, limit_bytes: int) -> bytes:
    """The payload of a signed message without a look at its signature: for who trusts everybody, or only asks why.

    Raises:
        Unverified: the form is wrong.
    """
    return _parts(token, limit_bytes)[1]


def _parts(token: bytes, limit_bytes: int) -> tuple[bytes, bytes, bytes]:
    """Header, payload and signature, each decoded strictly."""
    if len(token) > limit_bytes:
        raise Unverified(
            ErrorCode.BAD_SIGNATURE, f"a signed message of {len(token)} bytes is too large; the limit is {limit_bytes}"
        )
    if token.lstrip()[:1] == b"{":
        raise Unverified(ErrorCode.UNSIGNED, "it is not signed")
    parts = token.split(b".", 3)
    if len(parts) != 3:
        raise Unverified(
            ErrorCode.BAD_SIGNATURE, "it is not a JWS in compact serialization: three parts with a dot between"
        )
    header, payload, signature = parts
    if len(header) > MAX_HEADER_CHARACTERS or len(signature) != _SIGNATURE_CHARACTERS:
        raise Unverified(ErrorCode.BAD_SIGNATURE, "the header or the signature has another length than ours have")
    return _decoded(header, "header"), _decoded(payload, "payload"), _decoded(signature, "signature")


def _decoded(part: bytes, what: str) -> bytes:
    """Base64url without padding, in the one way in which it can be written (RFC 4648, section 3.5)."""
    if _PART.fullmatch(part):
        try:
            decoded = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
        except ValueError:
            decoded = b""
        if urlsafe_b64encode(decoded).rstrip(b"=") == part:
            return decoded
    raise Unverified(ErrorCode.BAD_SIGNATURE, f"the {what} is not base64url without padding")


def _kid(header: bytes, typ: Typ) -> str:
    try:
        members = parse(header)
    except ValueError as error:
        raise Unverified(ErrorCode.BAD_SIGNATURE, f"the header cannot be read: {error}") from error
    if not isinstance(members, dict) or set(members) != {"alg", "kid", "typ"}:
        raise Unverified(ErrorCode.BAD_SIGNATURE, "the header must have exactly alg, kid and typ")
    if members["alg"] != ALGORITHM:
        raise Unverified(ErrorCode.BAD_SIGNATURE, f"the algorithm is {str(members['alg'])[:40]!r}; only {ALGORITHM} is")
    if members["typ"] != typ:
        raise Unverified(ErrorCode.BAD_SIGNATURE, f"typ is {str(members['typ'])[:60]!r}; here it must be {str(typ)!r}")
    kid = members["kid"]
    if not isinstance(kid, str) or not _THUMBPRINT.fullmatch(kid):
        raise Unverified(ErrorCode.BAD_SIGNATURE, "kid is not the SHA-256 thumbprint of a key (43 characters)")
    return kid
