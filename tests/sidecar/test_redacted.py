"""Everything that an end-to-end run leaves behind is searched: no secret that podhook was told of is in it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Delivery, LinkOptions
from tests.agents import AgentProcess, Json, Stage, code, shell, until
from tests.brokers import free_port

pytestmark = [pytest.mark.broker, pytest.mark.processes]

IN_ENVIRONMENT = "c0rrect h'rse \"b\\ttery"
IN_URL = "in%2Fthe-url"
IN_FILE = "from-a-mounted-file+/="
IN_HEADER = "of-the-header-0123"
IN_TRIGGER = "told-by-the-trigger"
KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----\n"


def disguises(secret: str) -> set[bytes]:
    raw = secret.encode()
    return {
        raw,
        json.dumps(secret)[1:-1].encode(),
        quote(secret, safe="").encode(),
        secret.replace("'", "'\\''").encode(),
        raw.hex().encode(),
        *(base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)),
    }


@contextlib.asynccontextmanager
async def listening(stage: Stage) -> AsyncIterator[list[tuple[str, bytes]]]:
    """Every message below the root, with its topic."""
    heard: list[tuple[str, bytes]] = []
    options = LinkOptions("listener", ((f"{stage.root}/#", 1),), packet_limit_bytes=1 << 20)
    async with Link(parse_broker(stage.broker.url), options) as link:
        await link.wait_up(20)

        async def listen() -> None:
            async for event in link.events():
                if isinstance(event, Delivery):
                    heard.append((event.topic, event.payload))
                    event.ack()

        task = asyncio.create_task(listen())
        yield heard
        task.cancel()


async def agent_with_secrets(stage: Stage, tmp_path: Path, **settings: object) -> AgentProcess:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "password").write_text(f"{IN_FILE}\n")
    (secrets / "token").write_text(f"{IN_HEADER}\n")
    agent = stage.make(secrets_dir=secrets, health_port=free_port(), **settings)
    agent.environment = {
        "DB_PASSWORD": IN_ENVIRONMENT,
        "CACHE": f"redis://u:{IN_URL}@h/",
        "TLS_KEY": KEY,
        "SEEN": "seen",
        "FIFTY": "y" * 50,  # base64 breaks its lines after 57 bytes
    }
    await stage.start(agent)
    return agent


EVERYTHING = r"""
set -x
env
env >&2
: "$DB_PASSWORD"
printf %s "$DB_PASSWORD" | base64
printf "xy$PLAIN_NAME" | base64
printf "\377\376"; printf %s "$DB_PASSWORD"
echo "$TLS_KEY" | tail -n 3 >&2
printf %s "$DB_PASSWORD" | od -An -tx1 | tr -d ' \n'
for before in "" "$FIFTY" "$FIFTY$FIFTY"; do
  printf %s "$before$DB_PASSWORD and more" | base64
  printf %s "$before$DB_PASSWORD and more" | base64 -w 64 | sed 's/$/\r/' >&2
