"""The agent's settings: `PODHOOK_*` in the environment, each also a flag of `podhook agent`."""

from __future__ import annotations

import os
import re
import socket
import uuid
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from agent.bus.broker import Broker, parse_broker
from agent.contract.errors import BadInput, InvalidSettings
from agent.contract.secret_names import secrets_of
from agent.contract.topics import Topics, check_name
from agent.pod.identity import Identity

ENV_PREFIX = "PODHOOK_"


class AgentSettings(BaseSettings):
    """What `podhook agent` can be told. Times are seconds, sizes bytes.

    `BaseSettings` reads the environment; values passed by keyword (flags) win over it.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", env_ignore_empty=True)

    broker: str = Field(
        "mqtt://127.0.0.1:1883", description="MQTT broker: mqtt://[USER[:PASSWORD]@]HOST[:PORT], or mqtts://"
    )
    broker_user_file: Path | None = Field(None, description="File with the broker user; read at each connection")
    broker_password_file: Path | None = Field(
        None, description="File with the broker password; read at each connection"
    )
    broker_ca_file: Path | None = Field(
        None, description="CA certificates to trust for mqtts:// (default: the system's)"
    )
    broker_cert_file: Path | None = Field(None, description="Client certificate for mqtts://")
    broker_key_file: Path | None = Field(None, description="Key of the client certificate")
    broker_protocol: Literal["auto", "5", "3.1.1"] = Field("auto", description="MQTT version; auto tries 5, then 3.1.1")
    topic_root: str = Field("podhook", description="First level of every topic")
    namespace: str = Field("default", description="The pod's namespace (downward API: metadata.namespace)")
    pod: str = Field("", description="The pod's name (downward API: metadata.name; default: the host name)")
    pod_uid: str = Field(
        "", max_length=128, description="The pod's uid (downward API: metadata.uid; default: derived from this machine)"
    )
    pod_ip: str = Field("127.0.0.1", description="Where actions without a host go (downward API: status.podIP)")
    container: str = Field(
        "agent", min_length=1, max_length=253, description="Name of the container that the agent runs in"
    )
    labels_file: Path | None = Field(
        None, description="The pod's labels (downward API volume); re-read when it changes"
    )
    pod_file: Path | None = Field(
        None, description="JSON description of containers, ports and owners; re-read when it changes"
    )
    kubernetes: bool = Field(
        default=False,
        description="Without a pod file, ask the API server for containers, ports and owners (`get` on the own pod)",
    )
    state_dir: Path = Field(
        default_factory=lambda: _default_state_dir(),  # noqa: PLW0108 (defined below)
        description="Where the journal is kept; must outlive a restart",
    )
    max_concurrent: int = Field(16, ge=1, le=1000, description="Attempts at once; one more is rejected (busy)")
    grace_seconds: float = Field(15, ge=0, le=3600, description="On SIGTERM, how long running attempts may go on")
    output_limit_bytes: int = Field(32768, ge=0, le=65536, description="Kept of each output stream of a command")
    http_verify_pod: bool = Field(default=False, description="Verify TLS of HTTP actions to the pod's own address")
    http_verify_host: bool = Field(default=True, description="Verify TLS of HTTP actions to a given host")
    http_ca_file: Path | None = Field(None, description="CA certificates for HTTP actions (default: the system's)")
    trusted_keys: Path | None = Field(
        None,
        description="Public keys whose commands are obeyed: a file, or a directory of them; re-read when they change",
    )
    agent_key: Path | None = Field(
        None, description="The namespace's agent key, which signs outcomes and presence; re-read when it changes"
    )
    secrets_dir: Path | None = Field(
        None, description="Mounted Secrets that hooks may name with `valueFrom.file`; no file of the agent's own in it"
    )
    audit: str = Field(
        "stdout", description="Where the audit goes: stdout, a file (its path), or off (then nobody knows who did what)"
    )
    allow_unsigned: bool = Field(
        default=False, description="Run triggers that nobody signed. Whoever reaches the broker can then run commands"
    )
    policy: Path | None = Field(
        None, description="YAML of what may run here: see docs/policy.md; re-read when it changes"
    )
    health_port: int = Field(
        0, ge=0, le=65535, description="Port of GET /healthz for a liveness probe: 200 while the agent lives; 0: none"
    )
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged")

    def identity(self) -> Identity:
        """Who this agent is.

        Raises:
            BadInput: namespace or pod is not a Kubernetes name.
        """
        namespace = check_name("PODHOOK_NAMESPACE", self.namespace)
        pod = check_name("PODHOOK_POD", self.pod or _host_name())
        return Identity(namespace, pod, self.pod_uid or _derived_uid(namespace, pod), self.pod_ip)

    def check_audit(self) -> None:
        """Raise InvalidSettings for an audit that goes nowhere by mistake."""
        if self.audit not in ("stdout", "off") and "/" not in self.audit:
            raise InvalidSettings(
                f"PODHOOK_AUDIT: {self.audit!r} is neither stdout nor off nor a path; write a file as ./{self.audit}"
            )

    def check_secrets_dir(self) -> None:
        """Raise InvalidSettings where a hook could be given one of the agent's own files by `valueFrom.file`."""
        if self.secrets_dir is None:
            return
        root = self.secrets_dir.resolve()
        for name, value in self:
            if name != "secrets_dir" and isinstance(value, Path) and value.resolve().is_relative_to(root):
                raise InvalidSettings(
                    f"PODHOOK_SECRETS_DIR: {self.secrets_dir} holds PODHOOK_{name.upper()} ({value}), which hooks "
                    "could then ask for; mount what hooks may have into a directory of its own"
                )

    def topics(self) -> Topics:
        """Topic names below the root. Raises InvalidSettings for a root that cannot be used."""
        try:
            return Topics(self.topic_root)
        except BadInput as error:
            raise InvalidSettings(f"PODHOOK_TOPIC_ROOT: {error}") from error

    def check_trust(self) -> None:
        """Whom to obey is said in one way. Raises InvalidSettings."""
        if self.allow_unsigned and self.trusted_keys is not None:
            raise InvalidSettings(
                "PODHOOK_ALLOW_UNSIGNED is true and PODHOOK_TRUSTED_KEYS is set: either everybody who reaches the "
                "broker is obeyed, or the owners of these keys; remove one of the two"
            )

    def parsed_broker(self) -> Broker:
        """The broker and the credentials for it. Raises InvalidSettings."""
        try:
            return parse_broker(
                self.broker,
                user_file=self.broker_user_file,
                password_file=self.broker_password_file,
                ca_file=self.broker_ca_file,
                certificate_file=self.broker_cert_file,
                key_file=self.broker_key_file,
                protocol=self.broker_protocol,
            )
        except InvalidSettings as error:
            name = "PODHOOK_BROKER_KEY_FILE" if self.broker_key_file and not self.broker_cert_file else "PODHOOK_BROKER"
            raise InvalidSettings(f"{name}: {error}") from error


