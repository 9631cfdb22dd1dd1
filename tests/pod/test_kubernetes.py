"""What the API server is asked and what its answers become: the real client, over TLS, against a mock API server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kmock
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from multidict import CIMultiDict

from agent.contract.errors import ClusterUnavailable, InvalidSettings
from agent.pod.identity import Identity, parse_description
from agent.pod.kubernetes import MAX_ANSWER_BYTES, OwnPod
from tests.agents import PROJECT, LightAgent, Stage, any_stage, light_settings, stage, until

__all__ = ["any_stage", "stage"]

IDENTITY = Identity("shop", "db-0", "6f1c")
QUESTION = "get /api/v1/namespaces/shop/pods/db-0"
OWNER = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "9a7e", "controller": True}

#: As the API server shows a pod, with much that is of no interest here.
POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "db-0",
        "namespace": "shop",
        "uid": "6f1c",
        "labels": {"app": "db"},
        "ownerReferences": [{**OWNER, "blockOwnerDeletion": True}],
    },
    "spec": {
        "initContainers": [
            {"name": "copy-config", "image": "busybox"},
            {"name": "agent", "image": "podhook", "restartPolicy": "Always"},
        ],
        "containers": [
            {"name": "mysql", "ports": [{"name": "db", "containerPort": 3306, "protocol": "TCP"}]},
            {"name": "metrics", "ports": [{"containerPort": 9104, "protocol": "TCP"}], "env": []},
        ],
        "serviceAccountName": "db",
    },
    "status": {"phase": "Running"},
}
DESCRIPTION = parse_description(
    '{"containers": [{"name": "mysql", "ports": [{"name": "db", "containerPort": 3306}]},'
    ' {"name": "metrics", "ports": [{"containerPort": 9104}]}, {"name": "agent"}],'
    ' "owners": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "9a7e", "controller": true}]}'
)


# --- the mock API server, and a pod's way to it


@dataclass(frozen=True)
class Certificates:
    """A cluster's authority, its API server's key and certificate for 127.0.0.1, and an authority of somebody else."""

    directory: Path

    @property
    def authority(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def stranger(self) -> Path:
        return self.directory / "other.pem"

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.pem", self.directory / "server.key")
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Authorities as many clusters have them: without key identifiers."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cnf").write_text(
        "[req]\ndistinguished_name=dn\nx509_extensions=ca\n[dn]\n[ca]\nbasicConstraints=critical,CA:true\n"
        "[leaf]\nsubjectAltName=IP:127.0.0.1\n"
    )

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True, timeout=30)

    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -config cnf"
    for name in ("ca", "other"):
        openssl(f"req -x509 {key} -keyout {name}.key -out {name}.pem -days 2 -subj /CN={name}")
    openssl(f"req {key} -keyout server.key -out server.csr -subj /CN=kubernetes")
    signed = "-CA ca.pem -CAkey ca.key -set_serial 1 -days 2 -extfile cnf -extensions leaf"
    openssl(f"x509 -req -in server.csr {signed} -out server.pem")
    return Certificates(folder)


class TlsServer(RawTestServer):
    """kmock's server, with a certificate."""

    def __init__(self, *arguments: Any, tls: ssl.SSLContext, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tls = tls

    async def start_server(self, loop: Any = None, **options: Any) -> None:
        await super().start_server(loop, ssl=self._tls, **options)


@dataclass
class Cluster:
    """A mock API server that has the pod, and what a pod of that cluster is given to get there."""

    api: kmock.KubernetesEmulator
    service_account: Path
    monkeypatch: pytest.MonkeyPatch
    url: str

    @property
    def tokens(self) -> list[str]:
        """What the API server was shown, question by question."""
        return [str(CIMultiDict(request.headers).get("Authorization")) for request in self.api]

    def put(self, pod: dict[str, Any]) -> None:
        key = ("v1/pods", "shop", "db-0")
        self.api.objects[key] = pod

    def enter(self, port: int | str = "") -> None:
        """From here on this process is in a pod of the cluster."""
        host, _, served = self.url.removeprefix("https://").partition(":")
        self.monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        self.monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port or served))

    def pod(self, **options: Any) -> OwnPod:
        return OwnPod(IDENTITY, service_account=self.service_account, **options)

    def kubeconfig(self, path: Path, **user: str) -> Path:
        """Write a kubeconfig for the cluster, and make it the usual one."""
        authority = base64.b64encode((self.service_account / "ca.crt").read_bytes()).decode()
        path.write_text(
            yaml.safe_dump(
                {
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "mock", "user": "jane"}}],
                    "clusters": [
                        {"name": "mock", "cluster": {"server": self.url, "certificate-authority-data": authority}}
                    ],
                    "users": [{"name": "jane", "user": user or {"token": "janes"}}],
                }
            )
        )
        self.monkeypatch.setenv("KUBECONFIG", str(path))
        return path


