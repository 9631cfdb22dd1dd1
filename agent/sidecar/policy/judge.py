"""Yes or no, and which rule says so. A function of values: policy, action, container, address of the pod."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from agent.actions.addresses import NO_POLICY, Reach, meant
from agent.contract.actions import Action, ExecAction, HttpGetAction, HttpPostAction
from agent.contract.durations import format_duration
from agent.contract.errors import ErrorCode, Refusal
from agent.sidecar.policy.document import CommandRule, HttpRule, PlaceRule, Policy
from agent.sidecar.policy.hosts import Aim, Hosts

#: Headers that say what is sent or wanted, or who asks; any other - Host above all - a rule has to list.
PLAIN_HEADERS = frozenset(
    {"accept", "accept-charset", "accept-encoding", "accept-language", "authorization", "content-type", "user-agent"}
)
POD_ITSELF = "the pod itself"
#: A refusal names the nearest of so many rules: it must cost no more than the rules themselves.
MAX_COMPARED = 20
_SEGMENT_PARAMS = re.compile(r";.*")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for. `container` and `port` are resolved; `hook` is the catalogue's, if it came from there."""

    action: Action
    container: str = ""
    port: int = 0
    hook: str = ""
    timeout_seconds: float = 0
    pod_address: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request: the action's own, or what a redirect asks for. `path` may be escaped and have a query."""

    method: str
    host: str
    port: int
    path: str
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` allowed it; or, with a `refusal`, the rule or section that did not."""

    rule: str
    refusal: Refusal | None = None
    reach: Reach = field(default_factory=Reach)

    @property
    def allowed(self) -> bool:
        """Whether it may run."""
        return self.refusal is None


def judge(policy: Policy | None, asked: Asked) -> Decision:
    """Whether an action may run here. Without a policy everything may, but for the special addresses."""
    if policy is None:
        return _literal(asked, Decision(NO_POLICY))
    if policy.timeout_seconds is not None and asked.timeout_seconds > policy.timeout_seconds:
        wanted, limit = format_duration(asked.timeout_seconds), format_duration(policy.timeout_seconds)
        return _no("limits.timeout", f"the timeout of {wanted} is above it ({limit}); ask for at most {limit}")
    if asked.hook:
        return _of_catalogue(policy, asked)
    if not policy.document.inline:
        names = ", ".join(list(policy.catalogue)[:20]) or "none"
        return _no("inline", f"is false: actions of triggers are not run here, only hooks of the catalogue ({names})")
    action = asked.action
    if action.exec_ is not None:
        return _command(policy, action.exec_, asked.container)
    if action.tcp_socket is not None:
        return _literal(asked, _tcp(policy, action.tcp_socket.host, asked.port, asked.pod_address))
    request = action.http_get or action.http_post
    assert request is not None
    return _literal(asked, judge_request(policy, request_of(request, asked.port), asked.pod_address))


def request_of(action: HttpGetAction, port: int) -> Request:
    """The request that an action makes."""
    method = "POST" if isinstance(action, HttpPostAction) else "GET"
    return Request(method, action.host, port, action.path, tuple(each.name for each in action.http_headers))


def judge_redirect(policy: Policy | None, asked: Asked, method: str, port: int, path: str) -> Reach:
    """What a redirect within the host asks for: where that may connect.

    Raises:
        Refusal: no rule allows it.
    """
    original = asked.action.http_get or asked.action.http_post
    assert original is not None
    if policy is None:
        return Reach()
    if asked.hook:
        if port != asked.port:
            rule = f"catalogue.{asked.hook}"
            message = f"policy: {rule} allows port {asked.port} only, and a redirect leads to port {port}"
            raise Refusal(ErrorCode.POLICY_DENIED, message, rule)
        return _of_catalogue(policy, asked).reach
    headers = tuple(each.name for each in original.http_headers)
    decision = judge_request(policy, Request(method, original.host, port, path, headers), asked.pod_address)
    if decision.refusal is not None:
        raise decision.refusal
    return decision.reach


def _no(rule: str, why: str) -> Decision:
    return Decision(rule, Refusal(ErrorCode.POLICY_DENIED, f"policy: {rule}: {why}", rule))


def _literal(asked: Asked, decision: Decision) -> Decision:
    """Refuse an address that is written in the action at once; whatever is only known later the socket refuses."""
    if decision.refusal is not None:
        return decision
    part = asked.action.tcp_socket or asked.action.http_get or asked.action.http_post
    address = meant(part.host or asked.pod_address) if part is not None else None
    why = decision.reach.refusal(str(address)) if address is not None else None
    if why is None:
        return decision
    message = f"no connection is made to {part.host or asked.pod_address if part else ''}: {why}"
    return Decision(decision.rule, Refusal(ErrorCode.ADDRESS_REFUSED, message[:2000], decision.rule))


# -- exec


def _command(policy: Policy, wanted: ExecAction, container: str) -> Decision:
    section = f"containers.{container}.commands"
    of_container = policy.commands.get(container)
    if of_container is None:
        names = ", ".join(policy.commands) or "none"
        return _no("containers", f"no rule is for container {container!r} (has: {names}); add {section}")
    found = of_container.get(tuple(wanted.command))
    if found is None:
        return _no(section, _nearest_command(policy, container, wanted.command))
    reasons = []
    for name, rule in found:
        why = _why_not_so(rule, wanted)
        if why is None:
            return Decision(name)
        reasons.append((name, why))
    return _no(*reasons[0])


def _why_not_so(rule: CommandRule, wanted: ExecAction) -> str | None:
    """What an action asks beside the command can make another one of it: LD_PRELOAD, PATH, root."""
    if wanted.user is not None and wanted.user not in rule.users:
        return (
            f"does not allow exec.user {wanted.user!r} (users: {', '.join(rule.users) or 'none'}); add it to its users"
        )
    allowed = set(rule.env)
    for variable in wanted.env or []:
        if variable.name not in allowed:
            names = ", ".join(rule.env) or "none"
            return f"does not allow variable {variable.name[:60]!r} in exec.env (env: {names}); add it to its env"
    if wanted.environment not in rule.environment:
        has = ", ".join(rule.environment)
        return f"does not allow exec.environment {wanted.environment} (environment: {has}); add it to its environment"
    return None


def _nearest_command(policy: Policy, container: str, command: list[str]) -> str:
    """Why no rule has this argv; of it only the program is named, since arguments may be secrets."""
    rules = policy.document.containers[container].commands
    program = f"{command[0][:200]!r} with {len(command) - 1} arguments"
    every = ((at, rule.command) for at, rule in enumerate(rules) if rule.command[0] == command[0])
    same = list(itertools.islice(every, MAX_COMPARED))
    if not same:
        return f"none of its {len(rules)} rules is for {program}; add this exact command, or a catalogue hook"

    def agreeing(argv: list[str]) -> int:
        return next((at for at, (a, b) in enumerate(zip(argv, command, strict=False)) if a != b), len(argv))

    at, argv = max(same, key=lambda pair: agreeing(pair[1]))
    first = min(agreeing(argv), len(argv), len(command))
    return (
        f"none of its {len(rules)} rules is exactly this command ({program}); the nearest is {at}, which differs from "
        f"element {first} on; add this exact command, or a catalogue hook if a part of it varies"
    )


# -- http and tcp


def _tcp(policy: Policy, host: str, port: int, pod_address: str) -> Decision:
    aim = Aim.at(host, pod_address)
    for rule in policy.tcp:
        if port in rule.ports and (reach := rule.hosts.reach(aim, rule.name)) is not None:
            return Decision(rule.name, reach=reach)
    what = f"a connection to {host or POD_ITSELF}, port {port}"
    return _no("tcp", _nearest_place(what, ((rule, _missing(rule, host, aim, port)) for rule in policy.tcp)))


def judge_request(policy: Policy, request: Request, pod_address: str) -> Decision:
    """Whether a request may be made by an `http` rule."""
    aim = Aim.at(request.host, pod_address)
    for rule in policy.http:
        if request.port not in rule.ports or (reach := rule.hosts.reach(aim, rule.name)) is None:
            continue
        assert rule.http is not None
        if not _missing_of_request(rule.http, request):
            return Decision(rule.name, reach=reach)
    what = f"{request.method} to {request.host or POD_ITSELF}, port {request.port}"
    lacking = (
        (rule, _missing(rule, request.host, aim, request.port) + _missing_of_request(rule.http, request))
        for rule in policy.http
        if rule.http is not None
    )
    return _no("http", _nearest_place(what, lacking))


def _missing(rule: PlaceRule, host: str, aim: Aim, port: int) -> list[str]:
    missing = [] if rule.hosts.reach(aim, rule.name) is not None else [f"host {host!r}" if host else "host pod"]
    return missing + ([] if port in rule.ports else [f"port {port}"])


def _nearest_place(what: str, lacking: Iterable[tuple[PlaceRule, list[str]]]) -> str:
    """The sentence of a refusal: of the first rules the one that lacks least, for whoever wants to add it."""
    some = list(itertools.islice(lacking, MAX_COMPARED))
    if not some:
        return f"no rule allows {what}: there are none; add one"
    rule, missing = min(some, key=lambda pair: len(pair[1]))
    return f"no rule allows {what}; nearest is {rule.name}, which lacks {' and '.join(missing)}; add it to a rule"


def _missing_of_request(rule: HttpRule, request: Request) -> list[str]:
    missing = []
    if request.method not in rule.methods:
        missing.append(f"method {request.method}")
    if rule.paths is not None and not any(_is_below(request.path, prefix) for prefix in rule.paths):
        missing.append(f"this path (paths: {', '.join(rule.paths[:8])})")
    listed = {name.lower() for name in rule.headers} | PLAIN_HEADERS
    missing += [f"header {name[:60]}" for name in dict.fromkeys(request.headers) if name.lower() not in listed]
    return missing


def _is_below(path: str, prefix: str) -> bool:
    """Whether a path lies below a prefix, for every server: whatever they read differently lies nowhere.

    Dot segments (`..;` too, which some servers take for one), escaped slashes and escapes of escapes are that.
    """
    raw = path.partition("#")[0].partition("?")[0]
    raw = raw if raw.startswith("/") else f"/{raw}"
    lowered = raw.lower()
    if any(each in lowered for each in ("%2f", "%5c", "%25", "%00", "\\")):
        return False
    decoded = unquote(raw)
    if any(_SEGMENT_PARAMS.sub("", segment) in {".", ".."} for segment in decoded.split("/")):
        return False
    return decoded == prefix or decoded.startswith(prefix if prefix.endswith("/") else f"{prefix}/")


# -- the catalogue


def _of_catalogue(policy: Policy, asked: Asked) -> Decision:
    """The hook was written by the policy's author, host and all: it is its own rule."""
    rule = f"catalogue.{asked.hook}"
    if asked.hook not in policy.catalogue:
        return Decision("catalogue", unknown_hook(policy, asked.hook))
    part = asked.action.tcp_socket or asked.action.http_get or asked.action.http_post
    if part is None:
        return Decision(rule)
    reach = Hosts.just(part.host).reach(Aim.at(part.host, asked.pod_address), rule)
    return Decision(rule, reach=reach or Reach(others=False, rule=rule))


def hook_action(policy: Policy | None, name: str, params: Mapping[str, str]) -> Action:
    """The action of a hook of the catalogue with these parameters.

    Raises:
        Refusal: no such hook, or parameters that it does not take.
    """
    hook = policy.catalogue.get(name) if policy is not None else None
    if hook is None:
        raise unknown_hook(policy, name)
    return hook.fill(params)


def unknown_hook(policy: Policy | None, name: str) -> Refusal:
    """The refusal of a hook that the catalogue does not have."""
    if policy is None:
        message = f"this agent has no catalogue, so no hook {name!r}; send the action in the trigger"
    else:
        names = ", ".join(list(policy.catalogue)[:50]) or "none"
        message = f"policy: catalogue: has no hook {name!r} (has: {names}); name one of them"
    return Refusal(ErrorCode.UNKNOWN_HOOK, message, NO_POLICY if policy is None else "catalogue")
