"""What a hook does: exec, httpGet, httpPost or tcpSocket, as KubeStash's HookTemplate writes it.

The same models stand in a HookTemplate and in a trigger. Unknown fields are refused in both: a field that an
older agent ignored (`exec.user`, say) would run something else than was asked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails

#: RFC 7230 token: what may stand as a header's name.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: They frame the message or the connection: a hook that sets them speaks another protocol (smuggling).
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "connection", "upgrade"})
#: IANA service names, as Kubernetes has them for ports.
_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}\$?")
_MAX_ID = 4294967294
_ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")

#: Kubernetes' keys of a Secret; a name that begins with a dot would be the kubelet's own (`..data`), or lead out.
_SECRET_FILE = re.compile(r"[A-Za-z0-9_][-._A-Za-z0-9]*(?:/[A-Za-z0-9_][-._A-Za-z0-9]*){0,2}")
_MAX_SECRET_FILE_CHARACTERS = 253

MAX_COMMAND_BYTES = 64 * 1024
#: A number written as a string may have leading zeros, but int() need not see whatever is sent.
_MAX_PORT_DIGITS = 20

#: A problem between fields: where, below the model that has it, and what.
Finding = tuple[tuple[int | str, ...], str]


class Strict(BaseModel):
    """A part of a document that people write: camelCase, nothing unknown, no type guessed."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", strict=True, frozen=True, validate_by_name=False
    )

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:  # noqa: ARG003
        """Find what no single field can know, in the fields as they were written.

        They may be of any type: what a single field can know is reported by that field.
        """
        yield from ()

    @model_validator(mode="wrap")
    @classmethod
    def _every_problem(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report what is wrong in and between fields together; an `after` validator would wait."""
        found = [
            InitErrorDetails(type="value_error", loc=loc, input=value, ctx={"error": ValueError(message)})
            for loc, message in (cls.between_fields(value) if isinstance(value, dict) else ())
        ]
        try:
            model = handler(value)
        except ValidationError as error:
            if not found:
                raise
            of_fields = [_again(detail) for detail in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(cls.__name__, of_fields + found) from error
        if found:
            raise ValidationError.from_exception_data(cls.__name__, found)
        return model


def _again(detail: Mapping[str, Any]) -> InitErrorDetails:
    return InitErrorDetails(type=detail["type"], loc=detail["loc"], input=detail["input"], ctx=detail.get("ctx", {}))


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("has a NUL character, which no system call can pass on; remove it")
    return value


def _host(value: str) -> str:
    if ":" in value:
        try:
            ipaddress.IPv6Address(value)
        except ValueError as error:
            raise ValueError(
                "is not a host name or an IP address; a port goes into port:, a path into path:"
            ) from error
    if (
        len(value) > 253
        or any(c in value for c in "/@?#\\[]%")
        or any(not c.isprintable() or c.isspace() for c in value)
    ):
        raise ValueError("is not a host name or an IP address (no scheme, no port, no path, no spaces)")
    return value


def _port(value: object) -> object:
    """An integer, a port's name, or a number written as a string (KubeStash's IntOrString)."""
    number: object = value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MAX_PORT_DIGITS:
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise ValueError("is not a port; write a number from 1 to 65535 or a port's name")  # noqa: TRY004
    if isinstance(number, int) and not 1 <= number <= 65535:
        raise ValueError("is not a port; the range is 1 to 65535")
    if isinstance(number, str) and not _PORT_NAME.fullmatch(number):
        raise ValueError(
            "is not a port; write a number from 1 to 65535 or a port's name "
            "(at most 15 lower-case letters, digits and '-', with a letter)"
        )
    return number


def _header_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError("is not a header's name (RFC 7230: letters, digits and '-', no spaces)")
    if value.lower() in _FRAMING_HEADERS:
        raise ValueError("is a header that frames the message, and podhook sets it; remove it")
    return value


def _one_line(value: str) -> str:
    if any(c in value for c in "\r\n\0"):
        raise ValueError("there is a line break or NUL in it; remove it")  # not shown: it may be a credential
    return value


def _scheme(value: str) -> str:
    if value.upper() not in {"", "HTTP", "HTTPS"}:
        raise ValueError("is neither HTTP nor HTTPS")
    return value


def _env_name(value: str) -> str:
    if not _ENV_NAME.fullmatch(value):
        raise ValueError("is not the name of an environment variable (letters, digits, '_', '-' and '.')")
    return value


def _secret_file(value: str) -> str:
    if len(value) > _MAX_SECRET_FILE_CHARACTERS or not _SECRET_FILE.fullmatch(value):
        raise ValueError(
            "is not the name of a secret file; write its path below the agent's PODHOOK_SECRETS_DIR, such as "
            "db/password (letters, digits, '-', '_' and '.', at most three levels, none beginning with '.')"
        )
    return value


def _not_both(written: Mapping[Any, Any]) -> Iterator[Finding]:
    if written.get("value") and written.get("valueFrom") is not None:
        yield ("valueFrom",), "stands beside a value; give one of them"


def _user(value: str) -> str:
    """A name, `uid` or `uid:gid`. 4294967295 is -1 to the kernel, which means "stay who you are"."""
    name, colon, group = value.partition(":")
    numbers = [name, group] if colon else [name]
    if all(number.isascii() and number.isdigit() for number in numbers):
        if any(len(number) > len(str(_MAX_ID)) or int(number) > _MAX_ID for number in numbers):
            raise ValueError(f"is not a user; ids go from 0 to {_MAX_ID}")
    elif colon or not _USER_NAME.fullmatch(value):
        raise ValueError("is not a user; write a name of the container's /etc/passwd, uid or uid:gid")
    return value


def _argv(command: list[str]) -> list[str]:
    if not command[0]:
        raise ValueError("command[0] is empty; it names the program to run")
    size = sum(len(part.encode()) + 1 for part in command)
    if size > MAX_COMMAND_BYTES:
        raise ValueError(f"the command has {size} bytes; the limit is {MAX_COMMAND_BYTES}; put long text in a file")
    return command


Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int | str, BeforeValidator(_port)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
EnvName = Annotated[str, AfterValidator(_env_name)]
User = Annotated[str, AfterValidator(_user)]
Command = Annotated[list[Annotated[str, AfterValidator(_no_nul)]], Field(min_length=1), AfterValidator(_argv)]


class ValueFrom(Strict):
    """Where a value is read when the action is prepared: a file below the agent's PODHOOK_SECRETS_DIR."""

    file: Annotated[str, AfterValidator(_secret_file)]


