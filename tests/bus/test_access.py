"""Being let in: user and password, certificates, and what is said when the broker does not."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.bus.broker import parse_broker
from agent.bus.link import Link
from agent.bus.types import Connected, Disconnected, LinkOptions
from agent.contract.errors import BrokerRefused, InvalidSettings, LinkDown
from tests.brokers import Mosquitto, mosquitto_binary
from tests.bus.peers import SESSION, next_event, send, take, up


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A mosquitto that lets in `ann`, whose password is `right`."""
    directory = tmp_path_factory.mktemp("guarded")
    passwords = directory / "passwords"
    tool = mosquitto_binary("mosquitto_passwd")
    subprocess.run([tool, "-c", "-b", passwords, "ann", "right"], check=True, timeout=10)
    broker = Mosquitto(directory, f"password_file {passwords}", anonymous=False)
    broker.start()
    yield broker
    broker.stop()


def as_ann(broker: Mosquitto, password: str) -> str:
    return broker.url.replace("mqtt://", f"mqtt://ann:{password}@")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_the_right_password_is_let_in(guarded, topics_root, protocol):
    async with up(parse_broker(as_ann(guarded, "right"), protocol=protocol), topics_root) as link:
        assert link.limits.protocol == protocol


@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
async def test_a_bad_password_is_refused_at_once_and_not_repeated(guarded, topics_root, protocol):
    async with Link(parse_broker(as_ann(guarded, "s3cret"), protocol=protocol), LinkOptions(topics_root)) as link:
        with pytest.raises(BrokerRefused, match=r"check user, password") as refused:
            await link.wait_up(5)
        assert "s3cret" not in str(refused.value)
        assert "check user, password" in (await next_event(link, Disconnected)).reason


async def test_user_and_password_files_are_read_at_each_connection(guarded, topics_root, tmp_path):
    user, password = tmp_path / "user", tmp_path / "password"
    user.write_text("ann\n")
    password.write_text("old\n")
    broker = parse_broker(guarded.url, user_file=user, password_file=password)
    async with Link(broker, LinkOptions(topics_root)) as link:
        with pytest.raises(BrokerRefused):
            await link.wait_up(5)
        password.unlink()
        missing = await next_event(link, Disconnected)
        while "broker password file" not in missing.reason:
            missing = await next_event(link, Disconnected)
        password.write_text("right\n")
        await next_event(link, Connected)


