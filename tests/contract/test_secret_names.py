"""Which names are secrets', and what stands inside a value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.secret_names import holds_secret, inside, looks_secret, secrets_of

SECRET = [
    "PASSWORD",
    "password",
    "MYSQL_ROOT_PASSWORD",
    "PGPASSWORD",
    "dbPassword",
    "db-password",
    "mysql.password",
    "REDISCLI_AUTH",
    "MYSQL_PWD",
    "DB_PWD",
    "DBPWD",
    "SMTP_PASS",
    "SMTPPASS",
    "DB_PASSWD",
    "KEY_PASSPHRASE",
    "PASSCODE",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "CLIENT_SECRET",
    "GITHUB_TOKEN",
    "tokenForBackups",
    "GOOGLE_CREDENTIALS",
    "API_KEY",
    "APIKEY",
    "apiKey",
    "X-Api-Key",
    "SSH_PRIVATE_KEY",
    "ENCRYPTION_KEYS",
    "MASTERKEY",
    "AUTH",
    "BASIC_AUTH",
    "Authorization",
    "Cookie",
    "BEARER",
    "DB_DSN",
    "JWT",
    "SESSION_SALT",
    "DATA_SOURCE_NAME",
    "ConnectionString",
    "CREDS",
    "PIN",
    "MYSQL_ROOT_PASSWORD_FILE",
    "--password",
]
PLAIN = [
    "PATH",
    "HOME",
    "USER",
    "PWD",
    "OLDPWD",
    "LANG",
    "HOSTNAME",
    "MYSQL_USER",
    "MYSQL_DATABASE",
    "POSTGRES_DB",
    "DATABASE_URL",
    "PORT",
    "KEYBOARD",
    "AUTHOR",
    "PASSENGER",
    "MONKEYED",
    "SPINNER",
    "PATTERN",
    "DOCKER_VERSION",
    "TERM",
]


@pytest.mark.parametrize("name", SECRET)
def test_a_name_that_tells_of_a_secret(name: str) -> None:
    assert looks_secret(name.encode())


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_that_does_not(name: str) -> None:
    assert not looks_secret(name.encode())


@pytest.mark.parametrize("name", ["MYSQL_ROOT_PASSWORD_FILE", "SECRETS_DIR", "KEY_PATH", "tokenFile"])
def test_where_a_secret_lies_is_none(name: str) -> None:
    assert not looks_secret(name.encode(), b"/run/secrets/it")
    assert looks_secret(name.encode(), b"it is not a path")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("postgres://app:s3cret@db:5432/shop", ["s3cret"]),
        ("redis://:only-a-password@cache", ["only-a-password"]),
        ("amqp://u:p%40ss@a,amqp://u:other@b", ["p%40ss", "other"]),
        ("https://ghp_0123456789abcdef@github.com/x", ["ghp_0123456789abcdef"]),
        ("https://guest@github.com/x", []),
        ("https://host/a:b@c", []),
        ("see http://host/ and mail@host", []),
        ("mongodb://u:a@b@host", ["a@b"]),
        ("Server=db;User Id=sa;Password=My Pass;Encrypt=true", ["My"]),
        ("Server=db;Pwd='My Pass';Encrypt=true", ["My Pass"]),
        ("host=db password=abc user=x", ["abc"]),
        ("host=db PASSWORD=abc", ["abc"]),
        ("", []),
        ("password=", []),
        ("://@", []),
    ],
)
def test_what_stands_inside_a_value(value: str, found: list[str]) -> None:
    assert inside(value.encode()) == [each.encode() for each in found]
    assert holds_secret(b"ANY", value.encode()) is bool(found)


def test_a_variable_tells_its_whole_value_or_what_is_inside() -> None:
    url = b"postgres://app:s3cret@db/shop"
    assert secrets_of(b"DATABASE_URL", url) == [b"s3cret"]
    assert set(secrets_of(b"DATABASE_DSN", url)) == {b"s3cret", url}
    assert secrets_of(b"HOME", b"/root") == []


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_the_bytes_are_it_judges(name: bytes, value: bytes) -> None:
    assert holds_secret(name, value) is bool(secrets_of(name, value)) or not value
    for each in inside(value):
        assert each
        assert each in value


def test_a_hostile_value_costs_no_more_than_its_length() -> None:
    for value in (b"password=" * 7000, b"://" * 20_000, b"x" * 64_000, b"pwd='" * 12_000):
        inside(value)  # quadratic, it would not end within the test's time
