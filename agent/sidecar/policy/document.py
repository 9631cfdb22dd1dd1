"""The policy file: YAML, read strictly, with every problem named at once.

::

    inline: true                        # actions that come in the trigger; false: only the catalogue's
    containers:
      mysql:
        commands:
          - ["/usr/bin/mysqladmin", "flush-tables"]
          - {command: ["/usr/local/bin/freeze"], users: [root], env: [LEVEL], environment: [inherit, minimal]}
    http:
      - {hosts: [pod, "*.shop.svc"], ports: [8080], methods: [POST], paths: [/backup/], headers: [X-Token]}
    tcp:
      - {hosts: [10.0.0.0/8], ports: [3306]}
    limits: {timeout: 10m, outputBytes: 16384, concurrency: 4}
    catalogue:
      dump:
        params: {database: {type: string, pattern: "[a-z0-9_]+"}}
        action: {exec: {command: ["/usr/bin/mysqldump", "--databases", "${database}"]}, containerName: mysql}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from agent.contract.actions import (
    Action,
    Command,
    EnvName,
    Finding,
    HeaderName,
    Strict,
    User,
)
from agent.contract.documents import read_documents
from agent.contract.durations import parse_duration
from agent.contract.errors import BadInput, InvalidPolicy, Problem
from agent.contract.explain import explain, type_name
from agent.contract.messages import MAX_TIMEOUT_SECONDS
from agent.sidecar.policy.catalogue import CatalogueHook, problems_of
from agent.sidecar.policy.hosts import Hosts, check_host
from agent.sidecar.policy.params import Param

#: Bounds of a file; each is far above what a pod needs.
MAX_RULES = 500
MAX_HOOKS = 200
MAX_PARAMS = 32

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_PARAM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def _hook_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("is not a hook's name (letters, digits, '-', '_' and '.', at most 128)")
    return value


def _param_name(value: str) -> str:
    if not _PARAM_NAME.fullmatch(value):
        raise ValueError("is not a parameter's name (letters, digits and '_', at most 63)")
    return value


def _timeout(value: str) -> float:
    try:
        seconds = parse_duration(value)
    except BadInput as error:
        raise ValueError(str(error)) from error
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise ValueError(f"is out of range: more than 0s and at most {MAX_TIMEOUT_SECONDS}s (7 days)")
    return seconds


def _path(value: str) -> str:
    if not value.startswith("/") or any(c in value for c in "?#%\\") or not value.isprintable():
        raise ValueError("is not a path's beginning: it starts with /, unescaped, without a query")
    if any(segment in {".", ".."} for segment in value.split("/")):
        raise ValueError("has a . or .. segment; write where it leads")
    return value


def _short_form(value: object) -> object:
    return {"command": value} if isinstance(value, list) else value


HookName = Annotated[str, AfterValidator(_hook_name)]
ParamName = Annotated[str, AfterValidator(_param_name)]
HostEntry = Annotated[str, AfterValidator(check_host)]
Environment = Literal["inherit", "minimal"]
Method = Literal["GET", "POST"]
PortNumber = Annotated[int, Field(ge=1, le=65535)]


def _inherit() -> list[Environment]:
    return ["inherit"]


def _any_method() -> list[Method]:
    return ["GET", "POST"]


class CommandRule(Strict):
    """One command, exactly so. Whom it may run as and what may be put into its environment has to be listed."""

    command: Command
    users: list[User] = Field(default_factory=list)
    env: list[EnvName] = Field(default_factory=list)
    environment: list[Environment] = Field(default_factory=_inherit, min_length=1)


class ContainerRules(Strict):
    """What may run in one container."""

    commands: Annotated[
        list[Annotated[CommandRule, BeforeValidator(_short_form)]], Field(min_length=1, max_length=MAX_RULES)
    ]


class TcpRule(Strict):
    """Where a connection may go."""

    hosts: Annotated[list[HostEntry], Field(min_length=1, max_length=MAX_RULES)]
    ports: Annotated[list[PortNumber], Field(min_length=1, max_length=MAX_RULES)]


class HttpRule(TcpRule):
    """What may be asked there. `paths` are beginnings, by whole segments; none given: any."""

    methods: list[Method] = Field(default_factory=_any_method, min_length=1)
    paths: Annotated[list[Annotated[str, AfterValidator(_path)]], Field(min_length=1)] | None = None
    headers: list[HeaderName] = Field(default_factory=list)


class Limits(Strict):
    """Bounds of this pod. A longer timeout is refused; of the other two the smaller one holds."""

    timeout: Annotated[str, AfterValidator(lambda value: (_timeout(value), value)[1])] | None = None
    output_bytes: Annotated[int, Field(ge=0, le=64 * 1024)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=1000)] | None = None

    @property
    def timeout_seconds(self) -> float | None:
        """`timeout` in seconds."""
        return None if self.timeout is None else _timeout(self.timeout)


class CatalogueEntry(Strict):
    """A hook by name: an action with `${param}` in it, and what may be put there."""

    description: str = ""
    params: dict[ParamName, Param] = Field(default_factory=dict, max_length=MAX_PARAMS)
    action: Action

    @classmethod
    def between_fields(cls, written: Mapping[Any, Any]) -> Iterator[Finding]:
        """Placeholders stand where they may, and are declared."""
        action, params = written.get("action"), written.get("params", {})
        if isinstance(action, dict) and isinstance(params, dict):
            for place, message in problems_of(action, params):
                yield ("action", *place), message


class PolicyDocument(Strict):
    """The whole file."""

    inline: bool = True
    containers: dict[str, ContainerRules] = Field(default_factory=dict, max_length=MAX_RULES)
    http: list[HttpRule] = Field(default_factory=list, max_length=MAX_RULES)
    tcp: list[TcpRule] = Field(default_factory=list, max_length=MAX_RULES)
    limits: Limits = Limits()
    catalogue: dict[HookName, CatalogueEntry] = Field(default_factory=dict, max_length=MAX_HOOKS)


@dataclass(frozen=True, slots=True)
class PlaceRule:
    """A rule for hosts, ready to be asked. `http` is None for a tcp rule."""

    name: str
    hosts: Hosts
    ports: frozenset[int]
    http: HttpRule | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that is ready to judge. `commands`: container -> argv -> (rule's name, rule)."""

    document: PolicyDocument
    commands: Mapping[str, Mapping[tuple[str, ...], tuple[tuple[str, CommandRule], ...]]]
    http: tuple[PlaceRule, ...]
    tcp: tuple[PlaceRule, ...]
    catalogue: Mapping[str, CatalogueHook]
    timeout_seconds: float | None

    @property
    def limits(self) -> Limits:
        """The limits as written."""
        return self.document.limits