done
"""
LONG = 'i=0; while [ $i -lt 3000 ]; do echo "$i $DB_PASSWORD $PLAIN_NAME $TRIGGER_TOKEN"; i=$((i+1)); done; env >&2'
ENV = [
    {"name": "PLAIN_NAME", "valueFrom": {"file": "password"}},
    {"name": "TRIGGER_TOKEN", "value": IN_TRIGGER},
]


def action(script: str) -> Json:
    made = shell(script)
    made["exec"]["env"] = ENV
    return made


def health_of(agent: AgentProcess) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{agent.settings['HEALTH_PORT']}/healthz") as answer:
        return bytes(answer.read())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that answers with its request, which fails."""
    head = await reader.readuntil(b"\r\n\r\n")
    body = head * 400
    writer.write(b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()
    writer.close()


async def test_no_secret_is_left_anywhere(stage: Stage, tmp_path: Path) -> None:
    agent, client = await agent_with_secrets(stage, tmp_path, log_level="debug"), stage.client
    async with listening(stage) as heard:
        outcomes = [
            await client.run(agent, action(script), timeout_seconds=timeout)
            for script, timeout in (
                (EVERYTHING, 30),
                (f"{EVERYTHING}\nexit 3", 30),
                (LONG, 30),
                ('printf %s "$DB_PASSWORD" | head -c 15; sleep 60', 1),
            )
        ]
        assert [each.outcome for each in outcomes] == ["succeeded", "failed", "succeeded", "timed_out"]
        assert outcomes[2].stdout.truncated
        assert outcomes[0].stdout.encoding == "base64", "bytes that are no UTF-8 are searched, too"
        assert "SEEN=seen" in outcomes[0].stderr.text, "what is no secret stays"
        assert "DB_PASSWORD=[redacted]" in outcomes[0].stderr.text
        assert "CACHE=redis://u:[redacted]@h/" in outcomes[0].stderr.text
        assert outcomes[3].stdout.text == "[redacted]", "the half of one, cut off by the timeout"
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        headers = [{"name": "X-Plain", "valueFrom": {"file": "token"}}]
        request = {"host": "127.0.0.1", "port": port, "path": f"/?api_key={IN_TRIGGER}", "httpHeaders": headers}
        answered = await client.run(agent, {"httpGet": request})
        server.close()
        assert answered.http_status == 500
        assert "X-Plain: [redacted]" in answered.stdout.text
        assert answered.error is not None
        assert "[redacted]" in answered.error.message
        missing = await client.run(agent, {"exec": {"command": [f"/{IN_TRIGGER}"], "env": ENV}})
        assert code(missing) == "not_found"
        nowhere = [{"name": "A", "valueFrom": {"file": "nowhere"}}]
        refused = await client.run(agent, {"exec": {"command": ["true"], "env": nowhere}})
        assert code(refused) == "secret_unavailable"
        health = await asyncio.to_thread(health_of, agent)
        await until(lambda: sum(b"outcome.v1" in payload for _, payload in heard) >= 7, "everything was heard")
    assert await agent.terminate() == 0
    left = {
        "log": agent.log_file.read_bytes(),
        "audit": agent.audit_file.read_bytes(),
        "health": health,
        **{str(path.relative_to(agent.state)): path.read_bytes() for path in agent.state.rglob("*") if path.is_file()},
        **{
            f"message {number} on {topic}": payload
            for number, (topic, payload) in enumerate(heard)
            if not topic.endswith("/commands")  # what the trigger tells is told there: by whoever sent it
        },
    }
    assert any(b"[redacted]" in content for name, content in left.items() if "journal" in name), left.keys()
    decoded = {
        f"outcome {number}, decoded": base64.b64decode(each.stdout.text)
        for number, each in enumerate(outcomes)
        if each.stdout.encoding == "base64"
    }
    assert decoded
    # Base64 in lines is searched as if it were one; in JSON their ends are escaped.
    flat = {
        f"{where}, in one line": content.replace(b"\\r", b"")
        .replace(b"\\n", b"")
        .replace(b"\r", b"")
        .replace(b"\n", b"")
        for where, content in {**left, **decoded}.items()
    }
    for where, content in {**left, **decoded, **flat}.items():
        for secret in (IN_ENVIRONMENT, IN_URL, IN_FILE, IN_HEADER, IN_TRIGGER, *KEY.splitlines()[1:3]):
            for each in disguises(secret):
                assert each not in content, f"{each!r} is in {where}"
    commands = b"".join(payload for topic, payload in heard if topic.endswith("/commands"))
    assert IN_FILE.encode() not in commands, "by reference means that nobody is told"
    assert IN_HEADER.encode() not in commands


async def test_without_a_directory_a_reference_is_refused_before_anything_runs(stage: Stage) -> None:
    agent, tally = await stage.agent(), stage.tally()
    made = tally.action()
    made["exec"]["env"] = ENV
    outcome = await stage.client.run(agent, made)
    assert (outcome.outcome, code(outcome)) == ("rejected", "secret_unavailable")
    assert outcome.error is not None
    assert "PODHOOK_SECRETS_DIR" in outcome.error.message
    assert tally.runs == 0
