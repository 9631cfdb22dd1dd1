"""Which broker, from what people type; no message repeats a password."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from agent.bus.broker import parse_broker
from agent.contract.errors import InvalidSettings


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "user", "password"),
    [
        ("mqtt://broker", "broker", 1883, False, None, None),
        ("mqtts://broker", "broker", 8883, True, None, None),
        ("mqtt://broker:1884/", "broker", 1884, False, None, None),
        ("MQTT://Broker.example:1884", "broker.example", 1884, False, None, None),
        ("localhost:1883", "localhost", 1883, False, None, None),
        ("ann@localhost", "localhost", 1883, False, "ann", None),
        ("mqtt://ann:pw@broker", "broker", 1883, False, "ann", "pw"),
        ("mqtt://a%40b:p%3A%2F%23@broker", "broker", 1883, False, "a@b", "p:/#"),
        ("mqtt://[::1]:1883", "::1", 1883, False, None, None),
        ("mqtts://ann:pw@[fd00::1]", "fd00::1", 8883, True, "ann", "pw"),
    ],
)
def test_a_url_is_read(url, host, port, tls, user, password):
    broker = parse_broker(url)
    assert (broker.host, broker.port, broker.tls, broker.user) == (host, port, tls, user)
    assert broker.password == password
    assert broker.credentials() == (user, password)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "no host"),
        ("mqtt://", "no host"),
        ("mqtt://ann:s3cret@", "no host"),
        ("http://ann:s3cret@broker", "begins with 'http'; write mqtt://HOST:PORT or mqtts://HOST:PORT"),
        ("mqtt://ann:s3cret@broker:0", "port from 1 to 65535"),
        ("mqtt://ann:s3cret@broker:65536", "port from 1 to 65535"),
        ("mqtt://ann:s3cret@broker:mqtt", "port from 1 to 65535"),
        ("mqtt://ann:s3cret#more@broker", "percent-encode"),
        ("mqtt://ann:s3cret/more@broker", "percent-encode"),
        ("mqtt://ann:s3cret@[::1", "cannot be read"),
        ("mqtt://ann:s3cret@broker/topic", "something after the port"),
        ("mqtt://ann:s3cret@broker?x=1", "something after the port"),
        ("mqtt://:s3cret@broker", "password without a user"),
        ("mqtt://ann:s3cret@two..dots", "host 'two..dots' is no host name"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url, message):
    with pytest.raises(InvalidSettings) as refused:
        parse_broker(url)
    assert message in str(refused.value)
    assert "s3cret" not in "".join(traceback.format_exception_only(refused.value))
    chain = refused.value
    while chain is not None:
        assert "s3cret" not in str(chain)
        chain = chain.__cause__


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("mqtt://broker", {"ca_file": Path("ca")}, "write mqtts:// for TLS"),
        ("mqtts://broker", {"key_file": Path("key")}, "without a certificate file"),
        ("mqtt://broker", {"protocol": "4"}, "'4' is not one of auto, 5, 3.1.1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(url, options, message):
    with pytest.raises(InvalidSettings, match=message):
        parse_broker(url, **options)


def test_the_password_is_in_no_representation():
    broker = parse_broker("mqtt://ann:s3cret@broker")
    assert "s3cret" not in repr(broker)
    assert broker.url == "mqtt://ann@broker:1883"


def test_files_win_over_the_url_and_lose_only_their_line_end(tmp_path):
    (tmp_path / "user").write_text("bob\n")
    (tmp_path / "password").write_text(" with spaces \r\n")
    files = {"user_file": tmp_path / "user", "password_file": tmp_path / "password"}
    assert parse_broker("mqtt://ann:pw@broker", **files).credentials() == ("bob", " with spaces ")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidSettings, match=r"broker user file .*missing: No such file"):
        parse_broker("mqtt://broker", user_file=tmp_path / "missing").credentials()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSettings, match=r"broker password file .*binary: "):
        parse_broker("mqtt://ann@broker", password_file=tmp_path / "binary").credentials()


def test_a_password_file_without_a_user_is_refused(tmp_path):
    (tmp_path / "password").write_text("pw")
    with pytest.raises(InvalidSettings, match=r"password without a user"):
        parse_broker("mqtt://broker", password_file=tmp_path / "password").credentials()
