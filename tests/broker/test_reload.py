"""What is mounted changes, and the shipped brokers follow: `podhook broker reload` runs beside them, nobody signals."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bus.broker import Broker, parse_broker
from agent.contract.topics import Topics
from tests.agents import until
from tests.broker import mounted as brokers
from tests.broker.mounted import RELOADED_SECONDS, MountedBroker, files_in
from tests.broker.raw import NotLetIn, Raw
from tests.broker.shipped import Authority, openssl
from tests.broker.test_podhook import make_agent
from tests.brokers import poll
from tests.mounted import Mounted

pytestmark = [pytest.mark.broker, pytest.mark.processes]

TOPICS = Topics()
PRESENCE = {each: TOPICS.presence(each, "db-0") for each in ("shop", "billing")}
NOT_AUTHORIZED = 0x87


def needs_openssl() -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt-get install openssl")


@pytest.fixture(params=["mosquitto", "nats"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MountedBroker]:
    """Each shipped broker, not started, with the users `shop` and `coordinator_everywhere`."""
    needs_openssl()
    made: MountedBroker = getattr(brokers, request.param)(tmp_path / "broker-of-the-test")
    made.issue("shop")
    made.issue("everywhere", "--coordinator", "--all-namespaces", "--prune")
    made.renew()
    yield made
    made.stop()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[MountedBroker]:
    needs_openssl()
    made = brokers.mosquitto(tmp_path / "broker-of-the-test")
    made.issue("shop")
    made.renew()
    made.start()
    yield made
    made.stop()


def connected(mounted: MountedBroker, user: str) -> Raw:
    return Raw(mounted.broker.as_user(user, mounted.broker.protocols[0]))


def let_in(broker: Broker) -> bool:
    try:
        Raw(broker).end()
    except NotLetIn:
        return False
    return True


def is_in(mounted: MountedBroker, user: str) -> bool:
    return let_in(mounted.broker.as_user(user, mounted.broker.protocols[0]))


def test_a_new_namespace_gets_in_and_a_removed_one_is_cut_when_what_is_mounted_is_swapped(mounted):
    """Fails without the signal: `process.tell` that only returns."""
    mounted.start()
    with mounted.reloading() as reloading:
        reloading.told(1)
        mounted.issue("billing")
        assert not is_in(mounted, "billing")
        mounted.renew("auth")
        poll(lambda: is_in(mounted, "billing"), f"the new user gets in\n{reloading}", RELOADED_SECONDS)
        billing, shop = connected(mounted, "billing"), connected(mounted, "shop")
        mounted.issue("billing", "--remove")
        assert not billing.lost.is_set()
        mounted.renew("auth")
        poll(billing.lost.is_set, f"the removed user is cut\n{reloading}", RELOADED_SECONDS)
        assert not is_in(mounted, "billing")
        assert not shop.lost.is_set(), "nobody else is"
        assert is_in(mounted, "shop")
        assert reloading.said("broker.not_told") == []
        assert len(reloading.said("broker.told_to_reload")) == 3, f"once at the start, and once a change\n{reloading}"
        assert reloading.end() == 0
        for each in (billing, shop):
            each.end()


def test_the_certificate_that_was_renewed_is_shown(mounted):
    mounted.start()
    with mounted.reloading() as reloading:
        reloading.told(1)
        before = shown(mounted)
        mounted.show_another_certificate(mounted.broker.authority)
        mounted.renew("tls")
        poll(lambda: shown(mounted) != before, f"another certificate\n{reloading}", RELOADED_SECONDS)
        assert is_in(mounted, "shop")


def shown(mounted: MountedBroker) -> bytes | None:
    """The certificate that the broker shows."""
    context = ssl.create_default_context(cafile=str(mounted.broker.authority.ca))
    with (
        socket.create_connection(("127.0.0.1", mounted.broker.port), 10) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as secured,
    ):
        return secured.getpeercert(binary_form=True)


def test_it_waits_for_a_broker_that_is_not_there_yet_and_stays_when_it_restarts(mounted):
    with mounted.reloading() as reloading:
        reloading.complained("pid: No such file or directory; is the broker down")
        mounted.start()
        reloading.told(1)
        mounted.stop()
        mounted.issue("billing")
        mounted.renew("auth")
        reloading.complained("which does not run; is the broker down?")
        mounted.start()
        reloading.told(2)
        mounted.issue("billing", "--remove")
        mounted.renew("auth")
        poll(lambda: not is_in(mounted, "billing"), f"the one that is new is told, too\n{reloading}", RELOADED_SECONDS)
        assert reloading.process.poll() is None


def test_what_changes_back_and_forth_or_only_looks_renewed_disturbs_nobody(mosquitto):
    with mosquitto.reloading() as reloading:
        reloading.told(1)
        for _ in range(3):
            mosquitto.renew()
        mosquitto.issue("billing")
        mosquitto.renew("auth")
        reloading.told(2)
        poll(lambda: mosquitto.loaded() >= 2, "mosquitto heard it")
        assert (mosquitto.loaded(), len(reloading.said("broker.told_to_reload"))) == (2, 2)


def test_while_a_mounted_acl_is_missing_the_broker_keeps_the_one_it_has(mosquitto):
    """mosquitto 2.0.11 that is told then lets `shop` publish everywhere: docs/brokers.md."""
    mosquitto.issue("billing")
    mosquitto.renew()
    shop = connected(mosquitto, "shop")
    with mosquitto.reloading() as reloading:
        reloading.told(1)
        poll(lambda: mosquitto.loaded() == 1, "mosquitto heard it")
        assert shop.publish(PRESENCE["shop"], b"") < NOT_AUTHORIZED, "and is through with it"
        rules = (mosquitto.sources["auth"] / "acl").read_bytes()
        mosquitto.issue("shop")  # another password, waiting to be read
        (mosquitto.sources["auth"] / "acl").unlink()  # which came back with it
        mosquitto.renew("auth")
        reloading.complained("/acl is gone")
        assert shop.publish(PRESENCE["billing"], b"forged") == NOT_AUTHORIZED
        (mosquitto.sources["auth"] / "acl").write_bytes(rules)
        mosquitto.renew("auth")
        poll(shop.lost.is_set, f"when it is back, all of it is read\n{reloading}", RELOADED_SECONDS)
        assert len(reloading.said("broker.told_to_reload")) == 2, reloading
        assert mosquitto.loaded() == 2
    shop.end()


# -- the agent's side: everything that it connects with is read at each connection


async def test_an_agent_gets_in_again_by_itself_after_its_password_and_the_authority_were_replaced(mounted, tmp_path):
    """The authority that it trusts and its password are mounted, and both are others afterwards."""
    broker = mounted.broker
    mounted.start()
    ca = broker.authority.ca.read_bytes()
    of_agent = Mounted(tmp_path / "agent", {**files_in(broker.secrets / "shop"), "ca.crt": ca})
    here = of_agent.directory
    settings = {"USER": here / "user", "PASSWORD": here / "password", "CA": here / "ca.crt"}
    files = {f"BROKER_{name}_FILE": str(path) for name, path in settings.items()}
    agent = make_agent(tmp_path, "shop", "db-0", BROKER=broker.url, **files)
    with mounted.reloading() as reloading:
        reloading.told(1)
        agent.start()
        try:
            await agent.logged("broker.connected")
            old = broker.as_user("shop", broker.protocols[0])
            old_password = old.credentials()[1]
            other = Authority(tmp_path / "another-authority", "another")
            mounted.issue("shop")
            mounted.show_another_certificate(other)
            of_agent.renew({**files_in(broker.secrets / "shop"), "ca.crt": other.ca.read_bytes()})
            mounted.renew()
            await until(lambda: len(agent.log("broker.connected")) == 2, "the agent is in again", 60, agents=[agent])
            assert len(agent.log("agent.starting")) == 1
            assert old.credentials()[1] != old_password
            assert let_in(parse_broker(broker.url, ca_file=other.ca, **secret_files(broker.secrets / "shop")))
        finally:
            agent.kill()


def secret_files(directory: Path) -> dict[str, Path]:
    return {"user_file": directory / "user", "password_file": directory / "password"}


async def test_an_agent_gets_in_again_by_itself_with_the_certificate_that_replaced_a_revoked_one(tmp_path):
    needs_openssl()
    mounted = brokers.mosquitto(tmp_path / "broker-of-the-test", "mosquitto-certificates.conf")
    revoking(mounted)
    mounted.issue("shop", "--pod", "db-0", "--certificate")
    authority, broker = mounted.broker.authority, mounted.broker
    mounted.renew()
    mounted.start()

    def certificate() -> dict[str, bytes]:
        crt, key = authority.issue("shop.db-0")
        return {"tls.crt": crt.read_bytes(), "tls.key": key.read_bytes()}

    first = certificate()
    of_agent = Mounted(tmp_path / "agent", first)
    (tmp_path / "stolen").mkdir()
    for name, content in first.items():
        (tmp_path / "stolen" / name).write_bytes(content)
    files = {"BROKER_CERT_FILE": of_agent.directory / "tls.crt", "BROKER_KEY_FILE": of_agent.directory / "tls.key"}
    settings = {"BROKER": broker.url, "BROKER_CA_FILE": str(authority.ca), **{k: str(v) for k, v in files.items()}}
    agent = make_agent(tmp_path, "shop", "db-0", **settings)
    thief = parse_broker(
        broker.url,
        ca_file=authority.ca,
        protocol="5",
        certificate_file=tmp_path / "stolen" / "tls.crt",
        key_file=tmp_path / "stolen" / "tls.key",
    )
    try:
        with mounted.reloading() as reloading:
            reloading.told(1)
            agent.start()
            await agent.logged("broker.connected")
            of_agent.renew(certificate())
            revoke(mounted, tmp_path / "stolen" / "tls.crt")
            mounted.renew("tls")
            reloading.told(2)
            assert not let_in(thief), "what was revoked lets nobody in"
            mounted.stop()  # a connection that is up is not cut by a revocation: docs/brokers.md
            mounted.start()
            await until(lambda: len(agent.log("broker.connected")) == 2, "the agent is in again", 60, agents=[agent])
            assert not let_in(thief)
    finally:
        agent.kill()
        mounted.stop()


def revoking(mounted: MountedBroker) -> None:
    """The shipped configuration with its `crlfile` in force, and an authority that can revoke."""
    broker = mounted.broker
    text = broker._configuration.read_text(encoding="utf-8")
    assert "\n#crlfile /mosquitto/tls/crl.pem\n" in text
    broker._configuration = broker.directory / "with-crlfile.conf"
    broker._configuration.write_text(text.replace("\n#crlfile", "\ncrlfile"), encoding="utf-8")
    here = broker.authority.directory
    (here / "index").touch()
    (here / "number").write_text("01\n")
    settings = {"database": here / "index", "crlnumber": here / "number", "default_md": "sha256", "default_crl_days": 2}
    lines = [f"{key} = {value}" for key, value in settings.items()]
    (here / "revoking.conf").write_text("\n".join(["[ca]", "default_ca = here", "[here]", *lines]) + "\n")
    _ca(mounted, "-gencrl", "-out", mounted.sources["tls"] / "crl.pem")


def revoke(mounted: MountedBroker, certificate: Path) -> None:
    _ca(mounted, "-revoke", certificate)
    _ca(mounted, "-gencrl", "-out", mounted.sources["tls"] / "crl.pem")


def _ca(mounted: MountedBroker, *arguments: object) -> None:
    here = mounted.broker.authority.directory
    signer = ("-keyfile", here / "ca.key", "-cert", here / "ca.crt")
    openssl("ca", "-config", here / "revoking.conf", *signer, *arguments)