@pytest.fixture
async def cluster(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Cluster]:
    """A cluster; the test is outside of it, with no kubeconfig and no proxy, until it enters."""
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "token").write_text("first")
    (account / "ca.crt").write_bytes(certificates.authority.read_bytes())
    server = functools.partial(TlsServer, tls=certificates.server())
    async with kmock.KubernetesEmulator() as api, kmock.Server(api, server_cls=server) as served:
        made = Cluster(api, account, monkeypatch, str(served.url).rstrip("/"))
        made.put(POD)
        yield made


@pytest.fixture
async def inside(cluster: Cluster) -> Cluster:
    """A cluster that the test is in."""
    cluster.enter()
    return cluster


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens, and nobody can begin to while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be a user for whom file modes count: root may read everything."""
    real, effective = os.getuid(), os.geteuid()
    if effective == 0:
        os.setresuid(64918, 64918, 0)
    try:
        yield
    finally:
        if effective == 0:
            os.setresuid(real, effective, 0)


async def refused(pod: OwnPod) -> ClusterUnavailable:
    with pytest.raises(ClusterUnavailable) as caught:
        await pod.read()
    return caught.value


# --- what is read


async def test_containers_in_their_order_then_native_sidecars_with_ports_and_owners(inside):
    assert await inside.pod().read() == DESCRIPTION
    (request,) = list(inside.api)
    assert (request.method, request.url.path) == ("GET", "/api/v1/namespaces/shop/pods/db-0")
    assert inside.tokens == ["Bearer first"]


async def test_a_pod_without_owners_and_ports_has_none(inside):
    inside.put({"metadata": {"uid": "6f1c"}, "spec": {"containers": [{"name": "mysql"}]}})
    assert await inside.pod().read() == parse_description('{"containers": [{"name": "mysql"}]}')


async def test_a_rotated_token_is_shown_the_next_time(inside):
    pod = inside.pod()
    await pod.read()
    (inside.service_account / "token").write_text("second\n")  # a newline, which no header may have
    await pod.read()
    assert inside.tokens == ["Bearer first", "Bearer second"]


async def test_nothing_is_left_running_or_open(inside):
    before = asyncio.all_tasks()
    descriptors = set(Path("/proc/self/fd").iterdir())
    await inside.pod().read()
    left = [task for task in asyncio.all_tasks() - before if "RequestHandler" not in repr(task)]  # the mock server's
    assert left == []
    await until(lambda: set(Path("/proc/self/fd").iterdir()) <= descriptors, "every connection is closed")


async def test_outside_a_cluster_the_usual_kubeconfig_leads_there(cluster, tmp_path):
    cluster.kubeconfig(tmp_path / "config")
    assert await cluster.pod().read() == DESCRIPTION
    assert cluster.tokens == ["Bearer janes"]


async def test_the_kubeconfig_of_the_home_directory_is_the_usual_one(cluster, tmp_path):
    (tmp_path / ".kube").mkdir()
    path = cluster.kubeconfig(tmp_path / ".kube" / "config")
    code = (
        "import asyncio, agent.pod.kubernetes as k; from agent.pod.identity import Identity;"
        "print(asyncio.run(k.OwnPod(Identity('shop', 'db-0', '6f1c')).read()).containers[0].name)"
    )  # the vendor looks once, when it is imported
    cluster.monkeypatch.delenv("KUBECONFIG")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert output.decode() == "mysql\n", path


# --- what can go wrong


REFUSALS = {
    "401": (
        (401, {}, "Unauthorized"),
        (
            "{url} does not accept this agent's credentials (401: Unauthorized); check that the pod's service account "
            "still exists, or log in again if there is a kubeconfig"
        ),
    ),
    "403": (
        (403, {}, 'pods "db-0" is forbidden: User "system:serviceaccount:shop:db" cannot get resource "pods"'),
        (
            "{url} does not let this agent get its own pod shop/db-0 (403: "
            'pods "db-0" is forbidden: User "system:serviceaccount:shop:db" cannot get resource "pods"); allow it: '
            "kubectl -n shop create role podhook-db-0 --verb=get --resource=pods --resource-name=db-0 && "
            "kubectl -n shop create rolebinding podhook-db-0 --role=podhook-db-0 --serviceaccount=shop:db "
            "(as YAML: docs/kubernetes.md)"
        ),
    ),
    "403 for a person": (
        (403, {}, 'pods "db-0" is forbidden: User "jane doe" cannot get'),
        (
            "{url} does not let this agent get its own pod shop/db-0 (403: "
            'pods "db-0" is forbidden: User "jane doe" cannot get); allow it: '
            "kubectl -n shop create role podhook-db-0 --verb=get --resource=pods --resource-name=db-0 && "
            "kubectl -n shop create rolebinding podhook-db-0 --role=podhook-db-0 '--user=jane doe' "
            "(as YAML: docs/kubernetes.md)"
        ),
    ),
    "403 of somebody who does not say whose": (
        (403, {}, ""),
        (
            "{url} does not let this agent get its own pod shop/db-0 (403); allow it: "
            "kubectl -n shop create role podhook-db-0 --verb=get --resource=pods --resource-name=db-0 && "
            "kubectl -n shop create rolebinding podhook-db-0 --role=podhook-db-0 --serviceaccount=shop:default "
            "(as YAML: docs/kubernetes.md)"
        ),
    ),
    "404": (
        (404, {}, 'pods "db-0" not found'),
        (
            '{url} has no pod shop/db-0 (404: pods "db-0" not found); set PODHOOK_NAMESPACE and PODHOOK_POD from '
            "metadata.namespace and metadata.name (downward API), and check that this is the pod's cluster"
        ),
    ),
    "429": ((429, {"Retry-After": "7"}, "too many requests"), "{url} cannot answer now (429: too many requests)"),
    "500": ((500, {}, "etcd: request timed out"), "{url} cannot answer now (500: etcd: request timed out)"),
    "503": ((503, {"Retry-After": "Sun, 22 Nov 2026 12:00:00 GMT"}, ""), "{url} cannot answer now (503)"),
    "410": ((410, {}, "gone\x1b[2J"), "{url} answered the question for pod shop/db-0 with a no (410: gone [2J)"),
}


@pytest.mark.parametrize(("answer", "sentence"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_no_is_told_with_its_reason_and_what_to_do(inside, answer, sentence):
    status, headers, message = answer
    inside.api[QUESTION] << status << kmock.headers(headers) << {"kind": "Status", "message": message}
    error = await refused(inside.pod())
    assert str(error) == sentence.format(url=f"the API server at {inside.url}")
    assert error.retry_after_seconds == (7 if status == 429 else 0)


async def test_another_uid_is_another_pod(inside):
    inside.put({**POD, "metadata": {**POD["metadata"], "uid": "0b2d"}})
    assert str(await refused(inside.pod())) == (
        "pod shop/db-0 has the uid '0b2d' in the cluster, and this agent is of '6f1c'; set PODHOOK_POD_UID from "
        "metadata.uid (downward API) - if it is, this pod was replaced by another of its name"
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "(the answer: Invalid JSON: expected value at line 1 column 1)"),
        (b"[]", "(the answer: Input should be an object)"),
        (b"{}", "(metadata: Field required)"),
        (b'{"metadata": {"uid": "6f1c"}, "spec": {"containers": []}}', "(spec.containers: List should have at least 1"),
    ],
)
async def test_an_answer_that_is_no_pod_is_named(inside, body, why):
    inside.api[QUESTION] << body
    said = str(await refused(inside.pod()))
    assert f"answered with something that is no pod {why}" in said
    assert said.endswith("check that it is the API server")


async def test_an_answer_has_a_bound(inside):
    inside.api[QUESTION] << b" " * (MAX_ANSWER_BYTES + 1)
    assert f"answered with more than {MAX_ANSWER_BYTES} bytes for pod shop/db-0" in str(await refused(inside.pod()))


async def test_a_page_instead_of_a_status_is_judged_by_its_status(inside):
    inside.api[QUESTION] << 502 << b"<html>\xff"
    assert str(await refused(inside.pod())) == f"the API server at {inside.url} cannot answer now (502)"


async def test_nobody_listens(inside, closed_port):
    inside.enter(closed_port)
    assert str(await refused(inside.pod())) == (
        f"the API server at https://127.0.0.1:{closed_port} cannot be reached (Connection refused); check its address "
        "and this pod's network"
    )


async def test_no_answer_in_time(inside):
    asked = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        with contextlib.suppress(OSError):
            await _reader.read()
            writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        inside.enter(port)
        assert str(await refused(inside.pod(timeout_seconds=0.25))) == (
            f"the API server at https://127.0.0.1:{port} did not answer within 0.25 s; check that no network policy or "
            "firewall drops it"
        )
    assert asked.is_set()


async def test_a_certificate_of_another_authority_is_not_trusted(inside, certificates):
    authority = inside.service_account / "ca.crt"
    authority.write_bytes(certificates.stranger.read_bytes())
    said = str(await refused(inside.pod()))
    assert said.startswith(f"the API server at {inside.url} shows a certificate that {authority} does not vouch for (")
    assert list(inside.api) == []  # the token was shown to nobody


async def test_a_server_without_tls_is_named(inside):
    async with kmock.RawHandler() as plain, kmock.Server(plain) as served:
        inside.enter(served.port)
        assert "does not speak TLS as it should" in str(await refused(inside.pod()))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda account: (account / "token").unlink(), "Service token file does not exist"),
        (lambda account: (account / "token").write_text(""), "Token file exists but empty"),
        (lambda account: (account / "ca.crt").unlink(), "Service certification file does not exists"),
    ],
    ids=["no token", "an empty token", "no authority"],
)
async def test_a_service_account_that_is_not_there(inside, spoil, why):
    spoil(inside.service_account)
    assert str(await refused(inside.pod())) == (
        f"the service account in {inside.service_account} cannot be used ({why}); "
        "set automountServiceAccountToken: true in the pod"
    )


async def test_an_authority_that_is_no_certificate(inside):
    (inside.service_account / "ca.crt").write_text("no certificate")
    assert "could not be asked (SSLError: " in str(await refused(inside.pod()))


async def test_a_token_that_the_agents_user_may_not_read(inside):
    """As the kubelet leaves it in a pod with an fsGroup."""
    with tempfile.TemporaryDirectory() as made:  # pytest's own lets nobody but its user in
        account = Path(made)
        account.chmod(0o755)
        (account / "ca.crt").write_bytes((inside.service_account / "ca.crt").read_bytes())
        (account / "token").write_text("first")
        (account / "token").chmod(0)
        with nobody():
            error = await refused(OwnPod(IDENTITY, service_account=account))
            effective = os.geteuid()
    assert str(error) == (
        f"{account}/token is not readable for this agent (uid {effective}, gid {os.getegid()}); in a pod with an "
        "fsGroup only that group may read it: give the agent a pod description instead (PODHOOK_POD_FILE)"
    )


async def test_no_cluster_and_no_kubeconfig(cluster):
    assert str(await refused(cluster.pod())) == (
        "there is no cluster to ask: KUBERNETES_SERVICE_HOST is not set, as it is in every pod, and there is no "
        "kubeconfig to be read at ~/.kube/config; set KUBECONFIG, or PODHOOK_KUBERNETES=false"
    )


async def test_a_kubeconfig_of_somebody_else_is_as_good_as_none(cluster, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    path = cluster.kubeconfig(home / "config")
    home.chmod(0)
    with nobody():
        error = await refused(cluster.pod())
    home.chmod(0o700)
    assert f"there is no kubeconfig to be read at {path}; set KUBECONFIG" in str(error)


@pytest.mark.parametrize(
    "text", ["", "- a list", "{", "current-context: nowhere\ncontexts: []\nusers: []\nclusters: []"]
)
async def test_a_kubeconfig_that_cannot_be_used(cluster, tmp_path, text):
    path = cluster.kubeconfig(tmp_path / "config")
    path.write_text(text)
    assert str(await refused(cluster.pod())).endswith("find out why with: kubectl -n shop get pod db-0")


async def test_a_kubeconfigs_keys_stay_in_it(cluster, tmp_path, caplog):
    """The vendor's message about a missing field quotes all that stands beside it."""
    path = cluster.kubeconfig(tmp_path / "config")
    config = yaml.safe_load(path.read_text())
    config["users"] = [{"name": "jane", "token": "s3cret"}]  # one level too high
    path.write_text(yaml.safe_dump(config))
    error = await refused(cluster.pod())
    assert "s3cret" in str(error.__cause__)
    assert "s3cret" not in str(error) + caplog.text
    assert str(error).startswith(f"the kubeconfig {path} cannot be used (ConfigException)")


