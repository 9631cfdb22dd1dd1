"""Which broker, and as whom: a URL, credentials from values or files, TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from agent.contract.errors import InvalidSettings

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}
PROTOCOLS = ("auto", "5", "3.1.1")

_NO_USER = "a broker password without a user: give the user in the URL or by a user file"


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and how to be let in.

    A file named for user or password wins over the URL and is read at each connection, so a rotated Secret is
    picked up. `protocol` is `auto` (MQTT 5, then 3.1.1), `5` or `3.1.1`.
    """

    host: str
    port: int = 1883
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    user_file: Path | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    protocol: str = "auto"

    @property
    def url(self) -> str:
        """The URL without the password, fit for logs."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{user}{host}:{self.port}"

    def credentials(self) -> tuple[str | None, str | None]:
        """(user, password), files first.

        Raises:
            InvalidSettings: a file cannot be read; names it.
        """
        user = _read(self.user_file, "broker user") if self.user_file else self.user
        password = _read(self.password_file, "broker password") if self.password_file else self.password
        if password and not user:
            raise InvalidSettings(_NO_USER)
        return user, password

    def tls_context(self) -> ssl.SSLContext | None:
        """What to trust and what to show; None without TLS. The system's CAs unless `ca_file` is given.

        Raises:
            InvalidSettings: a certificate or key cannot be used; names the file.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        except (OSError, ssl.SSLError) as error:
            raise InvalidSettings(f"broker CA file {self.ca_file}: {error.strerror or error}") from error
        if self.certificate_file:
            try:
                # Without a password OpenSSL would ask for one on the terminal and wait.
                context.load_cert_chain(self.certificate_file, self.key_file, password=_no_password)
            except (OSError, ssl.SSLError) as error:
                raise InvalidSettings(
                    f"broker client certificate {self.certificate_file} "
                    f"with key {self.key_file or 'in the same file'}: {error.strerror or error}"
                ) from error
        return context


def parse_broker(
    url: str,
    *,
    user_file: Path | None = None,
    password_file: Path | None = None,
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
    protocol: str = "auto",
) -> Broker:
    """Read `mqtt://[user[:password]@]host[:port]` or `mqtts://...`.

    Raises:
        InvalidSettings: the URL cannot be used; never repeats a password.
    """
    parts = _split(url)
    if parts.scheme not in DEFAULT_PORTS:
        raise InvalidSettings(
            f"the broker URL begins with {parts.scheme!r}; write mqtt://HOST:PORT or mqtts://HOST:PORT"
        )
    if not parts.hostname:
        raise InvalidSettings("the broker URL has no host; write mqtt://HOST:PORT")
    _check_host(parts.hostname)
    if parts.password and not parts.username and not user_file:
        raise InvalidSettings(_NO_USER)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidSettings("the broker URL has something after the port; write mqtt://HOST:PORT")
    tls = parts.scheme == "mqtts"
    if not tls and (ca_file or certificate_file or key_file):
        raise InvalidSettings("certificates are given but the broker URL is mqtt://; write mqtts:// for TLS")
    if key_file and not certificate_file:
        raise InvalidSettings("a broker key file without a certificate file; give both")
    if protocol not in PROTOCOLS:
        raise InvalidSettings(f"broker protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    return Broker(
        host=parts.hostname,
        port=parts.port or DEFAULT_PORTS[parts.scheme],
        tls=tls,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        user_file=user_file,
        password_file=password_file,
        ca_file=ca_file,
        certificate_file=certificate_file,
        key_file=key_file,
        protocol=protocol,
    )


def _split(url: str) -> SplitResult:
    text = url if "://" in url else f"mqtt://{url}"  # `localhost:1883` is what people type
    try:
        parts = urlsplit(text)
        if parts.port is not None and parts.port < 1:
            raise ValueError
    except ValueError:
        # Its text can repeat a piece of the password (`u:p#q@host` makes `p` the port), so it is not chained.
        raise InvalidSettings(
            "the broker URL cannot be read; write mqtt://HOST:PORT with a port from 1 to 65535, "
            "and percent-encode what is special in a user or password"
        ) from None
    return parts


def _check_host(host: str) -> None:
    try:
        host.encode("idna")  # what the resolver will do with it
    except UnicodeError as error:
        raise InvalidSettings(f"the broker URL's host {host[:80]!r} is no host name") from error


def _no_password() -> str:
    raise OSError("the key is encrypted; podhook needs one that is not")


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{what} file {path}: {getattr(error, 'strerror', None) or error}") from error
