"""The signed envelope: what joserfc would let through, and what was done to others, is refused by name."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import OctKey

from agent.contract.errors import ErrorCode, Unverified
from agent.contract.signing.envelope import Typ, sign, unverified, verify
from tests.contract.signing.keys import pair, ring

SAID = b'{"specversion": "1.0", "data": "\xc3\xa9"}'
LIMIT = 10_000
TOKEN = sign(SAID, pair("a"), Typ.COMMAND)
HEADER, PAYLOAD, SIGNATURE = TOKEN.split(b".")


PIECES = st.sampled_from([HEADER, PAYLOAD, SIGNATURE, b".", b"=", b"A"])


def b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def header(**changes: object) -> bytes:
    members = {"alg": "EdDSA", "kid": pair("a").kid, "typ": str(Typ.COMMAND), **changes}
    return json.dumps({name: value for name, value in members.items() if value is not ...}).encode()


def signed(raw_header: bytes, payload: bytes = SAID, name: str = "a") -> bytes:
    """A token whose signature is right whatever its header says: an attacker with a key can make that."""
    front = b64(raw_header) + b"." + b64(payload)
    return front + b"." + b64(pair(name).jwk.get_op_key("sign").sign(front))


def refused(token: bytes, *names: str, typ: Typ = Typ.COMMAND, limit: int = LIMIT) -> tuple[str, str]:
    with pytest.raises(Unverified) as caught:
        verify(token, ring(*(names or ("a",))), typ, limit_bytes=limit)
    return caught.value.code, str(caught.value)


def test_what_was_signed_comes_out_as_it_was_and_says_by_whom():
    verified = verify(TOKEN, ring("a", "b"), Typ.COMMAND, limit_bytes=LIMIT)
    assert (verified.payload, verified.key.kid) == (SAID, pair("a").kid)


def test_the_header_has_exactly_three_members():
    assert json.loads(base64.urlsafe_b64decode(HEADER + b"==")) == {
        "alg": "EdDSA",
        "kid": pair("a").kid,
        "typ": "podhook-command+jws",
    }


def test_a_key_that_is_not_trusted_is_unknown_even_if_it_is_the_only_one():
    assert refused(TOKEN, "b") == (
        ErrorCode.UNKNOWN_KEY,
        f"it is signed with key {pair('a').kid}, which is not among the trusted keys",
    )


def test_a_kid_that_names_another_trusted_key_does_not_help():
    assert refused(signed(header(kid=pair("b").kid)), "a", "b")[0] == ErrorCode.BAD_SIGNATURE


@pytest.mark.parametrize("payload", [b'{"specversion":"1.0"}', b"", b"null", b" {}"])
def test_what_is_not_signed_is_refused(payload):
    assert refused(payload)[0] in (ErrorCode.UNSIGNED, ErrorCode.BAD_SIGNATURE)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (header(alg="none"), "the algorithm is 'none'; only EdDSA is"),
        (header(alg="None"), "the algorithm is 'None'"),
        (header(alg="HS256"), "the algorithm is 'HS256'"),
        (header(alg="ES256"), "the algorithm is 'ES256'"),
        (header(alg="Ed25519"), "the algorithm is 'Ed25519'"),
        (header(alg="Ed448"), "the algorithm is 'Ed448'"),
        (header(alg="eddsa"), "the algorithm is 'eddsa'"),
        (header(alg=["EdDSA"]), "the algorithm is "),
        (header(alg=...), "exactly alg, kid and typ"),
        (header(kid=...), "exactly alg, kid and typ"),
        (header(typ=...), "exactly alg, kid and typ"),
        (header(crit=[]), "exactly alg, kid and typ"),
        (header(crit=["exp"], exp=1), "exactly alg, kid and typ"),
        (header(b64=False, crit=["b64"]), "exactly alg, kid and typ"),
        (header(jwk={"kty": "OKP"}), "exactly alg, kid and typ"),
        (header(jku="https://attacker.example/keys"), "exactly alg, kid and typ"),
        (header(x5u="https://attacker.example/cert"), "exactly alg, kid and typ"),
        (header(typ="podhook-outcome+jws"), "typ is 'podhook-outcome+jws'; here it must be 'podhook-command+jws'"),
        (header(typ="JWT"), "typ is 'JWT'"),
        (header(kid="../../../etc/passwd"), "kid is not the SHA-256 thumbprint of a key"),
        (header(kid="/dev/null"), "kid is not the SHA-256 thumbprint"),
        (header(kid=""), "kid is not the SHA-256 thumbprint"),
        (header(kid=None), "kid is not the SHA-256 thumbprint"),
        (header(kid=0), "kid is not the SHA-256 thumbprint"),
        (header(kid=[pair("a").kid]), "kid is not the SHA-256 thumbprint"),
        (header(kid=pair("a").kid + "\n"), "kid is not the SHA-256 thumbprint"),
        (header(kid="' OR 1=1 --"), "kid is not the SHA-256 thumbprint"),
        (b'{"alg":"none",' + header()[1:], "member 'alg' is given twice"),
        (header()[:-1] + b', "alg": "EdDSA"}', "member 'alg' is given twice"),
        (b"[" * 60, "the header cannot be read"),
        (b'["alg", "kid", "typ"]', "exactly alg, kid and typ"),
        (b'{"alg": NaN}', "the header cannot be read: NaN is not JSON"),
        (header(typ="\N{LATIN SMALL LETTER E WITH ACUTE}" * 60), "another length"),
    ],
)
def test_a_header_that_is_not_ours_is_refused_although_the_signature_fits(raw, says):
    code, message = refused(signed(raw), "a", "b")
    assert code == ErrorCode.BAD_SIGNATURE
    assert says in message


def test_a_public_key_is_no_shared_secret():
    public = pair("a").public.jwk.as_dict()["x"]
    token = jws.serialize_compact(
        {"alg": "HS256", "kid": pair("a").kid, "typ": str(Typ.COMMAND)}, SAID, OctKey.import_key(public), ["HS256"]
    )
    assert refused(token.encode())[0] == ErrorCode.BAD_SIGNATURE


@pytest.mark.parametrize(
    "token",
    [
        HEADER + b"." + PAYLOAD,
        HEADER + b"." + PAYLOAD + b".",
        HEADER + b".." + SIGNATURE,
        TOKEN + b".",
        TOKEN + b"." + SIGNATURE,
        b"." + TOKEN,
        TOKEN + b"\n",
        b" " + TOKEN,
        TOKEN + b"=",
        HEADER + b"=." + PAYLOAD + b"." + SIGNATURE,
        TOKEN.replace(b"_", b"/").replace(b"-", b"+") + b"A" * (TOKEN.count(b"_") + TOKEN.count(b"-") == 0),
        HEADER + b"." + PAYLOAD + b"." + SIGNATURE[:-2] + b"__",
        HEADER + b"." + PAYLOAD + b"." + b"A" * 86,
        HEADER + b"." + PAYLOAD + b"." + SIGNATURE + b"AAAA",
        b"\x00" + TOKEN,
        TOKEN[:40] + b"\n" + TOKEN[40:],
        b'{"payload":"' + PAYLOAD + b'","protected":"' + HEADER + b'","signature":"' + SIGNATURE + b'"}',
    ],
)
def test_another_form_of_the_same_is_refused(token):
    assert refused(token)[0] in (ErrorCode.BAD_SIGNATURE, ErrorCode.UNSIGNED)


def test_the_signature_can_be_written_in_one_way_only():
    """The last character of 64 bytes in base64 has four bits to spare: joserfc takes any."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(SIGNATURE[-1:])
    others = [TOKEN[:-1] + alphabet[(last & 0x30) | low : ((last & 0x30) | low) + 1] for low in range(1, 16)]
    assert [refused(other)[1] for other in others] == ["the signature is not base64url without padding"] * 15


