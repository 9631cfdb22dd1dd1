"""`podhook broker`: issue, change and revoke users, and make the broker read its files again when they change."""

from __future__ import annotations

import signal
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import options
from agent.cli.exits import errors_as_exits

if TYPE_CHECKING:
    from agent.bus.accounts import Files

group = typer.Typer(
    name="broker",
    help="Issue users of the broker, and make it read its files again when they change.",
    short_help="Issue users of the broker, and make it read its files again when they change.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


#: Said after each change of a user.
_TELL = "the broker reads it once told to: by podhook broker reload beside it, or kill -HUP"


class Server(StrEnum):
    """Whose files are written."""

    MOSQUITTO = "mosquitto"
    NATS = "nats"

    @property
    def process(self) -> str:
        """What its process is called."""
        return "nats-server" if self is Server.NATS else "mosquitto"


@group.callback()
def _broker() -> None:
    """Issue users of the broker, and make it read its files again when they change."""


@group.command("user")
def user(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The namespace of the agents, or the coordinator's name.")
    ],
    files: Annotated[
        Path, typer.Option("--files", metavar="DIR", help="Where the broker's files of users are; made if need be.")
    ],
    server: Annotated[
        Server, typer.Option("--for", metavar="mosquitto|nats", help="Whose files they are.")
    ] = Server.MOSQUITTO,
    secret: Annotated[
        Path | None,
        typer.Option("--secret", metavar="DIR", help="Write the files `user` and `password` there, for a Secret."),
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the password on standard output.")] = False,
    keep_password: Annotated[
        bool, typer.Option("--keep-password", help="Change only what the user may do; its password stays.")
    ] = False,
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="A user that triggers hooks, instead of agents that run them.")
    ] = False,
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Whose agents it may command; may be given again."),
    ] = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="It may command the agents of every namespace.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="It may also clear presence (`podhook agents --prune`).")
    ] = False,
    certificate: Annotated[
        bool, typer.Option("--certificate", help="It shows a certificate with its name: no password is made.")
    ] = False,
    pod: Annotated[
        str | None,
        typer.Option("--pod", metavar="POD", help="Only this pod of the namespace NAME; with --certificate."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Revoke: remove the user and its rules.")] = False,
    topic_root: options.TopicRoot = "podhook",
) -> None:
    """Issue a user of the broker, with a new password and the rules of what it may do; again: change it.

    \b
    podhook broker user shop --files auth --secret secrets/shop
        the agents of namespace shop
    podhook broker user nightly --coordinator -n shop -n billing --files auth --secret secrets/nightly
        a coordinator that may command two namespaces; its user is called coordinator_nightly
    podhook broker user shop --files auth --secret secrets/shop
        given again: another password
    podhook broker user nightly --coordinator -n shop --keep-password --files auth
        other rules, the same password
    podhook broker user shop --files auth --remove

    For mosquitto DIR has the files passwords and acl, for NATS users.conf; see manifests/broker. They hold hashes,
    never a password. The broker reads them when it is told to: by `podhook broker reload` beside it, or kill -HUP. Who
    is connected with a password that is not valid any more is disconnected then. Agents and coordinators read theirs at
    each connection: nothing is restarted.

    An agent's user may read its own namespace's commands, write its presence, and answer as itself; it can command
    nobody. A coordinator's may command the given namespaces, read everybody's presence, and read answers to itself.

    Exit codes: 0 done, 2 usage, a file that cannot be used, or no such user.
    """
    with errors_as_exits():
        from agent.bus import access
        from agent.bus.accounts import MosquittoFiles, NatsFiles, write_secret
        from agent.contract.topics import Topics

        if not coordinator and (namespace or all_namespaces or prune):
            raise typer.BadParameter("--namespace, --all-namespaces and --prune are for a --coordinator")
        if pod is not None and (coordinator or not certificate):
            raise typer.BadParameter("--pod is for agents with --certificate")
        if certificate and server is Server.NATS:
            raise typer.BadParameter("--certificate is for mosquitto; NATS users here have passwords")
        topics = Topics(topic_root)
        if coordinator:
            given = options.namespaces_from(namespace, all_namespaces) if namespace or all_namespaces else frozenset()
            wanted = sorted(given) if given is not None else None
            if not remove and wanted == []:
                raise typer.BadParameter("say whose agents it may command: --namespace NAME, or --all-namespaces")
            made = access.coordinator(name, wanted, topics, prunes=prune)
        elif pod is not None:
            made = access.agent_of_pod(name, pod, topics)
        else:
            made = access.agents_of(name, topics)
        target: Files = MosquittoFiles(files, topics) if server is Server.MOSQUITTO else NatsFiles(files)
        if remove:
            target.remove(made.name)
            typer.echo(f"removed {made.name}; {_TELL}", err=True)
            return
        password = _new_password(secret, show=show, keep=keep_password or certificate)
        if secret is not None and password is not None:
            write_secret(secret, made.name, password)
        changed = target.put(made, password, patterned=not coordinator and pod is None, needs_none=certificate)
        if show and password is not None:
            print(password)
        typer.echo(f"{'changed' if changed else 'added'} {made.name}; {_TELL}", err=True)


def _new_password(secret: Path | None, *, show: bool, keep: bool) -> str | None:
    """A password, if one is made at all, and somebody gets to know it."""
    from agent.bus.passwords import new_password

    if keep and (secret is not None or show):
        raise typer.BadParameter("no password is made, so there is none for --secret or --print")
    if not keep and secret is None and not show:
        raise typer.BadParameter("say where the new password goes: --secret DIR, or --print")
    return None if keep else new_password()


@group.command("reload")
def reload(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="What the broker reads: files, or directories of files.")
    ],
    server: Annotated[
        Server, typer.Option("--for", metavar="mosquitto|nats", help="Which broker it is.")
    ] = Server.MOSQUITTO,
    process: Annotated[
        str | None,
        typer.Option(
            "--process", metavar="NAME", help="What its process is called. [default: mosquitto or nats-server]"
        ),
    ] = None,
    pid_file: Annotated[
        Path | None,
        typer.Option("--pid-file", metavar="FILE", help="Where its number is, if more than one has that name."),
    ] = None,
) -> None:
    """Run beside a broker, and tell it to read its files again (SIGHUP) whenever they change.

    \b
    podhook broker reload /mosquitto/auth/acl /mosquitto/auth/passwords /mosquitto/tls
        in a container of the broker's pod: see manifests/broker
    podhook broker reload /etc/nats/auth /etc/nats/tls --for nats
    sudo -u mosquitto podhook broker reload /etc/mosquitto/podhook --pid-file /run/mosquitto/mosquitto.pid
        on a host

    Needs the broker's own user and nothing else: in its pod `runAsUser` as the broker has it, no capability, and
    `shareProcessNamespace: true`, without which it sees no process but its own. Give mounted directories or files in
    them, never a `subPath`, which Kubernetes does not renew.

    Looks once a second at what is in the files. A change counts when two looks in a row found the same; a file that was
    emptied waits for ten. While a PATH, or a file that was in one, is missing, the broker is told nothing: mosquitto
    without its acl lets everybody do everything. A file that shall be gone is forgotten when this command is restarted.

    It stays up whatever is wrong, and says it on standard error: a broker that is not there yet, that runs as somebody
    else, two of them. The broker is told once at the start, since nobody knows what changed before.

    Exit codes: 0 it was ended (SIGTERM, SIGINT), 2 usage.
    """
    with errors_as_exits():
        from agent.bus.reload import process as broker_process
        from agent.bus.reload.reloader import Reloader
        from agent.sidecar.logs import configure_logging

        configure_logging("auto", "info")
        wanted = broker_process.Wanted(process or server.process, pid_file)
        over = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: over.set())
        Reloader(paths, lambda: broker_process.tell(wanted)).run(over.wait)
