"""Who may do what on a broker: the topic rules of each kind of user, in the words of mosquitto and of NATS. Pure.

An agent's user is called like its namespace, so that one rule with the user's name in it covers every namespace. A
coordinator's begins with `coordinator_`, which no namespace can (RFC 1123 names have no `_`): otherwise the rule for
agents would make the coordinator `shop` an agent of the namespace `shop`. A pod's own user, for certificates, is
`{namespace}.{pod}`: no namespace has a dot.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.contract.errors import InvalidSettings
from agent.contract.topics import VERSION, Topics, check_name

COORDINATOR_PREFIX = "coordinator_"
#: RFC 1123 labels, which namespaces are (Kubernetes: "Object Names and IDs").
LABEL_CHARACTERS = 63
#: The longest common name of a certificate (RFC 5280, ub-common-name).
COMMON_NAME_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class User:
    """A broker user: what it is called, and the MQTT topic filters it may publish to and read from."""

    name: str
    publish: tuple[str, ...]
    read: tuple[str, ...]


def agents_of(namespace: str, topics: Topics) -> User:
    """The user of every agent of a namespace. It cannot publish a command to anybody.

    Raises:
        InvalidSettings: not the name of a namespace.
    """
    return _agents(label("namespace", namespace), "+", label("namespace", namespace), topics)


def agent_of_pod(namespace: str, pod: str, topics: Topics) -> User:
    """The user of one pod's agent, for a broker that names users and sessions by certificates.

    Raises:
        InvalidSettings: not such names, or together too long for a certificate's common name.
    """
    name = f"{label('namespace', namespace)}.{check_name('pod', pod)}"
    if len(name) > COMMON_NAME_CHARACTERS:
        raise InvalidSettings(
            f"the user {name} has {len(name)} characters; a certificate's common name has at most "
            f"{COMMON_NAME_CHARACTERS}: use a password for this pod's namespace"
        )
    return _agents(namespace, pod, name, topics)


def coordinator(name: str, namespaces: Sequence[str] | None, topics: Topics, *, prunes: bool = False) -> User:
    """A coordinator's user: commands to agents of these namespaces (None: of all), everybody's presence, own replies.

    `prunes` allows to clear retained presence there (`podhook agents --prune`).

    Raises:
        InvalidSettings: a name that cannot be used.
    """
    user = COORDINATOR_PREFIX + label("coordinator", name.removeprefix(COORDINATOR_PREFIX))
    where = ["+"] if namespaces is None else [label("namespace", each) for each in namespaces]
    publish = [topics.commands(each, "+") for each in where]
    if prunes:
        publish += [topics.presence(each, "+") for each in where]
    return User(user, tuple(publish), (topics.presences(), topics.replies(user)))


def label(what: str, text: str) -> str:
    """Return `text` if it is a Kubernetes label: nothing in it is special to a topic, a password file or a pattern.

    Raises:
        InvalidSettings: names what is wrong.
    """
    if len(text) > LABEL_CHARACTERS or "." in text:
        raise InvalidSettings(
            f"{what} {text[:80]!r} cannot name a broker user: at most {LABEL_CHARACTERS} characters and no dot"
        )
    return check_name(what, text)


def _agents(namespace: str, pod: str, name: str, topics: Topics) -> User:
    commands, presence = topics.commands(namespace, pod), topics.presence(namespace, pod)
    return User(name, (presence, topics.reply("+", "+", namespace, pod)), (commands, presence))


# -- mosquitto


def mosquitto_base(topics: Topics) -> str:
    """The access rules of every broker: agents, by the pattern of their user's name."""
    root = f"{topics.root}/{VERSION}"
    return f"""\
# podhook's access rules for mosquitto. `podhook broker user` keeps this file; lines between its marks are its own.
# What no rule allows is denied. mosquitto does not check SUBSCRIBE: a forbidden one is granted, and gets nothing.

# Agents: the user is called like the namespace (%u). The one thing they may never do is publish a command.
pattern read {root}/agents/%u/+/commands
pattern readwrite {root}/agents/%u/+/presence
pattern write {root}/runs/+/+/%u/+
"""