@dataclass(frozen=True)
class Certificates:
    """A CA, a server's certificate for 127.0.0.1, a client's, and a CA that signed neither."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / name


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for ca in ("ca", "other"):
        files = ("-keyout", made.path(f"{ca}.key"), "-out", made.path(f"{ca}.pem"))
        extensions = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        openssl("req", "-x509", "-days", "2", *new_key, *files, "-subj", f"/CN={ca}", *extensions)
    for name, alternative in (
        ("server", "IP:127.0.0.1"),
        ("client", "DNS:client"),
        ("elsewhere", "DNS:elsewhere"),
    ):
        request, extensions = made.path(f"{name}.csr"), made.path(f"{name}.ext")
        extensions.write_text(f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n")
        openssl("req", *new_key, "-keyout", made.path(f"{name}.key"), "-out", request, "-subj", f"/CN={name}")
        signer = ("-CA", made.path("ca.pem"), "-CAkey", made.path("ca.key"), "-CAcreateserial")
        signed = ("-in", request, "-out", made.path(f"{name}.pem"), "-extfile", extensions)
        openssl("x509", "-req", "-days", "2", *signer, *signed)
    encrypt = ("-passout", "pass:s3cret", "-aes256")
    openssl("ec", "-in", made.path("client.key"), "-out", made.path("locked.key"), *encrypt)
    return made


@pytest.fixture(scope="module")
def tls_lines(certificates):
    def lines(server: str = "server") -> tuple[str, ...]:
        key, certificate = certificates.path(f"{server}.key"), certificates.path(f"{server}.pem")
        return (f"cafile {certificates.path('ca.pem')}", f"certfile {certificate}", f"keyfile {key}")

    return lines


@pytest.fixture(scope="module")
def secured(tls_lines, tmp_path_factory):
    """A mosquitto that wants a client certificate."""
    broker = Mosquitto(tmp_path_factory.mktemp("secured"), *tls_lines(), "require_certificate true")
    broker.start()
    yield broker
    broker.stop()


def secure_url(broker: Mosquitto) -> str:
    return f"mqtts://127.0.0.1:{broker.port}"


def with_client_certificate(certificates: Certificates, ca: str = "ca") -> dict[str, Path]:
    return {
        "ca_file": certificates.path(f"{ca}.pem"),
        "certificate_file": certificates.path("client.pem"),
        "key_file": certificates.path("client.key"),
    }


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_tls_with_ca_and_client_certificate(secured, certificates, topics_root, protocol):
    files = with_client_certificate(certificates)
    async with up(parse_broker(secure_url(secured), **files, protocol=protocol), topics_root, "x") as link:
        await send(link, "x", [b"small", bytes(200_000)])
        assert await take(link, 2) == [bytes(200_000), b"small"]


async def test_an_oversize_body_is_thrown_away_under_tls_too(secured, certificates, topics_root):
    """TLS keeps what it has decrypted: the socket alone does not tell that there is more to read."""
    broker = parse_broker(secure_url(secured), **with_client_certificate(certificates), protocol="3.1.1")
    async with (
        up(broker, topics_root, topics_root, packet_limit_bytes=1000, **SESSION) as link,
        up(broker, f"{topics_root}-sender") as sender,
    ):
        await send(sender, topics_root, [bytes(1_000_000), b"after"])
        assert await take(link, 2) == [b"", b"after"]


async def test_a_broker_of_an_unknown_ca_is_not_trusted(secured, certificates, topics_root):
    files = with_client_certificate(certificates, ca="other")
    async with Link(parse_broker(secure_url(secured), **files), LinkOptions(topics_root)) as link:
        with pytest.raises(BrokerRefused, match=r"certificate is not trusted: .*check the CA file"):
            await link.wait_up(5)


async def test_a_certificate_for_another_name_is_not_trusted(tls_lines, certificates, topics_root, tmp_path):
    broker = Mosquitto(tmp_path, *tls_lines("elsewhere"))
    broker.start()
    try:
        known = parse_broker(secure_url(broker), ca_file=certificates.path("ca.pem"))
        async with Link(known, LinkOptions(topics_root)) as link:
            with pytest.raises(BrokerRefused, match=r"not valid for '127.0.0.1'"):
                await link.wait_up(5)
    finally:
        broker.stop()


async def test_a_missing_client_certificate_is_named(secured, certificates, topics_root):
    known = parse_broker(secure_url(secured), ca_file=certificates.path("ca.pem"))
    async with Link(known, LinkOptions(topics_root)) as link:
        with pytest.raises(BrokerRefused, match=r"refused TLS: .*certificate required; check the client certificate"):
            await link.wait_up(5)


async def test_tls_to_a_port_without_it_says_so(mosquitto, certificates, topics_root):
    broker = parse_broker(f"mqtts://127.0.0.1:{mosquitto.port}", ca_file=certificates.path("ca.pem"))
    async with Link(broker, LinkOptions(topics_root)) as link:
        with pytest.raises(LinkDown):
            await link.wait_up(0.3)


async def test_a_tls_broker_that_does_not_answer_can_be_left_at_once(secured, certificates, topics_root):
    secured.freeze()
    try:
        broker = parse_broker(secure_url(secured), **with_client_certificate(certificates))
        async with asyncio.timeout(1), Link(broker, LinkOptions(topics_root)):
            await asyncio.sleep(0.05)
    finally:
        secured.thaw()


def test_a_locked_key_is_refused_instead_of_asked_for_on_the_terminal(certificates):
    files = with_client_certificate(certificates) | {"key_file": certificates.path("locked.key")}
    with pytest.raises(InvalidSettings, match=r"locked.key: the key is encrypted"):
        parse_broker("mqtts://broker", **files).tls_context()


def test_certificate_files_that_cannot_be_used_are_named(certificates, tmp_path):
    with pytest.raises(InvalidSettings, match=r"CA file .*missing.pem: No such file"):
        parse_broker("mqtts://broker", ca_file=tmp_path / "missing.pem").tls_context()
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(InvalidSettings, match=r"CA file .*empty.pem: "):
        parse_broker("mqtts://broker", ca_file=tmp_path / "empty.pem").tls_context()
    files = with_client_certificate(certificates) | {"key_file": certificates.path("server.key")}
    with pytest.raises(InvalidSettings, match=r"client.pem with key .*server.key: "):
        parse_broker("mqtts://broker", **files).tls_context()


def test_tls_checks_the_name_and_wants_a_certificate():
    context = parse_broker("mqtts://broker").tls_context()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
