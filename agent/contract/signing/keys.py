"""Ed25519 keys as JSON Web Keys (RFC 7517, RFC 8037), and rings of those that are trusted.

A key is known by its thumbprint (RFC 7638), computed here from what the key is: what a file or a message calls itself
is never believed. Two members of our own may stand in a public key of a coordinator: `namespaces`, a list of those it
may command (absent: all), and `operator`, true for a key that may also end what other keys began.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OKPKey

from agent.contract.errors import BadInput, InvalidKey
from agent.contract.strict_json import parse
from agent.contract.topics import check_name

MAX_KEY_FILE_BYTES = 64 * 1024
#: As many as one ring may hold: rotation needs two a coordinator.
MAX_KEYS = 256
#: What may stand in a public key: RFC 7517's members and ours. Anything else may be a limit that somebody misspelt.
_PUBLIC = ("kty", "crv", "x", "kid", "use", "alg", "key_ops", "name", "namespaces", "operator")
_PRIVATE = (*_PUBLIC, "d")
#: Ed25519 is over the integers modulo this (RFC 8032, section 5.1), and a key is y with the sign of x in the top bit.
_PRIME = 2**255 - 19
_Y_OF_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
#: The y of the points of order 1, 2, 4 and 8: with such a key a signature verifies that nobody made.
_SMALL_ORDER = frozenset({0, 1, _PRIME - 1, _Y_OF_ORDER_8, _PRIME - _Y_OF_ORDER_8})


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key. Its `repr` and `str` never show it."""

    kid: str
    name: str
    jwk: OKPKey = field(repr=False)

    @property
    def public(self) -> TrustedKey:
        """Its public half, trusted for everything."""
        kid, jwk = _public(self.jwk)
        return TrustedKey(kid, self.name, None, operator=False, jwk=jwk)


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and what it may do. `namespaces` None: in all of them."""

    kid: str
    name: str
    namespaces: frozenset[str] | None
    operator: bool
    jwk: OKPKey = field(repr=False, compare=False)

    @property
    def rights(self) -> tuple[frozenset[str] | None, bool]:
        """What it may do, whatever it is called."""
        return self.namespaces, self.operator

    def may_command(self, namespace: str) -> bool:
        """Whether agents of this namespace obey it."""
        return self.namespaces is None or namespace in self.namespaces

    def __str__(self) -> str:
        return f"{self.name} ({self.kid})" if self.name else self.kid


class Keyring:
    """Public keys by their thumbprint.

    A key that is given twice, with different rights, is not trusted at all, for nobody knows which were meant; it is
    named in `contradictions`. Other keys are not touched by that, nor is one that only has two names: it has the first.

    Raises:
        InvalidKey: there are more than `MAX_KEYS`.
    """

    def __init__(self, keys: Iterable[TrustedKey] = ()) -> None:
        self._keys: dict[str, TrustedKey] = {}
        contradictory: dict[str, TrustedKey] = {}
        for key in keys:
            if self._keys.setdefault(key.kid, key).rights != key.rights:
                contradictory[key.kid] = key
        for kid in contradictory:
            del self._keys[kid]
        self.contradictions: list[str] = [
            f"key {key} is given twice, with different rights, and is not trusted; keep one of them"
            for key in contradictory.values()
        ]
        if len(self._keys) > MAX_KEYS:
            raise InvalidKey(f"there are {len(self._keys)} keys; the limit is {MAX_KEYS}: remove those not in use")
        self.jwks = KeySet([key.jwk for key in self._keys.values()])

    def get(self, kid: str) -> TrustedKey | None:
        """The key of this thumbprint, or None."""
        return self._keys.get(kid)

    def __iter__(self) -> Iterator[TrustedKey]:
        return iter(self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)


def generate(name: str) -> SigningKey:
    """A new private key."""
    return _signing(OKPKey.generate_key("Ed25519", private=True, auto_kid=False), name)


def private_text(key: SigningKey) -> str:
    """The file of a private key."""
    return _text({**_named(key.name), **key.jwk.as_dict(private=True), "kid": key.kid})


def public_text(key: SigningKey, *, namespaces: Iterable[str] | None = None, operator: bool = False) -> str:
    """The file of its public key, with what it may do."""
    rights: dict[str, Any] = {} if namespaces is None else {"namespaces": sorted(set(namespaces))}
    if operator:
        rights["operator"] = True
    return _text({**_named(key.name), **key.jwk.as_dict(private=False), "kid": key.kid, **rights})


def parse_signing_key(text: bytes | str, where: str) -> SigningKey:
    """Read a private key's file.

    Raises:
        InvalidKey: not one; names `where`. Nothing of the text is repeated, for it may be a secret.
    """
    document = _document(text, where)
    if "d" not in document:
        raise InvalidKey(f"{where} has no private key; give the .key file that `podhook keygen` wrote, not the .pub")
    _check_members(document, _PRIVATE, where)
    return _signing(_imported(document, where), _name(document, where))


def parse_agent_keys(text: bytes | str, where: str) -> tuple[SigningKey, list[TrustedKey]]:
    """Read an agent's key file: a private key, or a JWKS of which the first private key signs.

    Returns the key that signs, and the public halves of all: those that agents of this namespace have now, have still,
    or will have soon.

    Raises:
        InvalidKey: not such a file, or no private key in it; names `where`, and repeats nothing of the text.
    """
    document = _document(text, where)
    if "keys" not in document:
        key = parse_signing_key(text, where)
        return key, [key.public]
    listed = _listed(document, where)
    signing = [parse_signing_key(json.dumps(one), at) for at, one in listed if "d" in one]
    if not signing:
        raise InvalidKey(f"{where} has no private key among its {len(listed)}; the first private one signs")
    public = [_trusted(one, at) for at, one in listed if "d" not in one]
    return signing[0], [*(key.public for key in signing), *public]


def parse_trusted_keys(text: bytes | str, where: str) -> list[TrustedKey]:
    """Read a file of public keys: a JWK, or a JWKS (`{"keys": [...]}`).

    Raises:
        InvalidKey: not such a file, a private key, or rights that make no sense; names `where` and the key.
    """
    return [_trusted(one, at) for at, one in _listed(_document(text, where), where)]


def _listed(document: dict[str, Any], where: str) -> list[tuple[str, dict[str, Any]]]:
    """The keys of a JWKS, or the one key that a file is; each with what to call it."""
    each = document.get("keys") if "keys" in document else [document]
    if not isinstance(each, list) or not all(isinstance(one, dict) for one in each):
        raise InvalidKey(f"{where}: keys must be a list of JSON Web Keys")
    if "keys" in document:
        _check_members(document, ("keys",), where)
    if len(each) > MAX_KEYS:
        raise InvalidKey(f"{where} has {len(each)} keys; the limit is {MAX_KEYS}")
    many = len(each) > 1
    return [(f"{where}, key {number}" if many else where, one) for number, one in enumerate(each, start=1)]


def _trusted(document: dict[str, Any], where: str) -> TrustedKey:
    if "d" in document:
        raise InvalidKey(f"{where} is a private key; only its public half belongs here: keep the other to its owner")
    jwk = _imported(document, where)
    _check_members(document, _PUBLIC, where)
    namespaces, operator = document.get("namespaces"), document.get("operator", False)
    if "namespaces" in document and (
        not isinstance(namespaces, list) or not namespaces or not all(isinstance(each, str) for each in namespaces)
    ):
        raise InvalidKey(f"{where}: namespaces must be a list of names; leave it out for all of them")
    if not isinstance(operator, bool):
        raise InvalidKey(f"{where}: operator must be true or false")
    try:
        allowed = frozenset(check_name("namespace", each) for each in namespaces) if namespaces is not None else None
    except BadInput as error:
        raise InvalidKey(f"{where}: {error}") from error
    kid, public = _public(jwk)
    return TrustedKey(kid, _name(document, where), allowed, operator=operator, jwk=public)


def _document(text: bytes | str, where: str) -> dict[str, Any]:
    raw = text.encode() if isinstance(text, str) else text
    if len(raw) > MAX_KEY_FILE_BYTES:
        raise InvalidKey(f"{where} has {len(raw)} bytes; the limit for a file of keys is {MAX_KEY_FILE_BYTES}")
    try:
        document = parse(raw)
    except ValueError:
        raise InvalidKey(f"{where} is not JSON; keys are JSON Web Keys, as `podhook keygen` writes them") from None
    if not isinstance(document, dict):
        raise InvalidKey(f"{where} is not a JSON Web Key, which is a JSON object")
    return document


def _check_members(document: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    """A limit that is misspelt would be no limit. Names are shown, values never."""
    if unknown := [name for name in document if name not in allowed]:
        names = ", ".join(ascii(name[:40]) for name in unknown[:5])
        raise InvalidKey(f"{where} has members that podhook does not know: {names} (known: {', '.join(allowed)})")


def _imported(document: dict[str, Any], where: str) -> OKPKey:
    if (document.get("kty"), document.get("crv")) != ("OKP", "Ed25519"):
        raise InvalidKey(f"{where} is of another kind (kty and crv must be OKP and Ed25519); make one: podhook keygen")
    members: dict[str, Any] = {name: document[name] for name in ("kty", "crv", "x", "d") if name in document}
    try:
        jwk = OKPKey.import_key(members)
        whole = members["x"] == _x_of(jwk)
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise InvalidKey(f"{where} is damaged: x (and d) must be 32 bytes in base64url that belong together") from None
    if _is_weak(members["x"]):
        raise InvalidKey(
            f"{where} is no key (x is a point of small order): anybody can sign for it; make one: podhook keygen"
        )
    kid = document.get("kid")
    if kid is not None and kid != jwk.thumbprint():
        raise InvalidKey(f"{where}: kid is not the key's thumbprint, {jwk.thumbprint()}; correct it or leave it out")
    return jwk


def _x_of(jwk: OKPKey) -> str:
    """The public part, computed from the key itself: a `d` that belongs to another `x` shows here."""
    raw: Any = jwk.raw_value
    public = raw.public_key() if isinstance(raw, Ed25519PrivateKey) else raw
    return urlsafe_b64encode(bytes(public.public_bytes_raw())).rstrip(b"=").decode()


def _is_weak(x: str) -> bool:
    """Whether a public key is a point of small order, or written in a way in which none of ours is (y beyond p)."""
    y = int.from_bytes(urlsafe_b64decode(f"{x}="), "little") & (2**255 - 1)
    return y >= _PRIME or y in _SMALL_ORDER


def _known(members: dict[str, Any]) -> tuple[str, OKPKey]:
    """A key and its id, the SHA-256 thumbprint (RFC 7638; RFC 8037 appendix A.3); the key carries it, to be found."""
    kid = OKPKey.import_key(members).thumbprint()
    return kid, OKPKey.import_key({**members, "kid": kid})


def _public(jwk: OKPKey) -> tuple[str, OKPKey]:
    return _known({name: value for name, value in jwk.as_dict(private=False).items() if name in ("kty", "crv", "x")})


def _signing(jwk: OKPKey, name: str) -> SigningKey:
    members = {each: value for each, value in jwk.as_dict(private=True).items() if each in ("kty", "crv", "x", "d")}
    kid, known = _known(members)
    return SigningKey(kid, name, known)


def _name(document: dict[str, Any], where: str) -> str:
    name = document.get("name", "")
    if not isinstance(name, str) or len(name) > 128 or not name.isprintable():
        raise InvalidKey(f"{where}: name must be printable text of at most 128 characters")
    return name


def _named(name: str) -> dict[str, str]:
    return {"name": name} if name else {}


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"
