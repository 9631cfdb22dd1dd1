"""The option with a certificate a client: the user and the session are the certificate's, whatever the client says."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.bus.broker import Broker, parse_broker
from agent.contract.topics import Topics
from tests.broker.raw import NotLetIn, Raw
from tests.broker.shipped import MANIFESTS, Authority, ShippedMosquitto

pytestmark = pytest.mark.broker

CERTIFICATES = "mosquitto-certificates.conf"
TOPICS = Topics()
COMMANDS = TOPICS.commands("shop", "db-0")
USERS = ("shop.db-0", "shop.db-1", "billing.db-0", "coordinator_nightly", "stranger")


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShippedMosquitto]:
    """mosquitto-certificates.conf with three pods and a coordinator; `stranger` has a certificate and no rules."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    broker = ShippedMosquitto(tmp_path_factory.mktemp("certified"), CERTIFICATES)
    for namespace, pod in (("shop", "db-0"), ("shop", "db-1"), ("billing", "db-0")):
        broker.issue(namespace, "--pod", pod, "--certificate")
    broker.issue("nightly", "--coordinator", "-n", "shop", "--certificate")
    for user in USERS:
        broker.authority.issue(user)
    broker.start()
    yield broker
    broker.stop()


def by_certificate(broker: ShippedMosquitto, user: str, protocol: str = "5") -> Broker:
    here = broker.authority.directory
    files = {"certificate_file": here / f"{user}.crt", "key_file": here / f"{user}.key"}
    return parse_broker(broker.url, ca_file=broker.authority.ca, protocol=protocol, **files)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_nobody_takes_a_session_whatever_client_id_he_gives(certified, protocol):
    queued = uuid.uuid4().hex.encode()
    victim = Raw(by_certificate(certified, "shop.db-0", protocol), "any id", session=True)
    victim.subscribe(COMMANDS)
    victim.end()
    sender = Raw(by_certificate(certified, "coordinator_nightly", protocol))
    assert sender.publish(COMMANDS, queued) < 0x80
    for claimed in ("shop.db-0", "any id", "shop_db-0"):
        thief = Raw(by_certificate(certified, "billing.db-0", protocol), claimed, session=True)
        thief.subscribe(COMMANDS)
        thief.end()
        Raw(by_certificate(certified, "billing.db-0", protocol), claimed).end()  # and a clean start
    back = Raw(by_certificate(certified, "shop.db-0", protocol), "another id", session=True)
    assert back.heard(queued), "the session is the certificate's"
    back.end()
    Raw(by_certificate(certified, "shop.db-0", protocol)).end()
    sender.end()


def test_nobody_cuts_a_session_that_is_in_use(certified):
    victim = Raw(by_certificate(certified, "shop.db-0"), "shop.db-0")
    thief = Raw(by_certificate(certified, "billing.db-0"), "shop.db-0")
    assert victim.publish(TOPICS.presence("shop", "db-0"), b"") < 0x80
    assert not victim.lost.is_set()
    thief.end()
    victim.end()


@pytest.mark.parametrize("user", ["shop.db-1", "billing.db-0", "stranger"])
def test_a_certificate_is_one_pods(certified, user):
    """Unlike a namespace's user, it is not even its neighbour's in the same namespace."""
    other = Raw(by_certificate(certified, user))
    victim = Raw(by_certificate(certified, "shop.db-0"))
    victim.subscribe(COMMANDS, TOPICS.presence("shop", "db-0"))
    other.subscribe(COMMANDS, "#")
    assert other.publish(COMMANDS, b"forged") == 0x87
    assert other.publish(TOPICS.presence("shop", "db-0"), b"forged") == 0x87
    assert other.publish(TOPICS.reply("coordinator_nightly", "run", "shop", "db-0"), b"forged") == 0x87
    sender = Raw(by_certificate(certified, "coordinator_nightly"))
    assert sender.publish(COMMANDS, b"good") < 0x80
    assert victim.heard(b"good")
    assert [body for _, body, _ in victim.messages] == [b"good"]
    if user.startswith("shop"):
        assert sender.publish(TOPICS.commands("shop", "db-1"), b"mine") < 0x80
        other.subscribe(TOPICS.commands("shop", "db-1"))
        assert sender.publish(TOPICS.commands("shop", "db-1"), b"end") < 0x80
        assert other.heard(b"end")
    assert b"good" not in [body for _, body, _ in other.messages]
    for each in (other, victim, sender):
        each.end()


def test_without_a_certificate_of_this_authority_nobody_is_let_in(certified, tmp_path):
    nobody = replace(by_certificate(certified, "shop.db-0"), certificate_file=None, key_file=None)
    with pytest.raises(NotLetIn):
        Raw(nobody)
    with pytest.raises(NotLetIn):
        Raw(replace(nobody, user="shop", password="x"))
    certificate, key = Authority(tmp_path / "other", "other").issue("shop.db-0")
    with pytest.raises(NotLetIn):
        Raw(replace(nobody, certificate_file=certificate, key_file=key))
    with pytest.raises((NotLetIn, AssertionError)):
        Raw(replace(nobody, tls=False))


def test_a_user_name_beside_the_certificate_changes_nothing(certified):
    liar = Raw(replace(by_certificate(certified, "billing.db-0"), user="shop.db-0", password="x"))
    assert liar.publish(TOPICS.presence("shop", "db-0"), b"forged") == 0x87
    assert liar.publish(TOPICS.presence("billing", "db-0"), b"mine") < 0x80
    liar.end()


def _rules(name: str) -> tuple[str, str]:
    text = (MANIFESTS / "mosquitto" / name).read_text(encoding="utf-8")
    before, mark, after = text.partition("# -- speed\n")
    assert mark
    return before, after


def test_the_two_configurations_differ_only_in_who_is_let_in():
    assert _rules("mosquitto.conf")[1] == _rules(CERTIFICATES)[1]
    passwords, certificates = (set(_rules(name)[0].splitlines()) for name in ("mosquitto.conf", CERTIFICATES))
    both = {"allow_anonymous false", "allow_zero_length_clientid false", "tls_version tlsv1.2", "listener 8883"}
    assert both <= passwords & certificates
    bound = {"require_certificate true", "use_identity_as_username true", "use_username_as_clientid true"}
    assert bound <= certificates