async def test_a_login_that_hangs_is_not_started_again_and_again(cluster, tmp_path):
    path = cluster.kubeconfig(tmp_path / "config")
    config = yaml.safe_load(path.read_text())
    started = tmp_path / "pids"
    arguments = ["-c", f"echo $$ >>{started}; exec sleep 60"]
    login = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": arguments}
    config["users"][0]["user"] = {"exec": login}
    path.write_text(yaml.safe_dump(config))
    listener = Listener()
    (sentence,) = await listener.search(cluster.pod(timeout_seconds=1))
    assert sentence == (
        f"the kubeconfig {path} did not log in within 1 s; log in with: kubectl -n shop get pod db-0 - and start the "
        "agent again"
    )
    assert listener.waits == []
    await until(lambda: started.exists() and started.read_text(), "the program runs")  # the vendor leaves it behind
    (pid,) = started.read_text().split()
    os.kill(int(pid), signal.SIGKILL)
    await until(lambda: not (Path("/proc") / pid).exists(), "the program is gone")


async def test_the_library_is_not_installed(inside, monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio", None)
    with pytest.raises(InvalidSettings, match=r"install it: pip install 'podhook\[kubernetes\]', or set") as caught:
        await inside.pod().read()
    assert str(caught.value).startswith("PODHOOK_KUBERNETES is true, and kubernetes-asyncio cannot be imported (")


# --- until it is known


class Listener:
    """Hears what the search says, and lets it wait without waiting."""

    def __init__(self, *, naps: int = 100) -> None:
        self.heard: list[object] = []
        self.waits: list[float] = []
        self._naps = naps

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) == self._naps:
            raise asyncio.CancelledError

    async def search(self, pod: OwnPod, *, spread: float = 0) -> list[object]:
        with contextlib.suppress(asyncio.CancelledError):
            await pod.find(self.heard.append, self.heard.append, sleep=self.sleep, spread=lambda: spread)
        return self.heard


