"""Who asks unsigned where only signed questions are answered is told what to give."""

from __future__ import annotations

import uuid

import pytest

from agent.cli.options import ASKED_UNSIGNED
from agent.contract.signing.keys import private_text, public_text
from tests.contract.signing.keys import pair

pytestmark = [pytest.mark.broker, pytest.mark.processes]

RUN = str(uuid.UUID(int=7))
COMMANDS = {"query": ("query", RUN), "runs": ("runs",), "cancel": ("cancel", RUN), "gather": ("run", "--run-id", RUN)}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_key_that_is_missing_is_named(cli, command):
    trusted = cli.directory / "trusted"
    trusted.mkdir()
    (trusted / "nightly.pub").write_text(public_text(pair("nightly")), encoding="ascii")
    key = cli.directory / "nightly.key"
    key.write_text(private_text(pair("nightly")), encoding="ascii")
    cli.agent("db-0", ALLOW_UNSIGNED="", TRUSTED_KEYS=trusted)
    cli.online("db-0")
    assert ASKED_UNSIGNED in cli(*command).stderr
    assert ASKED_UNSIGNED not in cli(*command, "--key", key).stderr


def test_where_unsigned_questions_are_answered_nobody_is_sent_for_a_key(cli):
    cli.agent("db-0")
    cli.online("db-0")
    for command in COMMANDS.values():
        assert ASKED_UNSIGNED not in cli(*command).stderr
