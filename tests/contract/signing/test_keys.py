"""Key files: what is read is what the key is, not what the file says of it."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.errors import InvalidKey
from agent.contract.signing.keys import (
    MAX_KEY_FILE_BYTES,
    MAX_KEYS,
    Keyring,
    generate,
    parse_signing_key,
    parse_trusted_keys,
    private_text,
    public_text,
)
from tests.contract.signing.keys import pair, trusted

#: RFC 8037, appendix A.1 to A.3: a key and its thumbprint.
RFC_KEY = {
    "kty": "OKP",
    "crv": "Ed25519",
    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}
RFC_THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def public(**changes: object) -> str:
    document = {**json.loads(public_text(pair("a"))), **changes}
    return json.dumps({name: value for name, value in document.items() if value is not ...})


def refused(text: str | bytes) -> str:
    with pytest.raises(InvalidKey) as caught:
        parse_trusted_keys(text, "keys/a.pub")
    assert str(caught.value).startswith("keys/a.pub")
    return str(caught.value)


def test_a_key_is_known_by_its_thumbprint():
    assert parse_signing_key(json.dumps(RFC_KEY), "x").kid == RFC_THUMBPRINT
    without_d = {name: value for name, value in RFC_KEY.items() if name != "d"}
    assert [key.kid for key in parse_trusted_keys(json.dumps(without_d), "x")] == [RFC_THUMBPRINT]


def test_what_keygen_writes_is_read_back():
    key = generate("nightly")
    again = parse_signing_key(private_text(key), "x")
    assert (again.kid, again.name) == (key.kid, "nightly")
    [public_half] = parse_trusted_keys(public_text(key, namespaces=["shop", "lab"], operator=True), "x")
    assert (public_half.kid, public_half.name) == (key.kid, "nightly")
    assert (public_half.namespaces, public_half.operator) == ({"shop", "lab"}, True)


def test_a_private_key_is_never_shown():
    key = generate("nightly")
    secret = json.loads(private_text(key))["d"]
    assert secret not in f"{key!r} {key} {key.public!r} {public_text(key)}"


def test_without_a_limit_a_key_may_command_every_namespace_but_is_no_operator():
    assert (trusted("a").may_command("shop"), trusted("a").operator) == (True, False)
    limited = trusted("a", namespaces=["shop"])
    assert [limited.may_command(each) for each in ("shop", "lab", "sho", "shop2")] == [True, False, False, False]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON; keys are JSON Web Keys, as `podhook keygen` writes them"),
        ("-----BEGIN PUBLIC KEY-----", "is not JSON"),
        ("[]", "is not a JSON Web Key, which is a JSON object"),
        ('{"kty": "OKP", "kty": "OKP"}', "is not JSON"),
        ("{}", "is of another kind (kty and crv must be OKP and Ed25519)"),
        (public(kty="oct", k="c2VjcmV0"), "is of another kind"),
        (public(crv="Ed448"), "is of another kind"),
        (public(crv="X25519"), "is of another kind"),
        (public(x=...), "is damaged"),
        (public(x=1), "is damaged"),
        (public(x="AAAA"), "is damaged"),
        (public(x=RFC_KEY["x"] + "="), "is damaged"),
        (public(x=RFC_KEY["x"][:-1] + "p", kid=...), "is damaged"),
        (public(x=RFC_KEY["x"].replace("_", "/")), "is damaged"),
        (public(kid="../../etc/passwd"), "kid is not the key's thumbprint"),
        (public(kid=RFC_THUMBPRINT), "kid is not the key's thumbprint"),
        (private_text(pair("a")), "is a private key; only its public half belongs here"),
        (public(namespaces="shop"), "namespaces must be a list of names; leave it out for all of them"),
        (public(namespaces=[]), "namespaces must be a list of names"),
        (public(namespaces=["Shop"]), "namespace 'Shop' is not a Kubernetes name"),
        (public(namespaces=["*"]), "namespace '*' is not a Kubernetes name"),
        (public(operator="true"), "operator must be true or false"),
        (public(operator=1), "operator must be true or false"),
        (public(name="a\x1b[31m"), "name must be printable text"),
        ('{"keys": {}}', "keys must be a list of JSON Web Keys"),
        ('{"keys": ["a"]}', "keys must be a list of JSON Web Keys"),
        (json.dumps({"keys": [{}] * (MAX_KEYS + 1)}), f"has {MAX_KEYS + 1} keys; the limit is {MAX_KEYS}"),
        (b" " * (MAX_KEY_FILE_BYTES + 1), f"has {MAX_KEY_FILE_BYTES + 1} bytes"),
    ],
)
def test_what_is_no_key_of_ours_is_named(text, says):
    assert says in refused(text)


def test_a_set_names_the_key_that_is_wrong():
    keys = [json.loads(public_text(pair("a"))), {"kty": "RSA"}]
    assert refused(json.dumps({"keys": keys})).startswith("keys/a.pub, key 2 is of another kind")


def test_a_private_half_of_another_key_is_refused_and_not_shown():
    other = json.loads(private_text(pair("b")))["d"]
    document = {**json.loads(private_text(pair("a"))), "d": other}
    with pytest.raises(InvalidKey, match="is damaged") as caught:
        parse_signing_key(json.dumps(document), "a.key")
    assert other not in str(caught.value)


def test_a_public_key_signs_nothing():
    with pytest.raises(InvalidKey, match=r"a.pub has no private key; give the .key file"):
        parse_signing_key(public_text(pair("a")), "a.pub")


def test_one_key_with_two_sets_of_rights_is_a_contradiction_and_costs_only_itself():
    ring = Keyring([trusted("a"), trusted("b"), trusted("a", operator=True), trusted("a")])
    assert [key.kid for key in ring] == [pair("b").kid]
    assert (ring.get(pair("a").kid), len(ring.jwks.keys)) == (None, 1)
    [said] = ring.contradictions
    assert f"a ({pair('a').kid}) is given twice, with different rights, and is not trusted" in said
    assert Keyring([trusted("a"), trusted("a"), trusted("b")]).contradictions == []


def test_one_key_under_two_names_is_one_key():
    [renamed] = parse_trusted_keys(public(name="nightly, as the old file calls it"), "b.jwk")
    ring = Keyring([trusted("a"), renamed])
    assert ([key.name for key in ring], ring.contradictions) == (["a"], [])


@pytest.mark.parametrize("member", ["namespace", "Namespaces", "namespaces ", "NAMESPACES", "ops", "only"])
def test_a_limit_that_is_misspelt_is_no_open_door(member):
    says = refused(public(**{member: ["shop"]}))
    assert f"has members that podhook does not know: {member!r} (known: kty, crv, x, kid," in says


def test_a_limit_is_not_written_beside_the_keys_of_a_set():
    document = {"keys": [json.loads(public_text(pair("a")))], "namespaces": ["shop"]}
    assert "'namespaces' (known: keys)" in refused(json.dumps(document))


def test_no_namespaces_at_all_are_not_all_of_them():
    assert "namespaces must be a list of names; leave it out for all of them" in refused(public(namespaces=None))


def test_what_other_programs_write_into_a_key_is_read():
    text = public(use="sig", alg="EdDSA", key_ops=["verify"])
    assert [key.kid for key in parse_trusted_keys(text, "x")] == [pair("a").kid]
    private = {**json.loads(private_text(pair("a"))), "use": "sig", "key_ops": ["sign"]}
    assert parse_signing_key(json.dumps(private), "x").kid == pair("a").kid
    with pytest.raises(InvalidKey, match="does not know: 'secret'"):
        parse_signing_key(json.dumps({**private, "secret": "s3cr3t"}), "x")


def encodings() -> list[bytes]:
    """Every way to write a y of a point of small order: as it is and plus p, each with both signs of x."""
    p = 2**255 - 19
    of_order_8 = int.from_bytes(
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
    )
    plain = [0, 1, p - 1, of_order_8, p - of_order_8]
    return [
        (y | sign << 255).to_bytes(32, "little")
        for y in (*plain, *(y + p for y in plain if y + p < 2**255))
        for sign in (0, 1)
    ]


@pytest.mark.parametrize("raw", encodings(), ids=bytes.hex)
def test_a_key_for_which_anybody_can_sign_is_refused(raw):
    """Points of small order (RFC 8032, 8.9; RFC 7748, 7): some signature verifies under such a key for any message."""
    x = urlsafe_b64encode(raw).rstrip(b"=").decode()
    says = refused(json.dumps({"kty": "OKP", "crv": "Ed25519", "x": x}))
    assert "is no key (x is a point of small order): anybody can sign for it" in says


def test_a_forgery_under_a_key_of_small_order_is_what_is_prevented():
    """R the neutral element and S zero satisfy the equation for any message when A is neutral, too."""
    neutral = (1).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), b"anything at all")


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_a_key_or_an_invalid_key(text):
    for parse in (parse_signing_key, parse_trusted_keys):
        with pytest.raises(InvalidKey):
            parse(text, "x")
