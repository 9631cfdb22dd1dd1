"""The environment of a real container: a hook prints all of it, and no secret of it is anywhere afterwards."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bus.link import Link
from agent.bus.types import Delivery
from agent.contract.signing.peeking import peek
from agent.contract.topics import Topics
from tests.agents import Client, until
from tests.broker.stage import COORDINATOR, link
from tests.pods.broker import BrokerPod, heard_of
from tests.pods.images import Images
from tests.pods.play import Playground, Pod, beside_agent
from tests.pods.test_launcher import children, family
from tests.pods.test_like_exec import NOT_DUMPABLE, OVERWRITE, python_target

pytestmark = pytest.mark.pods

PASSWORD = "c0rrect h'rse \"b\\ttery"
TOKEN = "ghp_0123456789abcdefghij"
URL_PASSWORD = "in-the-url"
SIDE_TOKEN = "of-the-other-container"
SECRETS = (PASSWORD, TOKEN, URL_PASSWORD, SIDE_TOKEN)
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


#: A server that answers with all of its environment, with that in base64 in lines, and with what it is asked.
SHOWS = r"""
import base64, http.server, os
class Shows(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = "\n".join(f"{name}={value}" for name, value in os.environ.items()).encode()
        body = self.path.encode() + b"\n" + said + b"\n" + base64.encodebytes(said)
        self.send_response(500 if self.path.startswith("/fail") else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", 8080), Shows).serve_forever()
"""
#: In one line: podman does not take a script for a word of its YAML.
SERVER = ["python3", "-c", f"import base64; exec(base64.b64decode({base64.b64encode(SHOWS.encode())!r}))"]


@pytest.fixture(scope="module")
def pod(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """Two containers with secrets in their environments, each as its own user; one shows its own to whoever asks."""
    container = {
        "name": "app",
        "image": "tools",
        "command": SERVER,
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}},
        "securityContext": {"runAsUser": 999, "runAsGroup": 999},
    }
    side = {"name": "side", "image": "tools", "command": ["sleep", "1000000"], "securityContext": {"runAsUser": 1234}}
    chosen = {"app": images.base, "side": images.tools, "agent": images.agent}
    hosts = broker_pod.hosts
    env = {"app": ENV, "side": {"SIDE_TOKEN": SIDE_TOKEN}}
    with Pod(playground, beside_agent(container, side), chosen, env=env, hosts=hosts) as made:
        yield made


def traces(secret: str) -> set[bytes]:
    """How a secret could look."""
    raw = secret.encode()
    in_base64 = {base64.b64encode(b"y" * shift + raw)[4:-4] for shift in range(3)}
    return {raw, json.dumps(secret)[1:-1].encode(), base64.b64encode(raw)[:12], *in_base64}


async def test_no_secret_of_a_containers_environment_is_anywhere_afterwards(
    broker_pod: BrokerPod, pod: Pod, client: Client, tmp_path: Path
) -> None:
    await heard_of(broker_pod, pod)
    said: list[bytes] = []
    # Nobody may read everything there: what agents are told, and what they say.
    eyes = [
        link(broker_pod.as_user("shop"), ("podhook/v1/agents/shop/+/commands", 1)),
        link(broker_pod.as_user("nightly"), (Topics().presences(), 1), (Topics().replies(COORDINATOR), 1)),
    ]
    async with eyes[0], eyes[1]:
        for each in eyes:
            await each.wait_up(20)

        async def listen(each: Link) -> None:
            async for event in each.events():
                if isinstance(event, Delivery):
                    said.append(peek(event.payload) if event.payload else b"")
                    event.ack()

        listening = [asyncio.create_task(listen(each)) for each in eyes]
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
        # Nothing is entered for a request; what is known of the containers' environments is looked for all the same.
        for path, outcome in (("/", "succeeded"), (f"/fail/{SIDE_TOKEN}", "failed")):
            answered = await client.run(pod, {"httpGet": {"port": 8080, "path": path}})
            assert (answered.outcome, answered.notes) == (outcome, []), answered
            assert "HARMLESS=may-be-seen" in answered.stdout.text
            assert "APP_PASSWORD=[redacted]" in answered.stdout.text
        await until(lambda: sum(b"trigger.v1" in each for each in said) >= 6, "every trigger was heard")
        await until(lambda: sum(b"outcome.v1" in each for each in said) >= 6, "every outcome was heard")
        for each in listening:
            each.cancel()
    logs = pod.logs("agent")
    assert "attempt.finished" in logs
    state = tmp_path / "state"
    state.mkdir()
    copied = pod.exec(
        "agent", "sh", "-c", "cd /var/lib/podhook && find . -type f | xargs cat | base64 -w0", check=False
    )
    journal = base64.b64decode(copied.stdout)
    assert b"[redacted]" in journal, copied
    said = [each for each in said if b"dev.podhook.trigger.v1" not in each]  # what a trigger tells is told there
    haystack = b"\n".join([*said, logs.encode(), journal])
    haystack += haystack.replace(b"\\n", b"").replace(b"\n", b"")  # what stood in lines, as one
    for secret in SECRETS:
        for trace in traces(secret):
            assert trace not in haystack, f"{trace!r} of {secret!r} was left behind"


async def test_the_environment_of_a_container_that_was_started_again_is_read_anew(
    broker_pod: BrokerPod, pod: Pod, client: Client
) -> None:
    """And by nobody who stays: what looks is a child of the launcher, and ends."""
    await heard_of(broker_pod, pod)
    get = {"httpGet": {"port": 8080, "path": f"/{SIDE_TOKEN}"}}

    async def shown() -> str:
        answered = await client.run(pod, get)
        assert answered.notes == [], answered
        return answered.stdout.text if answered.outcome == "succeeded" else ""

    assert (await shown()).startswith("/[redacted]\n")
    before = pod.host_pid("app")
    pod.restart("app")
    again = ""
    for _ in range(200):
        if again := await shown():
            break
        await asyncio.sleep(0.1)
    assert pod.host_pid("app") != before
    assert again.startswith("/[redacted]\n")
    assert "APP_PASSWORD=[redacted]" in again
    assert not [each for each in SECRETS if each in again]
    inside = client.run(pod, {"exec": {"command": ["sh", "-c", "env"]}, "containerName": "app"})
    assert "APP_PASSWORD=[redacted]" in (await inside).stdout.text, "the launcher is as it was"
    idle = children((await family(pod)).launcher)
    assert len(idle) == 1, "one that waits for the next attempt, and nobody else"


async def test_what_cannot_be_read_is_said_with_the_answer(
    playground: Playground, images: Images, broker_pod: BrokerPod, client: Client
) -> None:
    """One that wrote over its environment, as Redis does; one that nobody may look into; and one that can be read."""
    shows = {"name": "app", "image": images.base, "command": SERVER}
    manifest = beside_agent(
        {**shows, "readinessProbe": {"tcpSocket": {"port": 8080}}, "securityContext": {"runAsUser": 999}},
        python_target("titled", images, OVERWRITE.format(length="0", title=b"server: port=5432 waits")),
        python_target("undumpable", images, NOT_DUMPABLE),
    )
    chosen, hosts = {"agent": images.agent}, broker_pod.hosts
    async with Pod(playground, manifest, chosen, env={"app": ENV}, hosts=hosts) as pod:
        await heard_of(broker_pod, pod)
        answered = await client.run(pod, {"httpGet": {"port": 8080, "path": "/"}})
        assert "APP_PASSWORD=[redacted]" in answered.stdout.text
        what = "what was answered was not searched for secrets in the environment of container"
        titled, undumpable = sorted(answered.notes)
        assert titled.startswith(f"{what} 'titled': its main process overwrote its environment")
        assert undumpable.startswith(f"{what} 'undumpable': ")
        assert "its main process is not dumpable" in undumpable
