"""What stands for a presence and does not verify: shown whatever its labels, and cleared with --prune."""

from __future__ import annotations

import asyncio

import pytest

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import LinkOptions, Publication
from agent.contract.signing.keys import public_text
from agent.contract.topics import Topics
from tests.contract.signing.keys import pair

pytestmark = [pytest.mark.broker, pytest.mark.processes]


def write_over(cli, namespace: str, pod: str) -> None:
    async def publish() -> None:
        async with Link(parse_broker(cli.url), LinkOptions(f"stranger-{namespace}-{pod}")) as link:
            await link.wait_up(10)
            await link.publish(Publication(Topics(cli.root).presence(namespace, pod), b"nonsense", retain=True))

    asyncio.run(publish())


def test_it_is_told_and_cleared_and_then_gone(cli):
    keys = cli.directory / "agents"
    keys.mkdir()
    (keys / "shop.pub").write_text(public_text(pair("shop")), encoding="ascii")
    write_over(cli, "shop", "db-0")
    write_over(cli, "lab", "db-1")
    told = cli("agents", "--agent-keys", keys).stderr
    assert "not believed: presence of shop/db-0: " in told
    assert "not believed: presence of lab/db-1: " in told
    assert "presence of lab/db-1" not in cli("agents", "--agent-keys", keys, "-n", "shop", "-l", "app=db").stderr
    pruned = cli("agents", "--agent-keys", keys, "-n", "shop", "--prune").stderr
    assert "cleared the presence of shop/db-0, which did not verify: " in pruned
    assert "podhook: not believed" not in pruned
    assert "db-0" not in cli("agents", "--agent-keys", keys).stderr
    assert "lab/db-1" in cli("agents", "--agent-keys", keys).stderr, "another namespace was pruned, too"


def test_a_selector_means_nothing_that_cannot_be_read(cli):
    keys = cli.directory / "agents"
    keys.mkdir()
    (keys / "shop.pub").write_text(public_text(pair("shop")), encoding="ascii")
    write_over(cli, "shop", "db-0")
    answer = cli("agents", "--agent-keys", keys, "-l", "app=db", "--prune").stderr
    assert "cleared" not in answer
    assert "not believed: presence of shop/db-0" in answer
