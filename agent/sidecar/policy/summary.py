"""What a policy amounts to, and what in it deserves a second look; for `podhook policy check`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from agent.actions.addresses import SPECIAL, forms
from agent.contract.durations import format_duration
from agent.sidecar.policy.document import CommandRule, Policy

#: Variables by which whoever sets them chooses what a program loads or runs.
_CODE_VARIABLES = re.compile(
    r"PATH|IFS|ENV|BASH_ENV|SHELLOPTS|HOME|EDITOR|PAGER|LESSOPEN|(LD|DYLD|BASH_FUNC|GIT|PYTHON|PERL5?|RUBY|NODE|JAVA)_?.*",
    re.DOTALL,
)


def summary(policy: Policy) -> Iterator[str]:
    """One line a rule."""
    document = policy.document
    yield f"actions in triggers: {'allowed by the rules below' if document.inline else 'refused'}"
    for container, rules in document.containers.items():
        for index, rule in enumerate(rules.commands):
            yield f"containers.{container}.commands[{index}]: {shlex.join(rule.command)}{_beside(rule)}"
    for place in policy.http:
        assert place.http is not None
        below = f", below {', '.join(place.http.paths)}" if place.http.paths else ""
        methods, headers = "/".join(place.http.methods), ", ".join(place.http.headers)
        also = f", headers {headers}" if headers else ""
        yield f"{place.name}: {methods} to {_where(place.http.hosts, place.http.ports)}{below}{also}"
    for place, tcp in zip(policy.tcp, document.tcp, strict=True):
        yield f"{place.name}: connections to {_where(tcp.hosts, tcp.ports)}"
    for name, entry in document.catalogue.items():
        takes = "; ".join(
            f"{param_name}: {param.expects()}"
            + (", required" if param.text_default is None else f", default {param.text_default!r}")
            for param_name, param in entry.params.items()
        )
        yield f"catalogue.{name}: {entry.action.kind}" + (f" ({takes})" if takes else "")
    if limits := list(_limits(policy)):
        yield f"limits: {', '.join(limits)}"


def notes(policy: Policy) -> Iterator[str]:
    """What may be another thing than its author meant; none of it is an error."""
    document = policy.document
    rules = bool(document.containers or document.http or document.tcp)
    if not document.catalogue and not (document.inline and rules):
        yield "it allows nothing at all"
    elif not document.inline and rules:
        yield "inline is false, so the rules of containers, http and tcp are never asked"
    for container, of_container in document.containers.items():
        for index, rule in enumerate(of_container.commands):
            name = f"containers.{container}.commands[{index}]"
            if not rule.command[0].startswith("/"):
                yield f"{name}: {rule.command[0]!r} is looked up in the container's PATH; a full path is not"
            if risky := [each for each in rule.env if _CODE_VARIABLES.fullmatch(each)]:
                yield f"{name}: whoever sets {', '.join(risky)} can choose what the program runs"
    for place in (*policy.http, *policy.tcp):
        for network in place.hosts.networks:
            for block, what in SPECIAL:
                if any(form in block for form in forms(network.network_address)) and network.num_addresses <= (
                    block.num_addresses
                ):
                    yield f"{place.name}: {network} is opened by name: {what}"


def _where(hosts: list[str], ports: list[int]) -> str:
    return f"{', '.join(hosts)}, port {', '.join(map(str, ports))}"


def _beside(rule: CommandRule) -> str:
    said = [f"as {', '.join(rule.users)}"] if rule.users else []
    said += [f"with {', '.join(rule.env)}"] if rule.env else []
    said += ["in a minimal environment"] if "minimal" in rule.environment else []
    return f" (also {'; '.join(said)})" if said else ""


def _limits(policy: Policy) -> Iterator[str]:
    limits = policy.limits
    if policy.timeout_seconds is not None:
        yield f"timeout {format_duration(policy.timeout_seconds)}"
    if limits.output_bytes is not None:
        yield f"{limits.output_bytes} bytes of each stream"
    if limits.concurrency is not None:
        yield f"{limits.concurrency} at once"
