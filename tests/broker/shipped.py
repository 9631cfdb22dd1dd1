"""The brokers of manifests/broker as they are shipped: only ports and paths are put in their place."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from agent.bus.broker import Broker, parse_broker
from agent.bus.embedded import server_binary
from agent.contract.errors import InvalidSettings
from tests.brokers import NO_NATS, RealBroker, accepts, leashed, mosquitto_binary, poll

import pytest  # isort: skip

PROJECT = Path(__file__).parents[2]
MANIFESTS = PROJECT / "manifests" / "broker"


def openssl(*arguments: object) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the test's own."""

    directory: Path
    name: str = "ca"

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        files = ("-keyout", self.directory / "ca.key", "-out", self.ca)
        extensions = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        openssl("req", "-x509", "-days", "2", *_NEW_KEY, *files, "-subj", f"/CN={self.name}", *extensions)

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    def issue(self, common_name: str, *, server: bool = False) -> tuple[Path, Path]:
        """A certificate and its key."""
        stem = self.directory / common_name
        key, certificate, request, extensions = (
            stem.with_name(f"{common_name}.{e}") for e in ("key", "crt", "csr", "e")
        )
        alternative = "IP:127.0.0.1" if server else "DNS:client"
        extensions.write_text(f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n")
        openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={common_name}")
        signer = ("-CA", self.ca, "-CAkey", self.directory / "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-days", "2", *signer, "-in", request, "-out", certificate, "-extfile", extensions)
        return certificate, key


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def podhook(*arguments: object, env: dict[str, str] | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command; it must end with `code`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PODHOOK_")}
    done = subprocess.run(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        cwd=PROJECT,
        env={**inherited, "PYTHONPATH": str(PROJECT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


class Shipped(RealBroker):
    """A shipped broker with users issued by `podhook broker user`; their secrets are directories below `secrets`."""

    server = ""
    protocols: tuple[str, ...] = ()

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.authority = Authority(directory / "authority")
        self.auth = directory / "auth"
        self.secrets = directory / "secrets"
        tls = directory / "tls"
        tls.mkdir()
        certificate, key = self.authority.issue("broker", server=True)
        (tls / "ca.crt").write_bytes(self.authority.ca.read_bytes())
        (tls / "tls.crt").write_bytes(certificate.read_bytes())
        (tls / "tls.key").write_bytes(key.read_bytes())

    @property
    def url(self) -> str:
        return f"mqtts://127.0.0.1:{self.port}"

    def issue(self, name: str, *options: object) -> None:
        """`podhook broker user`; the secret goes to a directory of the user's name."""
        user = f"coordinator_{name}" if "--coordinator" in options else name
        where = (
            () if {"--remove", "--keep-password", "--certificate"} & set(options) else ("--secret", self.secrets / user)
        )
        podhook("broker", "user", name, *options, "--for", self.server, "--files", self.auth, *where)

    def reload(self) -> None:
        """Make it read its files again."""
        os.kill(self.pid, signal.SIGHUP)

    def as_user(self, user: str, protocol: str = "auto") -> Broker:
        """How to connect as a user."""
        files = {"user_file": self.secrets / user / "user", "password_file": self.secrets / user / "password"}
        return parse_broker(self.url, ca_file=self.authority.ca, protocol=protocol, **files)

    def settings(self, user: str) -> dict[str, str]:
        """The same, as an agent's or a coordinator's settings without their prefix."""
        return {
            "BROKER": self.url,
            "BROKER_CA_FILE": str(self.authority.ca),
            "BROKER_USER_FILE": str(self.secrets / user / "user"),
            "BROKER_PASSWORD_FILE": str(self.secrets / user / "password"),
        }


class ShippedMosquitto(Shipped):
    """manifests/broker/mosquitto, with passwords or with certificates."""

    server = "mosquitto"
    protocols = ("5", "3.1.1")

    def __init__(self, directory: Path, configuration: str = "mosquitto.conf") -> None:
        super().__init__(directory)
        self._configuration = MANIFESTS / "mosquitto" / configuration
        self.auth.mkdir()
        (directory / "data").mkdir()
        (self.auth / "acl").write_bytes((MANIFESTS / "mosquitto" / "acl").read_bytes())
        (self.auth / "passwords").touch()

    def __str__(self) -> str:
        return "the shipped mosquitto"

    def command(self, port: int) -> list[str]:
        text = self._configuration.read_text(encoding="utf-8")
        assert text.count("\nlistener 8883\n") == 1
        text = text.replace("\nlistener 8883\n", f"\nlistener {port} 127.0.0.1\n")
        text = text.replace(" /mosquitto/", f" {self.directory}/")
        made = self.directory / "mosquitto.conf"
        made.write_text(f"user {pwd.getpwuid(os.getuid()).pw_name}\n{text}", encoding="utf-8")
        return leashed(mosquitto_binary(), "-c", str(made))

    def ready(self, port: int) -> bool:
        return b" running" in self.log.read_bytes() and accepts(port)

    def reload(self) -> None:
        # It says nothing when it is done; a message of a client afterwards is handled after the signal.
        before = self.log.read_bytes().count(b"Reloading config")
        super().reload()
        poll(lambda: self.log.read_bytes().count(b"Reloading config") > before, "mosquitto reloads")


class ShippedNats(Shipped):
    """manifests/broker/nats."""

    server = "nats"
    protocols = ("3.1.1",)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        try:
            self._binary = server_binary()
        except InvalidSettings:
            pytest.skip(NO_NATS)

    def __str__(self) -> str:
        return "the shipped NATS server"

    def command(self, port: int) -> list[str]:
        text = (MANIFESTS / "nats" / "nats.conf").read_text(encoding="utf-8")
        changes = {
            '"127.0.0.1:4222"': '"127.0.0.1:-1"',
            '"0.0.0.0:8883"': f'"127.0.0.1:{port}"',
            '"/data/jetstream"': f'"{self.directory}/data"',
            '"/etc/nats/tls/': f'"{self.directory}/tls/',
        }
        for shipped, ours in changes.items():
            assert shipped in text, shipped
            text = text.replace(shipped, ours)
        made = self.directory / "nats.conf"
        made.write_text(text, encoding="utf-8")
        return leashed(str(self._binary), "--config", str(made), "--log", str(self.log))

    def ready(self, port: int) -> bool:
        return b"Server is ready" in (self.log.read_bytes() if self.log.exists() else b"") and accepts(port)

    def reload(self) -> None:
        before = self.log.read_bytes().count(b"Reloaded server configuration")
        super().reload()
        poll(lambda: self.log.read_bytes().count(b"Reloaded server configuration") > before, "the NATS server reloads")