@pytest.mark.parametrize("place", range(len(TOKEN)))
def test_any_changed_character_is_refused(place):
    other = TOKEN[:place] + (b"A" if TOKEN[place : place + 1] != b"A" else b"B") + TOKEN[place + 1 :]
    refused(other)


def test_what_is_too_large_is_refused_before_it_is_decoded():
    assert refused(TOKEN, limit=len(TOKEN) - 1)[1] == (
        f"a signed message of {len(TOKEN)} bytes is too large; the limit is {len(TOKEN) - 1}"
    )
    large = sign(b"x" * 190_000, pair("a"), Typ.COMMAND)
    assert verify(large, ring("a"), Typ.COMMAND, limit_bytes=256 * 1024).payload == b"x" * 190_000


def test_a_command_is_no_outcome_and_an_outcome_no_command():
    outcome = sign(SAID, pair("a"), Typ.OUTCOME)
    assert refused(outcome)[0] == ErrorCode.BAD_SIGNATURE
    assert refused(TOKEN, typ=Typ.OUTCOME)[0] == ErrorCode.BAD_SIGNATURE


def test_what_nobody_believes_can_still_be_read():
    assert unverified(sign(SAID, pair("stranger"), Typ.COMMAND), limit_bytes=LIMIT) == SAID
    with pytest.raises(Unverified):
        unverified(b"ey.ey", limit_bytes=LIMIT)


@settings(max_examples=300)
@given(st.binary(max_size=300) | st.lists(PIECES).map(b"".join))
def test_any_bytes_are_the_token_or_refused(payload):
    with contextlib.suppress(Unverified):
        assert verify(payload, ring("a"), Typ.COMMAND, limit_bytes=LIMIT).payload == SAID


@given(st.binary(max_size=500))
def test_whatever_is_signed_comes_back(payload):
    token = sign(payload, pair("a"), Typ.OUTCOME)
    if payload:
        assert verify(token, ring("a"), Typ.OUTCOME, limit_bytes=LIMIT).payload == payload