def _marks(name: str) -> tuple[str, str]:
    return f"# podhook: user {name}", f"# podhook: end of {name}"


def mosquitto_has(text: str, name: str) -> bool:
    """Whether the access rules have a section of this user."""
    return _marks(name)[0] in text.splitlines()


def mosquitto_without(text: str, name: str) -> str:
    """Access rules without the section of a user; every other line stays as it is.

    Raises:
        InvalidSettings: a section's end is missing.
    """
    begin, end = _marks(name)
    lines = text.splitlines()
    if begin not in lines:
        return text
    first = lines.index(begin)
    if end not in lines[first:]:
        raise InvalidSettings(f"the access rules have {begin!r} but no {end!r} after it; mend the file by hand")
    last = lines.index(end, first)
    return "\n".join([*lines[:first], *lines[last + 1 :]]).rstrip("\n") + "\n"


def mosquitto_with(text: str, user: User) -> str:
    """Access rules with the section of a user, in place of any it had. Sections go to the end, after the patterns.

    Raises:
        InvalidSettings: a section's end is missing.
    """
    begin, end = _marks(user.name)
    lines = [begin, f"user {user.name}"]
    lines += [f"topic write {each}" for each in user.publish if each not in user.read]
    lines += [f"topic {'readwrite' if each in user.publish else 'read'} {each}" for each in user.read]
    return f"{mosquitto_without(text, user.name).rstrip()}\n\n" + "\n".join([*lines, end]) + "\n"


# -- NATS


NATS_HEAD = "# podhook's users for NATS, kept by `podhook broker user`: one a line, passwords as bcrypt.\n"
#: NATS without a single user lets everybody in; this one has no right and a password that nobody has.
NATS_NOBODY = "nobody_"


def nats_user(user: User, password_hash: str) -> dict[str, Any]:
    """One user in NATS's configuration: nothing but MQTT, nothing but these subjects."""
    return {
        "user": user.name,
        "password": password_hash,
        "allowed_connection_types": ["MQTT"],
        "permissions": {
            "publish": {"allow": _subjects(user.publish)},
            "subscribe": {"allow": _subjects(user.read)},
        },
    }


def nats_nobody(password_hash: str) -> dict[str, Any]:
    """The user that keeps a list of users from being empty."""
    nothing = {"deny": [">"]}
    return {
        **nats_user(User(NATS_NOBODY, (), ()), password_hash),
        "permissions": {"publish": nothing, "subscribe": nothing},
    }


_AS_SUBJECT = str.maketrans({"/": ".", ".": "//", "+": "*", "#": ">"})


def _subjects(filters: Iterable[str]) -> list[str]:
    """Topic filters as NATS's subjects (NATS: "MQTT topics and NATS subjects"); `a/#` means `a`, too."""
    found = []
    for each in filters:
        subject = each.translate(_AS_SUBJECT)
        found += [subject.removesuffix(".>"), subject] if subject.endswith(".>") else [subject]
    return found


def nats_text(users: Iterable[dict[str, Any]]) -> str:
    """The file that NATS includes in `authorization`."""
    lines = ",\n".join(f"  {json.dumps(each)}" for each in users)
    return f"{NATS_HEAD}users: [\n{lines}\n]\n"


def nats_users(text: str) -> list[dict[str, Any]]:
    """The users in such a file.

    Raises:
        InvalidSettings: it was written by somebody else.
    """
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    try:
        users = json.loads(body.removeprefix("users:"))
        if not body.startswith("users:") or not all(isinstance(each["user"], str) for each in users):
            raise ValueError
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidSettings(
            "the NATS users are not as `podhook broker user` writes them (`users: [` and one JSON object a line); "
            "keep users of your own in another file"
        ) from error
    return list(users)
