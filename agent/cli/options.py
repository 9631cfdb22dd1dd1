"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.exits import tell

if TYPE_CHECKING:
    from agent.bus.broker import Broker
    from agent.coordinator import Coordinator
    from agent.coordinator.operator import OperatorOptions

BROKER_PANEL = "Broker"


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"


BrokerUrl = Annotated[
    str,
    typer.Option(
        "--broker",
        envvar="PODHOOK_BROKER",
        metavar="URL",
        help="mqtt://[USER[:PASSWORD]@]HOST[:PORT], or mqtts:// for TLS.",
        rich_help_panel=BROKER_PANEL,
    ),
]
TopicRoot = Annotated[
    str,
    typer.Option(
        envvar="PODHOOK_TOPIC_ROOT", metavar="TOPIC", help="First level of every topic.", rich_help_panel=BROKER_PANEL
    ),
]
UserFile = Annotated[
    Path | None,
    typer.Option(
        envvar="PODHOOK_BROKER_USER_FILE", metavar="FILE", help="File with the user.", rich_help_panel=BROKER_PANEL
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        envvar="PODHOOK_BROKER_PASSWORD_FILE",
        metavar="FILE",
        help="File with the password.",
        rich_help_panel=BROKER_PANEL,
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        envvar="PODHOOK_BROKER_CA_FILE",
        metavar="FILE",
        help="CA certificates for mqtts://.",
        rich_help_panel=BROKER_PANEL,
    ),
]
CertFile = Annotated[
    Path | None,
    typer.Option(
        envvar="PODHOOK_BROKER_CERT_FILE", metavar="FILE", help="Client certificate.", rich_help_panel=BROKER_PANEL
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        envvar="PODHOOK_BROKER_KEY_FILE", metavar="FILE", help="Key of the certificate.", rich_help_panel=BROKER_PANEL
    ),
]
TRUST_PANEL = "Trust"
SigningKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        envvar="PODHOOK_KEY",
        metavar="FILE",
        help="Private key that signs what is sent (podhook keygen). Without, only agents that run unsigned obey.",
        rich_help_panel=TRUST_PANEL,
    ),
]
AgentKeys = Annotated[
    Path | None,
    typer.Option(
        envvar="PODHOOK_AGENT_KEYS",
        metavar="DIR",
        help="Public keys of the agents: NAMESPACE.pub, or NAMESPACE/*.pub. Without, what they say is unverified.",
        rich_help_panel=TRUST_PANEL,
    ),
]
Namespaces = Annotated[
    list[str] | None,
    typer.Option(
        "--namespace", "-n", metavar="NAME", help="Namespace of the pods; may be given again. [default: default]"
    ),
]
OnlyNamespaces = Annotated[
    list[str] | None,
    typer.Option(
        "--namespace", "-n", metavar="NAME", help="Only agents of this one; may be given again. [default: all]"
    ),
]
RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run, as `podhook run` and `podhook runs` name it.")]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Pods of every namespace.")]
OutputFormat = Annotated[
    Format, typer.Option("--output", "-o", metavar="table|json", help="table for people, json for scripts.")
]

CLUSTER_PANEL = "Cluster"
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Ask the cluster of this kubeconfig (default: KUBECONFIG's).",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
Context = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="NAME",
        help="The kubeconfig's context, if not its present one.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]


class SourceName(StrEnum):
    """Who says which pods there are; see `agent.coordinator.choosing.Source`."""

    AUTO = "auto"
    KUBERNETES = "kubernetes"
    PRESENCE = "presence"


PodSource = Annotated[
    SourceName,
    typer.Option(
        "--source",
        metavar="auto|kubernetes|presence",
        help="Who says which pods there are: the cluster, or the agents. auto: the cluster, inside one or if one is "
        "named here.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
FunctionFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--function",
        metavar="FILE",
        help="YAML of Functions that the cluster need not have; may be given again.",
        rich_help_panel=CLUSTER_PANEL,
    ),
]
OPERATOR_PANEL = "Operator executor"
HttpCaFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="CA certificates for its HTTP actions.", rich_help_panel=OPERATOR_PANEL),
]
NoHttpVerify = Annotated[
    bool,
    typer.Option("--no-http-verify", help="Do not verify TLS of its HTTP actions.", rich_help_panel=OPERATOR_PANEL),
]
SecretsDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where its valueFrom.file is read.", rich_help_panel=OPERATOR_PANEL),
]

#: Said where agents that obey only signed commands were asked unsigned.
ASKED_UNSIGNED = "agents that obey only signed commands do not answer an unsigned question: give the key with --key"
DEFAULT_BROKER = "mqtt://127.0.0.1:1883"


def broker_from(
    url: str,
    user_file: Path | None,
    password_file: Path | None,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
) -> Broker:
    """The broker that these options name. Raises InvalidSettings."""
    from agent.bus.broker import parse_broker

    return parse_broker(
        url,
        user_file=user_file,
        password_file=password_file,
        ca_file=ca_file,
        certificate_file=cert_file,
        key_file=key_file,
    )


def operator_from(ca_file: Path | None, no_verify: bool, secrets_dir: Path | None) -> OperatorOptions:
    """How the coordinator runs actions itself, as these options say."""
    from agent.coordinator.operator import OperatorOptions

    return OperatorOptions(verify_http=not no_verify, ca_file=ca_file, secrets_dir=secrets_dir)


def seconds_from(flag: str, text: str) -> float:
    """A duration as Kubernetes writes it. Raises BadInput, naming the flag."""
    from agent.contract.durations import parse_duration
    from agent.contract.errors import BadInput

    try:
        return parse_duration(text)
    except BadInput as error:
        raise BadInput(f"{flag} {error}") from error


def namespaces_from(names: list[str] | None, every: bool) -> frozenset[str] | None:
    """The namespaces that are meant; None for all. Raises BadInput for what is no name."""
    from agent.contract.errors import BadInput
    from agent.contract.topics import check_name

    if every and names:
        raise BadInput("--namespace and --all-namespaces contradict each other; give one of them")
    if every:
        return None
    return frozenset(check_name("--namespace", name) for name in names or ["default"])


async def hint_to_key(coordinator: Coordinator, key: Path | None, namespaces: frozenset[str] | None) -> None:
    """Where an unsigned question was not answered in full: say so if agents are there that obey only signed ones."""
    if key is None and any(
        each.state == "online" and not each.unsigned and (namespaces is None or each.namespace in namespaces)
        for each in await coordinator.agents()
    ):
        tell(ASKED_UNSIGNED)