async def test_what_is_found_at_once_is_told_at_once(inside):
    listener = Listener()
    assert await listener.search(inside.pod()) == [None, DESCRIPTION]
    assert (listener.waits, len(list(inside.api))) == ([], 1)


async def test_it_is_tried_again_until_the_pod_was_read_and_never_after(inside):
    inside.api[QUESTION][:2] << 503 << {"message": "not yet"}
    listener = Listener()
    unavailable = f"the API server at {inside.url} cannot answer now (503: not yet)"
    assert await listener.search(inside.pod()) == [
        f"{unavailable}; it is tried again in 1 s",
        f"{unavailable}; it is tried again in 2 s",
        None,
        DESCRIPTION,
    ]
    assert (listener.waits, len(list(inside.api))) == ([1, 2], 3)


async def test_pauses_double_up_to_five_minutes(inside, closed_port):
    inside.enter(closed_port)
    listener = Listener(naps=12)
    await listener.search(inside.pod())
    assert listener.waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


async def test_pauses_are_spread_so_that_a_thousand_agents_do_not_ask_at_once(inside, closed_port):
    inside.enter(closed_port)
    listener = Listener(naps=11)
    await listener.search(inside.pod(), spread=0.5)
    assert listener.waits == [0.75, 1.5, 3, 6, 12, 24, 48, 96, 192, 225, 225]
    assert listener.heard[0].endswith("; it is tried again in 1 s")


