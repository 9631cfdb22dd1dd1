"""The environment of a real container: a hook prints all of it, and no secret of it is anywhere afterwards."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Delivery, LinkOptions
from tests.agents import Client, until
from tests.pods.images import Images
from tests.pods.play import Playground, Pod, beside_agent, heard_of

pytestmark = pytest.mark.pods

PASSWORD = "c0rrect h'rse \"b\\ttery"
TOKEN = "ghp_0123456789abcdefghij"
URL_PASSWORD = "in-the-url"
SECRETS = (PASSWORD, TOKEN, URL_PASSWORD)
ENV = {
    "APP_PASSWORD": PASSWORD,
    "API_TOKEN": TOKEN,
    "CACHE": f"redis://app:{URL_PASSWORD}@cache:6379/0",
    "HARMLESS": "may-be-seen",
    "FIFTY": "y" * 50,  # base64 breaks its lines after 57 bytes
    "BIG_SECRETS_FILE": "/run/may-be-seen-too",
}
SAYS_ALL = (
    'env; env >&2; set -x; : "$APP_PASSWORD" "$API_TOKEN"; echo "$APP_PASSWORD" | base64; printf "\\377$API_TOKEN";'
    'printf %s "$FIFTY$APP_PASSWORD$API_TOKEN" | base64 >&2; printf %s "$FIFTY$API_TOKEN" | base64 -w 64'
)


@pytest.fixture(scope="module")
def pod(playground: Playground, images: Images, broker_pod: Pod) -> Iterator[Pod]:
    """A container that sleeps as its own user, with secrets in its environment."""
    container = {
        "name": "app",
        "image": "tools",
        "command": ["sleep", "1000000"],
        "securityContext": {"runAsUser": 999, "runAsGroup": 999},
    }
    chosen = {"app": images.tools, "agent": images.agent}
    hosts = {"mosquitto": broker_pod.ip}
    with Pod(playground, beside_agent(container), chosen, env={"app": ENV}, hosts=hosts) as made:
        yield made


def traces(secret: str) -> set[bytes]:
    """How a secret could look."""
    raw = secret.encode()
    in_base64 = {base64.b64encode(b"y" * shift + raw)[4:-4] for shift in range(3)}
    return {raw, json.dumps(secret)[1:-1].encode(), base64.b64encode(raw)[:12], *in_base64}


async def test_no_secret_of_a_containers_environment_is_anywhere_afterwards(
    broker_pod: Pod, pod: Pod, client: Client, tmp_path: Path
) -> None:
    await heard_of(broker_pod, pod)
    said: list[bytes] = []
    options = LinkOptions("everything", (("podhook/#", 1),), packet_limit_bytes=1 << 20)
    async with Link(parse_broker(f"mqtt://{broker_pod.ip}:1883"), options) as link:
        await link.wait_up(20)

        async def listen() -> None:
            async for event in link.events():
                if isinstance(event, Delivery):
                    said.append(event.payload)
                    event.ack()

        import asyncio

        listening = asyncio.create_task(listen())
        for script, outcome in ((SAYS_ALL, "succeeded"), (f"{SAYS_ALL}; exit 3", "failed")):
            for extra in ({}, {"environment": "minimal"}):
                text = script if not extra else f"tr '\\0' '\\n' < /proc/$PPID/environ; cat /proc/1/environ; {script}"
                action = {"exec": {"command": ["sh", "-c", text], **extra}, "containerName": "app"}
                ended = await client.run(pod, action)  # type: ignore[arg-type]
                assert ended.outcome == outcome, ended
                if not extra:
                    assert "may-be-seen" in ended.stderr.text
                    assert "/run/may-be-seen-too" in ended.stderr.text
                    assert ended.stderr.text.count("[redacted]") >= 5, ended.stderr.text
        await until(lambda: sum(b"outcome.v1" in each for each in said) >= 4, "everything was heard")
        listening.cancel()
    logs = pod.logs("agent")
    assert "attempt.finished" in logs
    state = tmp_path / "state"
    state.mkdir()
    copied = pod.exec(
        "agent", "sh", "-c", "cd /var/lib/podhook && find . -type f | xargs cat | base64 -w0", check=False
    )
    journal = base64.b64decode(copied.stdout)
    assert b"[redacted]" in journal, copied
    haystack = b"\n".join([*said, logs.encode(), journal])
    haystack += haystack.replace(b"\\n", b"").replace(b"\n", b"")  # what stood in lines, as one
    for secret in SECRETS:
        for trace in traces(secret):
            assert trace not in haystack, f"{trace!r} of {secret!r} was left behind"
