"""Pairs of keys for tests: the same ones each time, so that tests have the same names in every worker."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.contract.signing.keys import (
    Keyring,
    SigningKey,
    TrustedKey,
    parse_signing_key,
    parse_trusted_keys,
    public_text,
)


@cache
def pair(name: str) -> SigningKey:
    """A private key; the same for the same name."""
    seed = hashlib.sha256(name.encode()).digest()
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    document = {"kty": "OKP", "crv": "Ed25519", "d": _b64(seed), "x": _b64(public), "name": name}
    return parse_signing_key(json.dumps(document), name)


def trusted(name: str, **rights: object) -> TrustedKey:
    """The public half of the pair, with rights as `podhook keygen` takes them."""
    [key] = parse_trusted_keys(public_text(pair(name), **rights), name)  # type: ignore[arg-type]
    return key


def ring(*names: str) -> Keyring:
    """The public halves of pairs that may command every namespace."""
    return Keyring([trusted(name) for name in names])


def _b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
