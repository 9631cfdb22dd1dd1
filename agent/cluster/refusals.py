"""The API server's no: what was asked, why not, and the right that is missing, ready to paste. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.cluster.resources import Resource
from agent.cluster.session import Answer
from agent.cluster.words import EXCERPT_CHARACTERS, Words, excerpt
from agent.contract.errors import ClusterConflict, ClusterError, ClusterNotFound, ClusterRefused, ClusterUnavailable

#: Answers that another try may change (Kubernetes API conventions, "HTTP Status codes").
TRANSIENT = frozenset({429, 500, 502, 503, 504})
#: What an object that is not valid has wrong with it needs more words than other refusals.
_REASONS_CHARACTERS = 2048
#: A Status is some hundred bytes; a proxy's page may be anything.
_MAX_STATUS_BYTES = 64 * 1024
_RBAC = "rbac.authorization.k8s.io"


class _Status(BaseModel):
    """The API server's no (meta/v1 Status)."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    message: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, in RBAC's words. `namespace` None means all of them, "" that the resource has none."""

    verb: str
    resource: Resource
    namespace: str | None
    name: str = ""
    subresource: str = ""

    @property
    def rights(self) -> str:
        """The resource as a rule names it."""
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural

    @property
    def thing(self) -> str:
        """What is asked about."""
        if self.name:
            place = f"{self.namespace}/" if self.resource.namespaced and self.namespace else ""
            return f"{self.resource} {place}{self.name}"
        if not self.resource.namespaced:
            return f"{self.resource}"
        return f"{self.resource} in " + (f"namespace {self.namespace}" if self.namespace else "all namespaces")

    def __str__(self) -> str:
        return f"{self.verb} {f'the {self.subresource} of ' if self.subresource else ''}{self.thing}"


def said(answer: Answer, characters: int = EXCERPT_CHARACTERS) -> str:
    """`(403: its reason)`, or the status alone where it gives no reason that could be read."""
    message = excerpt(reason(answer), characters)
    return f"({answer.status}{': ' if message else ''}{message})"


def reason(answer: Answer) -> str:
    """The message of the API server's Status, or "" for whatever else it is (a proxy's page)."""
    try:
        return _Status.model_validate_json(answer.body[:_MAX_STATUS_BYTES]).message
    except ValidationError:
        return ""


def retry_after(answer: Answer) -> int:
    """The seconds that it asks to wait for; 0 where it names none, or a date (clocks differ)."""
    return int(answer.retry_after) if re.fullmatch("[0-9]{1,9}", answer.retry_after) else 0


def unavailable(answer: Answer, server: str) -> ClusterUnavailable:
    """An answer of TRANSIENT."""
    return ClusterUnavailable(
        f"{server} cannot answer now {said(answer)}", retry_after_seconds=retry_after(answer), status=answer.status
    )


def unknown_caller(answer: Answer, server: str, words: Words) -> ClusterRefused:
    """A 401."""
    return ClusterRefused(
        f"{server} does not accept {words.who}'s credentials {said(answer)}; check that the pod's service account "
        "still exists, or log in again if there is a kubeconfig",
        status=answer.status,
    )


def user_of(message: str) -> str:
    """Who is not let in, as RBAC's message names them, or ""."""
    named = re.search(r'User "([^"]+)"', message)
    return named[1] if named else ""


def refusal(answer: Answer, question: Question, server: str, words: Words, namespace: str) -> ClusterError:
    """The error that says the API server's no to `question`. `namespace` is the asker's own."""
    status = answer.status
    if status in TRANSIENT:
        return unavailable(answer, server)
    match status:
        case 401:
            return unknown_caller(answer, server, words)
        case 403:
            return _forbidden(answer, question, server, words, namespace)
        case 404:
            return ClusterNotFound(f"{server} has no {question.thing} {said(answer)}", status=status)
        case 409:
            return ClusterConflict(f"{server} could not {question} {said(answer)}", status=status)
        case _:
            detail = said(answer, _REASONS_CHARACTERS)
            return ClusterRefused(f"{server} answered the question to {question} with a no {detail}", status=status)


def _forbidden(answer: Answer, question: Question, server: str, words: Words, namespace: str) -> ClusterRefused:
    message = reason(answer)
    user = user_of(message)
    if message and not user:  # a quota, an admission webhook, Pod Security: no right would help
        detail = said(answer, _REASONS_CHARACTERS)
        return ClusterRefused(
            f"{server} does not let {words.who} {question} {detail}; it is not RBAC that says so: look at the "
            "namespace's quotas, Pod Security level and admission webhooks",
            status=answer.status,
        )
    rule = rule_for(question, user or f"system:serviceaccount:{namespace}:default")
    return ClusterRefused(
        f"{server} does not let {user or words.who} {question} {said(answer)}; whoever administers the cluster allows "
        f"it with `kubectl apply -f -` and this:\n{rule}",
        status=answer.status,
        rule=rule,
    )


def rule_for(question: Question, user: str) -> str:
    """The Role and RoleBinding (cluster-wide where no one namespace is asked about) that allow it, as YAML.

    Each right has names of its own, so that one does not overwrite another.
    """
    resource, wide = question.resource, not (question.resource.namespaced and question.namespace)
    # A watch begins with a list; names can be given where no other object of the kind is asked about.
    verbs = ["list", "watch"] if question.verb == "watch" else [question.verb]
    rule: dict[str, Any] = {"apiGroups": [resource.group], "resources": [question.rights]}
    only = [question.name] if question.name and question.verb == "get" and not question.subresource else []
    if only:
        rule["resourceNames"] = only
    rule["verbs"] = verbs
    role = "-".join(["podhook", question.verb, _plain(question.rights), *(_plain(name) for name in only)])
    subject = _subject(user)
    binding = f"{role}-{_plain(user.removeprefix('system:serviceaccount:'))}"
    place = {} if wide else {"namespace": question.namespace}
    prefix = "Cluster" if wide else ""
    documents = [
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": f"{prefix}Role",
            "metadata": {"name": role, **place},
            "rules": [rule],
        },
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": f"{prefix}RoleBinding",
            "metadata": {"name": binding, **place},
            "roleRef": {"apiGroup": _RBAC, "kind": f"{prefix}Role", "name": role},
            "subjects": [subject],
        },
    ]
    return "---\n".join(yaml.safe_dump(each, sort_keys=False, default_flow_style=False) for each in documents)


def _subject(user: str) -> dict[str, str]:
    account = re.fullmatch("system:serviceaccount:([^:]+):([^:]+)", user)
    if account:
        return {"kind": "ServiceAccount", "name": account[2], "namespace": account[1]}
    return {"kind": "User", "apiGroup": _RBAC, "name": user}


def _plain(name: str) -> str:
    """A name as a part of another: lower case, at most 63 characters."""
    return re.sub("[^a-z0-9.]+", "-", name.lower()).strip("-.")[:63].rstrip("-.")
