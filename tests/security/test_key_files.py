"""What lies in a directory of trusted keys: one bad file costs itself, and never the whole agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.contract.errors import InvalidKey
from agent.contract.signing.keys import public_text
from agent.coordinator.trust import load_agent_keys
from agent.sidecar.trust import TrustedKeys
from tests.contract.signing.keys import pair


def put(directory: Path, file: str, key: str, **more: object) -> None:
    """A file with the public half of a key."""
    document = {**json.loads(public_text(pair(key))), **more}
    (directory / file).write_text(json.dumps(document), encoding="ascii")


def trusted_in(directory: Path) -> tuple[set[str], str]:
    """Whom an agent with this directory trusts, and what it complains of."""
    keys = TrustedKeys(directory)
    assert keys.look()
    return {key.kid for key in keys.keyring or ()}, keys.problem or ""


def test_one_key_under_two_names_closes_nothing(tmp_path):
    put(tmp_path, "a.pub", "a")
    put(tmp_path, "b.jwk", "a", name="the old name")
    put(tmp_path, "c.pub", "c")
    assert trusted_in(tmp_path) == ({pair("a").kid, pair("c").kid}, "")


def test_two_sets_of_rights_cost_that_key_and_are_reported(tmp_path):
    put(tmp_path, "a.pub", "a", namespaces=["shop"])
    put(tmp_path, "b.jwk", "a")
    put(tmp_path, "c.pub", "c")
    kids, problem = trusted_in(tmp_path)
    assert kids == {pair("c").kid}
    assert f"{pair('a').kid}) is given twice, with different rights, and is not trusted" in problem


def test_when_nothing_is_left_nobody_is_trusted(tmp_path):
    put(tmp_path, "a.pub", "a", namespaces=["shop"])
    put(tmp_path, "b.jwk", "a")
    keys = TrustedKeys(tmp_path)
    keys.look()
    assert keys.keyring is None


@pytest.mark.parametrize("rights", [{"namespaces": None}, {"namespace": ["shop"]}, {"Namespaces": ["shop"]}])
def test_rights_that_are_not_understood_open_nothing(tmp_path, rights):
    put(tmp_path, "a.pub", "a", **rights)
    put(tmp_path, "c.pub", "c")
    kids, problem = trusted_in(tmp_path)
    assert kids == {pair("c").kid}
    assert problem.startswith("trusted keys: a.pub")


def test_a_coordinator_does_not_begin_with_contradictory_keys(tmp_path):
    put(tmp_path, "shop.pub", "a")
    put(tmp_path, "shop.jwk", "a", operator=True)
    with pytest.raises(InvalidKey, match=r"agent keys of namespace shop: key a .* is given twice"):
        load_agent_keys(tmp_path)
