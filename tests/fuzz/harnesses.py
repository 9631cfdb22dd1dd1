"""What is fuzzed: where inputs come from, and what may become of them. Checks that a test elsewhere has are its own."""

# ruff: noqa: PT017 - an error that is allowed is looked at; one that is not passes through

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.contract.actions import Action
from agent.contract.errors import BadInput, InvalidKey, InvalidPolicy, InvalidSettings, Refusal, Unverified
from agent.contract.events import seal
from agent.contract.messages import COMMANDS, MAX_COMMAND_BYTES
from agent.contract.signing.envelope import Typ, sign, unverified, verify
from agent.contract.signing.keys import parse_signing_key, parse_trusted_keys, private_text, public_text
from agent.contract.signing.peeking import peek
from agent.coordinator import trust as coordinators
from agent.pod.identity import Identity, parse_description, parse_labels
from agent.sidecar.inbox import Command, InvalidTrigger, open_command
from agent.sidecar.policy import Asked, Policy, judge, load_policy
from agent.sidecar.policy.judge import hook_action, judge_redirect
from agent.sidecar.policy.summary import notes, summary
from agent.sidecar.trust import Trust
from tests.contract import test_durations, test_messages, test_rendering, test_selectors, test_templates
from tests.contract.samples import QUERY, SAMPLES, UID, sealed
from tests.contract.signing.keys import pair, ring
from tests.fuzz.inputs import ANY_BYTES, VALUES, WORDS, altered, as_json, damaged
from tests.sidecar.policy import test_document

PROJECT = Path(__file__).parents[2]
NOW = datetime(2026, 3, 1, 2, 30, 1, tzinfo=UTC)
IDENTITY = Identity("shop", "db-0", UID)


@dataclass(frozen=True)
class Harness:
    """`check` raises for an input that podhook answers wrongly."""

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], object]


# -- the envelope

EVENTS = {name: json.loads(sealed(message)) for name, message in SAMPLES.items()}
#: token -> what was signed. Two keys are trusted; what the third signed is no more than bytes.
SIGNED = {
    sign(payload, pair(key), Typ.COMMAND): payload
    for key in ("a", "b")
    for payload in (b"{}", b"\0" * 33, sealed(SAMPLES["go.v1"]), sealed(SAMPLES["trigger.v1-exec"]))
}
OTHERS = [sign(b"{}", pair("c"), Typ.COMMAND), sign(b"{}", pair("a"), Typ.OUTCOME)]
RING = ring("a", "b")


def only_what_was_signed(token: bytes) -> None:
    """Verified is only a token that was made, whole; whatever can be read can be read in one way."""
    try:
        said = verify(token, RING, Typ.COMMAND, limit_bytes=MAX_COMMAND_BYTES)
    except Unverified as error:
        assert len(str(error)) < 1000
    else:
        assert SIGNED[token] == said.payload
    with contextlib.suppress(Unverified):
        assert unverified(token, limit_bytes=MAX_COMMAND_BYTES) is not None


# -- commands, as an agent opens them

COMMAND_EVENTS = [EVENTS[name] for name, message in SAMPLES.items() if isinstance(message, COMMANDS)]
KEYED = Trust("shop", ring("a"), allow_unsigned=False)
TRUSTS = {"unsigned": Trust("shop", None, allow_unsigned=True), "closed": Trust("shop", None, allow_unsigned=False)}
#: As coordinators sign them: for this agent, and not for ever.
FOR_US = [
    json.loads(
        seal(
            message,
            source="/coordinators/nightly",
            time=NOW,
            event_id=QUERY,
            issuer=pair("a").kid,
            audience=f"shop/db-0/{UID}",
            expires=NOW + timedelta(minutes=10),
        )
    )
    for message in SAMPLES.values()
    if isinstance(message, COMMANDS)
]


def opens(trust: Trust, payload: bytes) -> Command | None:
    """A command, or an error that can be written down and does not repeat its input without a bound."""
    try:
        return open_command(payload, trust, IDENTITY, NOW)
    except BadInput as error:
        assert len(str(error).encode()) < 2000
        assert not isinstance(error, InvalidTrigger) or error.address.run_id
    return None


def unsigned_commands(payload: bytes) -> None:
    """Whoever trusts everybody, nobody, or only keys: no other error; and without a signature keys obey nothing."""
    opens(TRUSTS["unsigned"], payload)
    assert opens(TRUSTS["closed"], payload) is None
    assert opens(KEYED, payload) is None


def signed_commands(said: bytes) -> None:
    """Truly signed nonsense is no command, or one for this agent that a trusted key vouches for."""
    if (command := opens(KEYED, sign(said or b" ", pair("a"), Typ.COMMAND))) is not None:
        assert command.voucher.kid == pair("a").kid
        assert json.loads(said)["audience"].startswith("shop/db-0/")
        assert command.expires is not None


GOOD = [sign(as_json(event), pair("a"), Typ.COMMAND) for event in FOR_US]