class HttpHeader(Strict):
    """One header, sent as given; repeats are kept. `valueFrom` is podhook's own addition."""

    name: HeaderName
    value: Annotated[str, AfterValidator(_one_line)] = ""
    value_from: ValueFrom | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Exactly one of value and valueFrom."""
        if "value" not in written and written.get("valueFrom") is None:
            yield ("value",), "give a value, or valueFrom with the file of a mounted Secret"
        yield from _not_both(written)


class FormField(Strict):
    """One key of a form with all its values, in order."""

    key: str
    values: list[str]


class EnvVar(Strict):
    """A variable: a literal value, or `valueFrom.file`, a mounted Secret's (which Kubernetes' EnvVar has not)."""

    name: EnvName
    value: Annotated[str, AfterValidator(_no_nul)] = ""
    value_from: ValueFrom | None = None

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """At most one of value and valueFrom."""
        yield from _not_both(written)


class ExecAction(Strict):
    """A command: an argv, no shell, exactly as given (SEMANTICS: exec).

    `user`, `env` and `environment` are podhook's own additions.
    """

    command: Command
    user: User | None = None
    env: list[EnvVar] | None = None
    environment: Literal["inherit", "minimal"] = "inherit"


class HttpGetAction(Strict):
    """A GET; 200 <= status < 400 is success. `host` empty is the pod's own address."""

    host: Host = ""
    port: Port
    path: Annotated[str, AfterValidator(_one_line)] = ""
    scheme: Annotated[str, AfterValidator(_scheme)] = "HTTP"
    http_headers: list[HttpHeader] = []

    @property
    def tls(self) -> bool:
        """Whether the scheme is HTTPS, in any case."""
        return self.scheme.upper() == "HTTPS"


class HttpPostAction(HttpGetAction):
    """A POST; `form` wins over `body`."""

    body: str = ""
    form: list[FormField] = []


class TcpSocketAction(Strict):
    """Succeeds when the connection opens. `host` empty is the pod's own address."""

    host: Host = ""
    port: Port


ACTION_FIELDS = {"exec": "exec_", "httpGet": "http_get", "httpPost": "http_post", "tcpSocket": "tcp_socket"}


class Action(Strict):
    """Exactly one of exec, httpGet, httpPost and tcpSocket, and the container it speaks of."""

    exec_: ExecAction | None = Field(default=None, alias="exec")
    http_get: HttpGetAction | None = None
    http_post: HttpPostAction | None = None
    tcp_socket: TcpSocketAction | None = None
    container_name: str = ""

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Exactly one action; a port's name needs a container to look it up in."""
        given = [name for name in ACTION_FIELDS if written.get(name) is not None]
        if len(given) > 1:
            count, names = len(given), ", ".join(given)
            yield (), f"has {count} actions ({names}); a hook runs exactly one: split it into {count} hooks"
        elif not given and written.keys() <= {*ACTION_FIELDS, "containerName"}:  # else the odd field is named
            yield (), "has no action; give one of exec, httpGet, httpPost, tcpSocket"
        if written.get("containerName"):
            return
        for name in given:
            part = written[name]
            port = part.get("port") if isinstance(part, dict) else getattr(part, "port", None)
            if isinstance(port, str) and _PORT_NAME.fullmatch(port):
                message = f"{port!r} is a name, and names are looked up in one container's ports; set containerName"
                yield (name, "port"), message

    @property
    def kind(self) -> str:
        """Which action it is: `exec`, `httpGet`, `httpPost` or `tcpSocket`."""
        return next(name for name, field in ACTION_FIELDS.items() if getattr(self, field) is not None)
