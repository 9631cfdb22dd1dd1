"""Two namespaces on a broker as it is shipped: neither hears the other, speaks as the other, or takes its session."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from agent.bus.broker import Broker
from agent.contract.topics import Topics
from tests.broker.raw import NotLetIn, Raw
from tests.broker.shipped import Shipped
from tests.brokers import poll

pytestmark = pytest.mark.broker

TOPICS = Topics()
POD = "db-0"
COMMANDS = {each: TOPICS.commands(each, POD) for each in ("shop", "billing")}
PRESENCE = {each: TOPICS.presence(each, POD) for each in ("shop", "billing")}
RUN = "01920000-0000-7000-8000-000000000000"
NIGHTLY, MONTHLY = "coordinator_nightly", "coordinator_monthly"

#: Every way to ask for what is somebody else's.
FILTERS = (
    COMMANDS["shop"],
    PRESENCE["shop"],
    "#",
    "+/#",
    "podhook/#",
    "podhook/v1/agents/#",
    "podhook/v1/agents/shop/+/commands",
    "podhook/v1/agents/+/+/commands",
    "podhook/v1/agents/+/db-0/presence",
    "podhook/v1/runs/#",
    f"podhook/v1/runs/{NIGHTLY}/#",
    f"podhook/v1/runs/+/+/shop/{POD}",
    "$share/thieves/podhook/v1/agents/shop/+/commands",
    "$SYS/#",
    "$MQTT/#",
    "$JS/#",
    "$JS/API/#",
    "_INBOX/#",
)


def agent(raw: type[Raw], namespace: str) -> Raw:
    """What an agent subscribes to."""
    made = raw(namespace)
    assert made.subscribe(COMMANDS[namespace], PRESENCE[namespace]) == [1, 1]
    return made


def coordinator(raw: type[Raw], user: str) -> Raw:
    """What a coordinator subscribes to."""
    made = raw(user)
    assert made.subscribe(TOPICS.presences(), TOPICS.replies(user)) == [1, 1]
    return made


def word() -> bytes:
    """A payload that nobody else says."""
    return uuid.uuid4().hex.encode()


def test_everything_that_podhook_needs_is_allowed(raw):
    shop, nightly = agent(raw, "shop"), coordinator(raw, NIGHTLY)
    command, presence, reply = word(), word(), word()
    assert nightly.publish(COMMANDS["shop"], command) < 0x80
    assert shop.heard(command)
    assert shop.publish(PRESENCE["shop"], presence, retain=True) < 0x80
    assert shop.heard(presence)
    assert nightly.heard(presence)
    assert shop.publish(TOPICS.reply(NIGHTLY, RUN, "shop", POD), reply) < 0x80
    assert nightly.heard(reply)
    late = coordinator(raw, MONTHLY)
    assert late.heard(presence), "presence is retained, and everybody's who coordinates"
    assert shop.publish(PRESENCE["shop"], b"", retain=True) < 0x80


def test_the_will_of_an_agent_is_said(raw):
    will = word()
    nightly = coordinator(raw, NIGHTLY)
    raw("shop", will=(PRESENCE["shop"], will)).vanish()
    assert nightly.heard(will)
    agent(raw, "shop").publish(PRESENCE["shop"], b"", retain=True)


@pytest.mark.parametrize("thief", ["billing", MONTHLY])
def test_no_filter_gives_a_namespace_what_is_anothers(raw, thief):
    shop, nightly = agent(raw, "shop"), coordinator(raw, NIGHTLY)
    retained, live, reply, mark = word(), word(), word(), word()
    nightly.publish(COMMANDS["shop"], retained, retain=True)
    spy = raw(thief)
    spy.subscribe(*FILTERS)
    own = "billing" if thief == "billing" else MONTHLY
    nightly.publish(COMMANDS["shop"], live)
    assert shop.heard(live)
    shop.publish(TOPICS.reply(NIGHTLY, RUN, "shop", POD), reply)
    assert nightly.heard(reply)
    # What comes last, on a topic that the thief may read, says that nothing else is on its way.
    if own == "billing":
        spy.subscribe(COMMANDS["billing"])
        assert raw("coordinator_monthly").publish(COMMANDS["billing"], mark) < 0x80
    else:
        spy.subscribe(TOPICS.replies(MONTHLY))
        assert raw("billing").publish(TOPICS.reply(MONTHLY, RUN, "billing", POD), mark) < 0x80
    assert spy.heard(mark)
    nightly.publish(COMMANDS["shop"], b"", retain=True)
    allowed = "/presence" if thief == MONTHLY else "billing"
    stolen = [(topic, body) for topic, body, _ in spy.messages if body != mark and allowed not in topic]
    assert stolen == []


#: (who, where, why not): publishing there would be a forgery.
FORGERIES = [
    ("billing", COMMANDS["shop"], "another namespace's agent is commanded"),
    ("billing", PRESENCE["shop"], "another namespace's presence is forged"),
    ("billing", TOPICS.reply(NIGHTLY, RUN, "shop", POD), "another namespace's outcome is forged"),
    ("billing", COMMANDS["billing"], "an agent commands its own namespace"),
    ("shop", COMMANDS["shop"], "an agent commands itself"),
    ("coordinator_monthly", COMMANDS["shop"], "a coordinator commands what it was not given"),
    ("coordinator_monthly", PRESENCE["shop"], "a coordinator forges presence"),
    ("coordinator_monthly", PRESENCE["billing"], "a coordinator forges presence where it commands"),
    ("coordinator_monthly", TOPICS.reply(NIGHTLY, RUN, "shop", POD), "a coordinator forges an outcome for another"),
    ("coordinator_monthly", TOPICS.reply(MONTHLY, RUN, "billing", POD), "a coordinator forges an outcome for itself"),
]


@pytest.mark.parametrize("retain", [False, True], ids=["", "retained"])
@pytest.mark.parametrize(("forger", "topic", "why"), FORGERIES, ids=[each[2] for each in FORGERIES])
def test_nobody_speaks_as_somebody_else(way, raw, forger, topic, why, retain):
    _, protocol = way
    ears = [agent(raw, "shop"), agent(raw, "billing"), coordinator(raw, NIGHTLY), coordinator(raw, MONTHLY)]
    forged, will = word(), word()
    bad = raw(forger)
    answer = bad.publish(topic, forged, retain=retain)
    bad.publish(topic, forged, qos=0, retain=retain)
    if protocol == "5":
        assert answer == 0x87, "not authorized"
    raw(forger, will=(topic, will)).vanish()  # let in, but the will is not said
    _said_after(raw, ears)
    for each in [*ears, *_latecomers(raw)]:
        bodies = [body for _, body, _ in each.messages]
        assert forged not in bodies, why
        assert will not in bodies, f"{why}, by a will"


def _said_after(raw: type[Raw], ears: list[Raw]) -> None:
    """Everybody hears something good that was said later: what did not come before it does not come."""
    everywhere, mark = raw("coordinator_everywhere"), word()
    for namespace in ("shop", "billing"):
        assert everywhere.publish(COMMANDS[namespace], mark) < 0x80
    for user, reader in (("shop", NIGHTLY), ("billing", MONTHLY)):
        assert raw(user).publish(TOPICS.reply(reader, RUN, user, POD), mark) < 0x80
    for each in ears:
        assert each.heard(mark)


def _latecomers(raw: type[Raw]) -> list[Raw]:
    """Those who come now get what is retained."""
    late = [agent(raw, "shop"), agent(raw, "billing"), coordinator(raw, NIGHTLY), coordinator(raw, MONTHLY)]
    _said_after(raw, late)
    return late


def test_what_waits_for_an_agent_is_not_lost_to_whoever_claims_its_name(way, raw):
    """The pod's name and everything else that can be read do not name its session: the suffix is the agent's secret."""
    secret = f"shop_{POD}_{uuid.uuid4().hex[:12]}"
    queued = word()
    shop = raw("shop", secret, session=True)
    shop.subscribe(COMMANDS["shop"])
    shop.end()
    raw(NIGHTLY).publish(COMMANDS["shop"], queued)
    for guess in (f"shop_{POD}", f"shop_{POD}_", "shop", POD, f"shop/{POD}"):
        try:
            thief = raw("billing", guess, session=True)
        except NotLetIn:
            continue
        thief.subscribe(COMMANDS["shop"])
    assert raw("shop", secret, session=True).heard(queued)
    raw("shop", secret)  # a clean start: the session is gone


def test_a_coordinator_may_clear_presence_only_if_it_was_told_so(raw):
    shop, said = agent(raw, "shop"), word()
    shop.publish(PRESENCE["shop"], said, retain=True)
    assert shop.heard(said)
    assert raw("coordinator_everywhere").publish(PRESENCE["shop"], b"", retain=True) < 0x80
    poll(lambda: (PRESENCE["shop"], b"", False) in shop.messages, "the presence is cleared")


# -- outsiders


def test_an_outsider_is_not_let_in(way):
    broker, protocol = way
    for user, password in (("shop", "wrong"), ("shop", ""), ("nobody", "x"), ("nobody_", ""), ("", "")):
        outsider = _with(broker, user, password, protocol)
        with pytest.raises(NotLetIn):
            Raw(outsider)


def _with(broker: Shipped, user: str, password: str, protocol: str) -> Broker:
    known = broker.as_user("shop", protocol)
    return replace(known, user=user or None, password=password or None, user_file=None, password_file=None)


def test_without_tls_nobody_gets_a_word(way):
    broker, protocol = way
    with pytest.raises((NotLetIn, AssertionError)):
        Raw(replace(broker.as_user("shop", protocol), tls=False))


def test_whoever_knows_the_name_of_a_session_reads_nothing_there(way, raw):
    """With passwords he takes it (docs/brokers.md says so); what waits and what comes is still not his to read."""
    known = f"shop_{POD}_{uuid.uuid4().hex[:12]}"
    queued, live, mark = word(), word(), word()
    shop = raw("shop", known, session=True)
    shop.subscribe(COMMANDS["shop"])
    shop.end()
    raw(NIGHTLY).publish(COMMANDS["shop"], queued)
    thief = raw("billing", known, session=True)
    raw(NIGHTLY).publish(COMMANDS["shop"], live)
    thief.subscribe(COMMANDS["billing"])
    raw(MONTHLY).publish(COMMANDS["billing"], mark)
    assert thief.heard(mark)
    bodies = [body for _, body, _ in thief.messages]
    thief.end()
    raw("billing", known)
    assert live not in bodies
    assert queued not in bodies