def damaged_commands(payload: bytes) -> None:
    """What was changed after it was signed is obeyed by nobody who has keys."""
    assert opens(KEYED, payload) is None or payload in GOOD
    opens(TRUSTS["unsigned"], payload)


# -- what agents say, as a coordinator opens it

BELIEVER = coordinators.Trust(pair("a"), {"shop": ring("shop")})
SAID = {sign(sealed(message), pair("shop"), Typ.OUTCOME) for message in SAMPLES.values()}


def replies(payload: bytes) -> None:
    """Only what the namespace's key signed is believed, and only of that namespace."""
    for namespace in ("shop", "billing"):
        try:
            BELIEVER.open(payload, namespace)
        except BadInput:
            continue
        assert payload in SAID
        assert namespace == "shop"
    with contextlib.suppress(BadInput):
        test_messages.open_or_refuse(peek(payload))


# -- hooks and policies

GUIDE = [path.read_bytes() for path in sorted((PROJECT / "examples").glob("**/*.yaml"))]
HOOKS = [
    document
    for path in sorted((PROJECT / "examples" / "guide").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
EXAMPLE = test_document.example()
ACTIONS = [
    {"exec": {"command": ["/usr/bin/mysqladmin", "flush-tables"]}, "containerName": "mysql"},
    {"exec": {"command": ["/usr/local/bin/freeze", "--now"], "user": "root", "environment": "minimal"}},
    {
        "httpPost": {
            "host": "pod",
            "port": 8080,
            "path": "/backup/x",
            "httpHeaders": [{"name": "X-Token", "value": "1"}],
        }
    },
    {"httpGet": {"host": "169.254.169.254", "port": 80, "path": "/latest"}},
    {"tcpSocket": {"host": "10.20.0.1", "port": 3306}},
    {"tcpSocket": {"port": 3306}},
]
POLICIES = [
    yaml.safe_load(EXAMPLE),
    {
        "http": [
            {
                "hosts": ["pod", "*.db.shop", "10.0.0.0/8", "::1"],
                "ports": [80, 8080],
                "paths": ["/backup/"],
                "headers": ["X-Token"],
            }
        ],
        "tcp": [{"hosts": ["fd00::/8", "169.254.169.254"], "ports": [3306]}],
        "containers": {"mysql": {"commands": [["/bin/true"], {"command": ["/bin/x"], "users": ["0"]}]}},
        "limits": {"timeout": "1m"},
    },
]


def to_yaml(document: Any) -> str:
    return yaml.safe_dump(document, allow_unicode=True)


LOADED = [None, *(load_policy(to_yaml(each)) for each in POLICIES)]
JUDGED = [Action.model_validate(each) for each in ACTIONS]


def policies(text: str | bytes) -> None:
    """A policy, or InvalidPolicy with reasons; and a policy can be told, and says yes or no to whatever is asked."""
    test_document.reads(text)
    try:
        policy = load_policy(text)
    except InvalidPolicy:
        return
    assert all(isinstance(line, str) for line in [*summary(policy), *notes(policy)])
    for action in JUDGED:
        _judged(policy, action, "", "/backup/../x")
    for name in policy.catalogue:
        for params in ({}, {"database": "shop"}, {"database": "shop", "jobs": "2", "verbose": "true"}):
            _of_catalogue(policy, name, params)


def judges(drawn: tuple[Policy | None, Any, str, dict[str, str]]) -> None:
    """Any action and any parameters get a yes or a no."""
    policy, document, text, params = drawn
    with contextlib.suppress(ValidationError):
        _judged(policy, Action.model_validate(document), "", text)
    for name in [*(policy.catalogue if policy else ()), text]:
        _of_catalogue(policy, name, params)


def _of_catalogue(policy: Policy | None, name: str, params: dict[str, str]) -> None:
    with contextlib.suppress(Refusal):
        _judged(policy, hook_action(policy, name, params), name, "")


def _judged(policy: Policy | None, action: Action, hook: str, text: str) -> None:
    for address in ("10.9.8.7", "fd00::1", text):
        asked = Asked(action, container="mysql", port=80, hook=hook, timeout_seconds=1, pod_address=address)
        decision = judge(policy, asked)
        assert decision.rule
        assert decision.allowed or decision.refusal.message
        if action.http_get or action.http_post:
            with contextlib.suppress(Refusal):
                judge_redirect(policy, asked, "GET", 80, text)


# -- keys, and the files of a pod

KEY_FILES = [
    private_text(pair("a")).encode(),
    public_text(pair("a"), namespaces=["shop", "billing"], operator=True).encode(),
    as_json({"keys": [json.loads(public_text(pair(name))) for name in ("a", "b", "c")]}),
]
KEY_DOCUMENTS = [json.loads(text) for text in KEY_FILES]
PRIVATE = json.loads(KEY_FILES[0])["d"]


def keys(text: bytes) -> None:
    """Keys, or InvalidKey, whose sentence repeats nothing of a secret."""
    for read in (parse_signing_key, parse_trusted_keys):
        try:
            read(text, "the file")
        except InvalidKey as error:
            assert not any(PRIVATE[at : at + 12] in str(error) for at in range(len(PRIVATE) - 12))
            assert len(str(error).encode()) < 1000


DESCRIPTIONS = [
    {
        "containers": [{"name": "mysql", "ports": [{"name": "db", "containerPort": 3306}]}, {"name": "agent"}],
        "owners": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": UID, "controller": True}],
    }
]
LABELS = [b'app="db"\nrelease="a\\"b\\n\\\\"\nempty=""\n', b'podhook.dev/x="1"\n']


def pod_files(text: bytes) -> None:
    """Of either file: what it says, or InvalidSettings that names the place."""
    decoded = text.decode(errors="surrogateescape")
    for read in (parse_labels, parse_description):
        try:
            read(decoded)
        except InvalidSettings as error:
            assert str(error)


WORD_TEXT = st.lists(st.sampled_from([word.decode(errors="replace") for word in WORDS]), max_size=15).map("".join)
TEXT = st.text(max_size=100) | WORD_TEXT
PARAMS = st.fixed_dictionaries(
    {"database": st.sampled_from(["shop", "a_1", ""]) | TEXT},
    optional={
        "format": st.sampled_from(["plain", "custom"]) | TEXT,
        "jobs": st.integers(0, 9).map(str) | TEXT,
        "verbose": st.sampled_from(["true", "false"]) | TEXT,
    },
) | st.dictionaries(st.sampled_from(["database", "x"]), TEXT, max_size=2)
SELECTOR_WORDS = ("a", "bb", "x/y", "=", "==", "!=", "in", "notin", "(", ")", ",", "!", "exists", "-1", "_")
SELECTORS = TEXT | st.lists(st.sampled_from(SELECTOR_WORDS), max_size=20).map(" ".join)
DURATION_WORDS = ("0", "1", "12.5", ".5", "h", "m", "s", "ms", "us", "µs", "ns", "-", "+", "1e9", "999999999999")
DURATION_PARTS = ("1h", "30m", "1.5s", "07ms", "0", "0s", ".5us", "9999999999h", "1m", *DURATION_WORDS)
DURATIONS = TEXT | st.lists(st.sampled_from(DURATION_PARTS), max_size=4).map("".join)


def inner(test: Callable[..., None]) -> Callable[..., object]:
    """The body of a property test: what it claims is claimed here, of other inputs and more of them."""
    body: Callable[..., object] = test.hypothesis.inner_test  # type: ignore[attr-defined]
    return lambda drawn: body(*drawn) if isinstance(drawn, tuple) else body(drawn)


def _damaged_json(documents: list[Any]) -> st.SearchStrategy[bytes]:
    """Any bytes, documents changed in what they say, and documents changed as text."""
    return ANY_BYTES | altered(documents).map(as_json) | damaged([as_json(each) for each in documents])


HARNESSES = (
    Harness("envelope", ANY_BYTES | damaged([*SIGNED, *OTHERS]) | st.sampled_from(list(SIGNED)), only_what_was_signed),
    Harness("messages", _damaged_json(list(EVENTS.values())), test_messages.open_or_refuse),
    Harness("commands-unsigned", _damaged_json(COMMAND_EVENTS), unsigned_commands),
    Harness("commands-signed", _damaged_json(FOR_US), signed_commands),
    Harness("commands-damaged", damaged([*GOOD, *OTHERS]), damaged_commands),
    Harness("replies", ANY_BYTES | damaged(sorted(SAID)) | st.sampled_from(sorted(SAID)), replies),
    Harness("hooks", ANY_BYTES | damaged(GUIDE) | altered(HOOKS).map(to_yaml), test_templates.load_or_explain),
    Harness("policy", ANY_BYTES | damaged([EXAMPLE.encode()]) | altered(POLICIES).map(to_yaml), policies),
    Harness(
        "judge",
        st.tuples(
            st.sampled_from(LOADED),
            altered(ACTIONS) | st.sampled_from(ACTIONS),
            TEXT,
            PARAMS,
        ),
        judges,
    ),
    Harness("keys", _damaged_json(KEY_DOCUMENTS), keys),
    Harness(
        "pod-files",
        ANY_BYTES | damaged([*LABELS, as_json(DESCRIPTIONS[0])]) | altered(DESCRIPTIONS).map(as_json),
        pod_files,
    ),
    Harness(
        "templates",
        st.tuples(
            test_rendering.templates | WORD_TEXT,
            st.dictionaries(st.sampled_from(["X", "Status", "é"]), VALUES | test_rendering.plain),
        ),
        inner(test_rendering.test_no_text_and_no_data_raise_anything_but_render_error),
    ),
    Harness("durations", DURATIONS, inner(test_durations.test_any_text_is_seconds_or_bad_input_with_a_short_message)),
    Harness(
        "selectors",
        st.tuples(SELECTORS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)),
        inner(test_selectors.test_any_text_is_a_selector_or_bad_input),
    ),
)
BY_NAME = {each.name: each for each in HARNESSES}