def load_settings(**flags: object) -> AgentSettings:
    """Read the environment; flags that are not None win.

    Raises:
        InvalidSettings: naming every variable that cannot be used, its value and the rule.
    """
    try:
        settings = AgentSettings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"{ENV_PREFIX}{'_'.join(map(str, detail['loc'])).upper()}: {detail['input']!r}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        ]
        raise InvalidSettings("; ".join(lines)) from error
    except RuntimeError as error:  # Path.home(): this user has no home directory
        raise InvalidSettings("PODHOOK_STATE_DIR is not set and there is no home directory; set it") from error
    wrong = []
    checks = (
        settings.identity,
        settings.topics,
        settings.check_trust,
        settings.parsed_broker,
        settings.check_audit,
        settings.check_secrets_dir,
    )
    for check in checks:
        try:
            check()
        except BadInput as error:
            wrong.append(str(error))
    if wrong:
        raise InvalidSettings("; ".join(wrong))
    return settings


def command_environment() -> dict[str, str]:
    """The environment of commands in the agent's own container: the agent's, without its own settings and secrets."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}


def own_secrets() -> list[bytes]:
    """Secrets in the agent's own environment. Of its settings only the broker has one, a password in the URL.

    The others that are named like secrets are paths of files, which an error must be able to name.
    """
    ours, broker = ENV_PREFIX.encode(), b"PODHOOK_BROKER"
    foreign = ((name, value) for name, value in os.environb.items() if name == broker or not name.startswith(ours))
    return [secret for name, value in foreign for secret in secrets_of(name, value)]


def _default_state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "podhook"


def _host_name() -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", socket.gethostname().lower()).strip("-.") or "localhost"


def _derived_uid(namespace: str, pod: str) -> str:
    """Outside Kubernetes: the same on this machine for the same name, another on every other machine."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        machine = ""
    machine = machine or f"{uuid.getnode():x}"  # images ship the file empty
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"podhook/{machine}/{namespace}/{pod}"))
