"""With which keys an agent speaks, and whose word it takes when somebody speaks by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.contract.errors import ErrorCode, InvalidKey, InvalidSettings, Unverified
from agent.contract.signing.envelope import Typ, sign
from agent.contract.signing.keys import private_text, public_text
from agent.coordinator.trust import load_agent_keys
from agent.sidecar.trust import Signature
from tests.contract.signing.keys import pair

SAID = b'{"specversion": "1.0"}'
PATH = Path("/keys/shop.key")


def private(name: str) -> dict[str, object]:
    return json.loads(private_text(pair(name)))


def public(name: str, **more: object) -> dict[str, object]:
    return {**json.loads(public_text(pair(name))), **more}


def signature_of(*keys: dict[str, object]) -> Signature:
    signature = Signature(configured=True)
    signature.use(json.dumps({"keys": keys}), PATH)
    return signature


def believes(signature: Signature, key: str) -> bool:
    try:
        return signature.ours(sign(SAID, pair(key), Typ.OUTCOME)) == SAID
    except Unverified as error:
        if error.code != ErrorCode.UNKNOWN_KEY:
            raise
        return False


def test_the_first_private_key_signs_and_all_are_believed():
    signature = signature_of(public("next"), private("now"), private("before"))
    assert signature.sign(SAID) == sign(SAID, pair("now"), Typ.OUTCOME)
    assert [believes(signature, each) for each in ("next", "now", "before", "stranger")] == [True, True, True, False]


def test_in_the_middle_of_a_rotation_both_agents_of_a_name_believe_each_other():
    old, new = signature_of(private("old"), public("new")), signature_of(private("new"), public("old"))
    assert old.ours(new.sign(SAID)) == new.ours(old.sign(SAID)) == SAID


def test_a_key_that_was_taken_out_is_not_believed_any_more():
    signature = signature_of(private("old"))
    signature.use(private_text(pair("new")), PATH)
    assert [believes(signature, each) for each in ("old", "new")] == [False, True]


def test_a_key_with_rights_and_without_them_is_one_agent_key():
    """Rights are for commands: an agent key has none."""
    assert believes(signature_of(private("a"), public("a", namespaces=["shop"])), "a")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([], "/keys/shop.key has no private key among its 0"),
        ([public("a")], "has no private key among its 1; the first private one signs"),
        ([private("a"), {"kty": "RSA"}], "/keys/shop.key, key 2 is of another kind"),
        ([{**private("a"), "d": private("b")["d"]}, public("c")], "/keys/shop.key, key 1 is damaged"),
    ],
)
def test_a_set_that_cannot_be_used_changes_nothing(keys, says):
    signature = signature_of(private("old"))
    with pytest.raises(InvalidSettings) as caught:
        signature.use(json.dumps({"keys": keys}), PATH)
    assert says in str(caught.value)
    assert str(private("b")["d"]) not in str(caught.value)
    assert believes(signature, "old")


def test_who_shall_have_a_key_and_has_none_believes_nobody():
    signature = Signature(configured=True)
    for said in (SAID, sign(SAID, pair("a"), Typ.OUTCOME)):
        with pytest.raises(Unverified, match="nobody is believed"):
            signature.ours(said)


def test_who_shall_have_none_believes_everybody():
    """SECURITY.md says so: without PODHOOK_AGENT_KEY whoever writes to its topic can send the agent away."""
    for said in (SAID, sign(SAID, pair("a"), Typ.OUTCOME)):
        assert Signature().ours(said) == SAID


# --- a coordinator's directory of them


def kids(directory: Path) -> dict[str, set[str]]:
    return {namespace: {key.kid for key in ring} for namespace, ring in load_agent_keys(directory).items()}


def put(path: Path, key: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(public_text(pair(key)), encoding="ascii")


def test_a_namespace_has_the_keys_of_its_file_and_of_its_directory(tmp_path):
    put(tmp_path / "shop.pub", "old")
    put(tmp_path / "shop" / "shop-2027.pub", "new")
    put(tmp_path / "shop" / "another.jwk", "third")
    put(tmp_path / "lab" / "any-name_At.All.pub", "lab")
    assert kids(tmp_path) == {"shop": {pair(each).kid for each in ("old", "new", "third")}, "lab": {pair("lab").kid}}


@pytest.mark.parametrize(
    "name", [".hidden/a.pub", "..data/a.pub", "lost+found/a.pub", "shop/.a.pub", "shop/a.key", "shop/x/a.pub"]
)
def test_what_is_not_a_namespaces_key_gives_nobody_a_voice(tmp_path, name):
    put(tmp_path / "lab.pub", "lab")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    put(tmp_path / name, "stranger")
    assert kids(tmp_path) == {"lab": {pair("lab").kid}}


def test_a_file_in_a_namespaces_directory_that_is_no_key_is_named(tmp_path):
    put(tmp_path / "shop" / "a.pub", "a")
    (tmp_path / "shop" / "b.pub").write_text("{}", encoding="ascii")
    with pytest.raises(InvalidKey, match=r"shop/b\.pub is of another kind"):
        load_agent_keys(tmp_path)