def load_policy(text: str | bytes) -> Policy:
    """Read a policy.

    Raises:
        InvalidPolicy: with every problem, each with its path, the value and the next step.
    """
    documents, problems = read_documents(text)
    if problems:
        raise InvalidPolicy(problems)
    if len(documents) != 1:
        found = f"has {len(documents)} documents" if documents else "has nothing in it"
        raise InvalidPolicy([Problem("", f"the file {found}; a policy is one; `inline: false` alone allows nothing")])
    if not isinstance(documents[0], dict):
        raise InvalidPolicy(
            [Problem("", f"is a {type_name(documents[0])}, not a policy; write its fields, as inline:")]
        )
    try:
        document = PolicyDocument.model_validate(documents[0])
    except ValidationError as error:
        raise InvalidPolicy(explain(PolicyDocument, error)) from error
    if problems := list(_defaults_that_do_not_fit(document)):
        raise InvalidPolicy(problems)
    return _ready(document)


def _defaults_that_do_not_fit(document: PolicyDocument) -> Iterator[Problem]:
    for name, entry in document.catalogue.items():
        for param_name, param in entry.params.items():
            if param.text_default is not None and (why := param.why_not(param.text_default)) is not None:
                yield Problem(f"catalogue.{name}.params.{param_name}.default", why)


def _ready(document: PolicyDocument) -> Policy:
    commands: dict[str, dict[tuple[str, ...], tuple[tuple[str, CommandRule], ...]]] = {}
    for container, rules in document.containers.items():
        of_container = commands.setdefault(container, {})
        for index, rule in enumerate(rules.commands):
            argv = tuple(rule.command)
            of_container[argv] = (*of_container.get(argv, ()), (f"containers.{container}.commands[{index}]", rule))
    return Policy(
        document=document,
        commands=commands,
        http=tuple(
            PlaceRule(f"http[{index}]", Hosts.of(rule.hosts), frozenset(rule.ports), rule)
            for index, rule in enumerate(document.http)
        ),
        tcp=tuple(
            PlaceRule(f"tcp[{index}]", Hosts.of(rule.hosts), frozenset(rule.ports))
            for index, rule in enumerate(document.tcp)
        ),
        catalogue={
            name: CatalogueHook(name, entry.params, entry.action.model_dump(by_alias=True, exclude_none=True))
            for name, entry in document.catalogue.items()
        },
        timeout_seconds=document.limits.timeout_seconds,
    )