@pytest.mark.parametrize(("asked", "waits"), [("7", [8, 9, 11]), ("999999999", [300, 300, 300])])
async def test_what_the_server_asks_for_is_waited_for(inside, asked, waits):
    inside.api[QUESTION] << 429 << kmock.headers({"Retry-After": asked}) << {"message": "slow down"}
    listener = Listener(naps=3)
    await listener.search(inside.pod())
    assert listener.waits == waits
    assert listener.heard[0].endswith(f"(429: slow down); it is tried again in {waits[0]} s")


async def test_without_the_library_there_is_nothing_to_wait_for(inside, monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio", None)
    listener = Listener()
    (sentence,) = await listener.search(inside.pod())
    assert "pip install 'podhook[kubernetes]'" in sentence
    assert listener.waits == []


async def test_a_search_can_be_cancelled(inside):
    inside.api[QUESTION] << 503
    waiting = asyncio.Event()

    async def wait(_seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    heard: list[object] = []
    task = asyncio.create_task(inside.pod().find(heard.append, heard.append, sleep=wait))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(heard) == 1


# --- the agent


def imported(log: str) -> set[str]:
    """The modules that a process names when it runs with PYTHONPROFILEIMPORTTIME."""
    return {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}


async def freezer(stack: contextlib.AsyncExitStack) -> int:
    """A server that freezes at GET /freeze; returns its port."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="frozen", status=200 if request.path == "/freeze" else 404)

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner.addresses[0][1]


@pytest.mark.processes
@pytest.mark.broker
async def test_an_agent_that_may_ask_knows_its_pod(stage: Stage, cluster, tmp_path):
    cluster.kubeconfig(tmp_path / "config")
    agent = stage.make(kubernetes="true")
    async with contextlib.AsyncExitStack() as stack:
        port = await freezer(stack)
        containers = [
            {
                "name": "mysql",
                "ports": [{"name": "db", "containerPort": 3306}, {"name": "hooks", "containerPort": port}],
            },
            {"name": "app"},
        ]
        metadata = {**POD["metadata"], "uid": agent.uid}
        cluster.put({**POD, "metadata": metadata, "spec": {"containers": containers}})
        await stage.start(agent)
        said = await stage.client.presence(agent, lambda it: it and "mysql" in it.containers, "the pod's containers")
        assert said is not None
        assert said.containers == ["mysql", "app"]
        assert [owner.model_dump(by_alias=True, exclude_none=True) for owner in said.owners] == [
            {"api_version": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "9a7e", "controller": True}
        ]
        assert said.problems == []
        freeze = {"containerName": "mysql", "httpGet": {"port": "hooks", "path": "/freeze"}}
        outcome = await stage.client.run(agent, freeze)
        assert outcome.outcome == "succeeded", outcome
        unknown = await stage.client.run(agent, {"containerName": "mysql", "httpGet": {"port": "web"}})
        assert "has no port named 'web' (has: db, hooks)" in unknown.error.message
    assert len(list(cluster.api)) == 1


@pytest.mark.processes
@pytest.mark.broker
async def test_an_agent_that_is_not_let_in_works_and_says_what_is_missing(stage: Stage, cluster, tmp_path):
    cluster.kubeconfig(tmp_path / "config")
    cluster.api[QUESTION] << 403 << {"message": 'User "jane" cannot get resource "pods"'}
    agent = await stage.agent(kubernetes="true")
    said = await stage.client.presence(agent, lambda it: it and it.problems, "the problem")
    assert said is not None
    (problem,) = said.problems
    assert "kubectl -n shop create rolebinding podhook-db-0 --role=podhook-db-0 --user=jane" in problem
    await stage.client.works(agent)
    assert await agent.terminate() == 0


@pytest.mark.processes
@pytest.mark.broker
async def test_the_pods_file_wins(stage: Stage, cluster, tmp_path):
    cluster.kubeconfig(tmp_path / "config")
    described = tmp_path / "pod.json"
    described.write_text('{"containers": [{"name": "app"}, {"name": "from-the-file"}]}')
    agent = await stage.agent(kubernetes="true", pod_file=described)
    said = await stage.client.presence(
        agent, lambda it: it and "from-the-file" in it.containers, "the file's containers"
    )
    assert said is not None
    assert said.problems == []
    await stage.client.works(agent)
    assert list(cluster.api) == []


@pytest.mark.processes
@pytest.mark.broker
async def test_a_file_that_cannot_be_read_does_not_win_until_it_can(stage: Stage, cluster, tmp_path):
    cluster.kubeconfig(tmp_path / "config")
    described = tmp_path / "pod.json"
    agent = stage.make(kubernetes="true", pod_file=described)
    cluster.put({**POD, "metadata": {**POD["metadata"], "uid": agent.uid}})
    await stage.start(agent)
    await stage.client.presence(agent, lambda it: it and "mysql" in it.containers, "the API server's containers")
    described.write_text('{"containers": [{"name": "app"}, {"name": "from-the-file"}]}')
    await stage.client.presence(agent, lambda it: it and "from-the-file" in it.containers, "the file's containers")


@pytest.mark.broker
async def test_an_agent_without_the_library_stays_up_and_says_so(stage: Stage, inside, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio", None)
    settings = light_settings(stage.broker.url, stage.root, tmp_path, "db-0")
    agent = LightAgent(settings.model_copy(update={"kubernetes": True}))
    task = asyncio.create_task(agent.agent.run(agent.stop), name="light agent")
    try:
        said = await stage.client.presence(agent, lambda it: it and it.problems, "the problem")
        assert said is not None
        assert any("pip install 'podhook[kubernetes]'" in problem for problem in said.problems)
        await stage.client.works(agent)
    finally:
        agent.stop.set()
        await task


@pytest.mark.processes
@pytest.mark.broker
@pytest.mark.parametrize("asked", [False, True])
async def test_the_library_is_imported_only_when_it_is_asked_for(stage: Stage, cluster, tmp_path, asked):
    """It takes 55 MB."""
    cluster.kubeconfig(tmp_path / "config")
    cluster.monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    agent = await stage.agent(kubernetes=asked)
    if asked:
        await stage.until(lambda: list(cluster.api), "the API server is asked")
    await stage.client.works(agent)
    modules = imported(agent.log_file.read_text(encoding="utf-8", errors="replace"))
    assert "agent.sidecar.app" in modules
    assert ("kubernetes_asyncio" in modules) == asked
    assert list(cluster.api) == [] or asked


def test_the_agents_code_alone_does_not_import_it():
    code = "import sys, agent.sidecar.app, agent.pod.kubernetes; print([m for m in sys.modules if 'kubernetes_a' in m])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
