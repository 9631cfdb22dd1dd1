"""Presence: what stands on the agent's topic is kept true against wills, successors and late goodbyes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.bus.types import Delivery, Publication
from agent.contract.errors import InvalidSettings, LinkDown, PublishRefused
from agent.contract.events import Kinds, open_event, seal
from agent.contract.messages import Owner, Presence
from agent.contract.signing.keys import private_text
from agent.contract.signing.peeking import peek
from agent.contract.topics import Topics
from agent.pod.identity import Identity, parse_labels
from agent.sidecar import presence as presence_module
from agent.sidecar.presence import PresenceFacts, PresenceKeeper
from agent.sidecar.trust import Signature
from tests.contract.samples import SAMPLES, sealed
from tests.contract.signing.keys import pair
from tests.strays import until

UID = "6f1c3c52-7a5b-4a3f-9d52-0c9f4f6f9a01"
LOWER_UID, HIGHER_UID = "00000000-7a5b-4a3f-9d52-0c9f4f6f9a01", "ffffffff-7a5b-4a3f-9d52-0c9f4f6f9a01"
NOW = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
BORN = NOW - timedelta(days=1)
TOPIC = "podhook/v1/agents/shop/db-0/presence"


@pytest.fixture
async def keeper() -> PresenceKeeper:
    facts = PresenceFacts(
        labels={"app": "db"},
        containers=["mysql", "agent"],
        owners=[Owner(api_version="apps/v1", kind="StatefulSet", name="db")],
        problems={"journal": "the disk is full"},
    )
    identity = Identity("shop", "db-0", UID)
    return keeper_of(identity, facts)


def keeper_of(identity, facts):
    return PresenceKeeper(
        identity,
        Topics(),
        facts,
        unsigned=True,
        born_at=lambda: BORN,
        now=lambda: NOW,
        signature=Signature(),
    )


def said(
    uid: str = UID,
    state: str = "online",
    *,
    born: datetime = BORN,
    retain: bool = False,
    clock: datetime = NOW,
    time: datetime = NOW,
    started: datetime | None = None,
) -> Delivery:
    """Somebody's presence as the broker hands it out; `retain` says that it stood there before."""
    presence = Presence(
        namespace="shop", pod="db-0", pod_uid=uid, state=state, born_at=born, clock=clock, started_at=started
    )
    payload = seal(presence, source="/agents/shop/db-0", time=time, event_id=str(uuid.uuid4()))
    return Delivery(TOPIC, payload, qos=0, retain=retain)


def announces(keeper: PresenceKeeper) -> bool:
    return keeper._changed.is_set()


EARLIER, LATER = BORN - timedelta(seconds=1), BORN + timedelta(seconds=1)
JUNK = (
    b"",
    b"{",
    b"\xff" * 10,
    b"{}",
    b"x" * 1_000_000,
    sealed(SAMPLES["trigger.v1-exec"]),
    sealed(SAMPLES["report.v1"]),
)


@pytest.mark.parametrize("retain", [True, False])
@pytest.mark.parametrize(
    ("uid", "state", "born", "what"),
    [
        (UID, "offline", BORN, "our own will, of a connection that broke"),
        (LOWER_UID, "offline", EARLIER, "our predecessor's will"),
        (LOWER_UID, "online", EARLIER, "our predecessor, who was here first"),
        (LOWER_UID, "offline", LATER, "the will of somebody later"),
        (LOWER_UID, "online", BORN, "somebody born with us, whose uid is lower"),
    ],
)
async def test_what_is_not_true_any_more_is_contradicted(keeper, uid, state, born, what, retain):
    keeper.saw(said(uid, state, born=born, retain=retain))
    assert announces(keeper), f"{what}: left standing"
    assert not keeper.taken.done(), f"{what}: gave the name away"


LONG = timedelta(seconds=31)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"clock": NOW - LONG, "time": NOW - LONG}, "said long ago, and repeated"),
        ({"clock": NOW - LONG}, "of a clock that is behind"),
        ({"clock": NOW + LONG, "time": NOW + LONG}, "of a clock that is ahead"),
        ({"time": NOW - LONG}, "sealed long ago"),
        ({"born": NOW + LONG}, "of somebody who is not born yet"),
    ],
)
async def test_a_successor_must_speak_now(keeper, changes, what):
    keeper.saw(said(HIGHER_UID, **{"born": LATER, **changes}))
    assert (announces(keeper), keeper.taken.done()) == (True, False), what


async def test_clocks_may_differ_a_little(keeper):
    at = NOW + timedelta(seconds=29)
    keeper.saw(said(HIGHER_UID, born=at, clock=at, time=at))
    assert keeper.taken.result() == HIGHER_UID


@pytest.mark.parametrize("born", [EARLIER, BORN, LATER, NOW])
@pytest.mark.parametrize("started", [None, NOW - timedelta(seconds=1), NOW])
async def test_our_own_earlier_life_does_not_send_us_away(keeper, born, started):
    """Without a journal it was born when it started, which can be after the journal that we have."""
    keeper.saw(said(UID, born=born, started=started))
    assert (announces(keeper), keeper.taken.done()) == (True, False)


@pytest.mark.parametrize("born", [EARLIER, LATER])
async def test_of_two_agents_of_one_pod_the_one_that_started_later_stays(keeper, born):
    keeper.saw(said(UID, born=born, started=NOW + timedelta(seconds=1)))
    assert keeper.taken.result() == UID


async def spoken(keeper, announcing, count: int = 1) -> list[Delivery]:
    """What it says `count` times, as the broker hands it back."""
    for _ in range(count):
        before = len(announcing.publications)
        keeper.announce()
        await until(lambda before=before: len(announcing.publications) > before, "presence is published")
    return [Delivery(TOPIC, each.payload, qos=1, retain=False) for each in announcing.publications[-count:]]


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("retain", [True, False])
async def test_our_latest_sentence_is_left_alone_however_often_it_comes(keeper, announcing, times, retain):
    [latest] = await spoken(keeper, announcing)
    latest.retain = retain
    for _ in range(times):
        keeper.saw(latest)
    assert (announces(keeper), keeper.taken.done()) == (False, False)


async def test_our_sentences_may_come_back_late_and_make_no_loop(keeper, announcing):
    """The broker is slow: each comes back after the next one was said. An answer to each would go on for ever."""
    sentences = await spoken(keeper, announcing, 4)
    for each in sentences:
        keeper.saw(each)
        assert not announces(keeper)


async def test_an_older_sentence_of_our_own_is_contradicted_once_it_came_back(keeper, announcing):
    """Somebody repeats what we said when we had other labels."""
    old, latest = await spoken(keeper, announcing, 2)
    keeper.saw(old)
    keeper.saw(latest)
    assert not announces(keeper)
    keeper.saw(old)
    assert (announces(keeper), keeper.taken.done()) == (True, False)


async def test_our_latest_sentence_with_another_word_in_it_is_not_ours(keeper, announcing):
    [latest] = await spoken(keeper, announcing)
    keeper.saw(latest)
    latest.payload = latest.payload.replace(b'"db"', b'"DB"')
    keeper.saw(latest)
    assert announces(keeper)


async def test_what_is_older_than_what_came_back_is_a_repetition(keeper, announcing):
    old, latest = await spoken(keeper, announcing, 2)
    keeper.saw(latest)
    keeper.saw(old)
    assert announces(keeper)


async def test_what_was_redelivered_is_answered_once_and_then_it_is_quiet(keeper, announcing):
    """At QoS 1 whatever we did not acknowledge comes again on the next connection."""
    redelivered = await spoken(keeper, announcing, 3)
    for each in (*redelivered, *redelivered):
        keeper.saw(each)
    count = len(announcing.publications)
    await until(lambda: len(announcing.publications) > count, "it is contradicted")
    keeper.saw(Delivery(TOPIC, announcing.publications[-1].payload, qos=1, retain=False))
    await asyncio.sleep(0.1)
    assert len(announcing.publications) == count + 1


async def test_what_never_comes_back_is_not_remembered_for_ever(keeper, announcing, monkeypatch):
    monkeypatch.setattr(presence_module, "SAY_AGAIN_SECONDS", 0)
    sentences = await spoken(keeper, announcing, presence_module.MAX_UNHEARD + 1)
    keeper.saw(sentences[1])
    assert not announces(keeper)
    keeper.saw(sentences[0])
    assert announces(keeper)


@pytest.mark.parametrize("payload", JUNK)
@pytest.mark.parametrize("retain", [True, False])
async def test_an_empty_place_or_junk_is_written_over(keeper, payload, retain):
    keeper.saw(Delivery(TOPIC, payload, qos=0, retain=retain))
    assert (announces(keeper), keeper.taken.done()) == (True, False)


@pytest.mark.parametrize(("uid", "born"), [(LOWER_UID, LATER), (HIGHER_UID, LATER), (HIGHER_UID, BORN)])
async def test_a_successor_who_speaks_takes_the_name(keeper, uid, born):
    keeper.saw(said(uid, born=born))
    assert keeper.taken.result() == uid
    assert not announces(keeper), "it spoke against its successor"


async def test_what_a_successor_left_standing_may_be_all_that_is_left_of_it(keeper):
    keeper.saw(said(HIGHER_UID, born=LATER, retain=True))
    assert (announces(keeper), keeper.taken.done()) == (True, False)
    keeper.saw(said(HIGHER_UID, born=LATER))
    assert keeper.taken.result() == HIGHER_UID, "it answered, so it lives"


async def test_of_two_agents_exactly_one_gives_way(keeper):
    """Both see the other speak: whoever would stay when it hears the other is who makes the other go."""
    identity = Identity("shop", "db-0", HIGHER_UID)
    other = keeper_of(identity, PresenceFacts())
    keeper.saw(said(HIGHER_UID))
    other.saw(said(UID))
    assert (keeper.taken.done(), other.taken.done()) == (True, False)


async def test_after_the_name_is_taken_nothing_is_contradicted(keeper):
    keeper.saw(said(HIGHER_UID, born=LATER))
    for delivery in (said(HIGHER_UID, born=LATER), said(UID, "offline"), Delivery(TOPIC, b"", 0, retain=False)):
        keeper.saw(delivery)
    assert not announces(keeper)
    assert keeper.taken.result() == HIGHER_UID


@pytest.mark.parametrize("payload", [said(UID, "offline").payload, said(HIGHER_UID, born=LATER).payload, *JUNK])
async def test_while_leaving_nothing_is_answered(keeper, payload):
    await keeper.say_goodbye(Published())
    keeper.saw(Delivery(TOPIC, payload, qos=0, retain=False))
    assert (announces(keeper), keeper.taken.done()) == (False, False)


# --- what it says


@dataclass
class Published:
    """A link that keeps what is published; `error` is raised instead."""

    publications: list[Publication] = field(default_factory=list)
    error: Exception | None = None

    async def publish(self, publication: Publication) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.publications.append(publication)

    def states(self) -> list[str]:
        return [opened(each.payload).state if each.payload else "goodbye" for each in self.publications]


def opened(payload: bytes) -> Presence:
    return open_event(payload, Kinds.of(Presence), limit_bytes=1_000_000).data


@pytest.fixture
async def announcing(keeper, monkeypatch) -> AsyncIterator[Published]:
    monkeypatch.setattr(presence_module, "SAY_AGAIN_SECONDS", 0.02)
    link = Published()
    task = asyncio.create_task(keeper.keep_announcing(link))
    yield link
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_presence_says_who_is_there_and_what_needs_hands(keeper, announcing):
    keeper.announce()
    await until(lambda: announcing.publications, "presence is published")
    (publication,) = announcing.publications
    assert (publication.topic, publication.qos, publication.retain) == (TOPIC, 1, True)
    presence = opened(publication.payload)
    assert (presence.state, presence.pod_uid, presence.born_at, presence.clock) == ("online", UID, BORN, NOW)
    assert (presence.labels, presence.containers, presence.unsigned) == ({"app": "db"}, ["mysql", "agent"], True)
    assert (presence.owners[0].kind, presence.problems) == ("StatefulSet", ["the disk is full"])


async def test_the_will_says_the_same_and_that_nobody_is_there(keeper):
    will = keeper.will()
    assert (will.topic, opened(will.payload).state, opened(will.payload).pod_uid) == (TOPIC, "offline", UID)


async def test_it_says_what_is_true_when_it_is_said(keeper, announcing):
    for problems in ({}, {"journal": "damaged"}):
        keeper._facts.problems = problems
        seen = len(announcing.publications)
        keeper.announce()
        await until(lambda seen=seen: len(announcing.publications) > seen, "a change is published")
        assert opened(announcing.publications[-1].payload).problems == list(problems.values())


async def test_many_changes_at_once_are_said_once(keeper, announcing, monkeypatch):
    monkeypatch.setattr(presence_module, "SAY_AGAIN_SECONDS", 60)
    for _ in range(100):
        keeper.announce()
        keeper.saw(Delivery(TOPIC, b"junk", qos=0, retain=False))
        await asyncio.sleep(0)
    assert announcing.states() == ["online"]


@pytest.mark.parametrize("error", [LinkDown("gone"), PublishRefused(TOPIC, 0x87, "not authorized")])
async def test_a_publish_that_fails_is_tried_again_when_something_changes(keeper, announcing, error):
    announcing.error = error
    keeper.announce()
    await asyncio.sleep(0.05)
    announcing.error = None
    keeper.announce()
    await until(lambda: announcing.states() == ["online"], "presence is published after all")


async def test_a_goodbye_clears_what_stands_there_and_is_the_last_word(keeper, announcing):
    keeper.announce()
    await until(lambda: announcing.publications, "presence is published")
    keeper.announce()  # something changed a moment before the end
    await keeper.say_goodbye(announcing)
    keeper.announce()
    await asyncio.sleep(0.1)
    assert announcing.states() == ["online", "goodbye"]
    assert announcing.publications[-1].retain, "a goodbye that is not retained clears nothing"


async def test_nothing_is_said_beside_a_successor(keeper, announcing):
    keeper.saw(said(HIGHER_UID, born=LATER))
    keeper.announce()  # the link came back while it drains
    await asyncio.sleep(0.1)
    assert announcing.publications == []


@pytest.mark.parametrize("error", [LinkDown("gone"), PublishRefused(TOPIC, 0x87, "not authorized")])
async def test_a_goodbye_that_cannot_be_said_holds_nobody_up(keeper, error):
    await keeper.say_goodbye(Published(error=error))


# --- how much it says

#: What MQTT can carry as a will, and what coordinators read at most.
WILL_BYTES, READ_BYTES = 65_535, 256 * 1024


@pytest.fixture
async def overfull() -> PresenceKeeper:
    """As much of everything as there can be, in characters of many bytes, and signed."""
    labels = {f"{'k' * 250}{number:03}/{'n' * 63}": "v" * 63 for number in range(60)}
    assert parse_labels("".join(f'{key}="{value}"\n' for key, value in labels.items())) == labels
    facts = PresenceFacts(
        labels=labels,
        containers=["c" * 253 + str(number) for number in range(1000)],
        owners=[Owner(api_version="v" * 1000, kind="k" * 1000, name="n" * 1000) for _ in range(1000)],
        problems={str(number): str(number) + ": " + "\u0001é" * 5000 for number in range(300)},
    )
    keeper = keeper_of(Identity("n" * 253, "p" * 253, "u" * 128), facts)
    keeper._signature.use(private_text(pair("shop")), Path("shop.key"))
    return keeper


async def test_however_much_is_wrong_the_will_fits_into_mqtt(overfull):
    will = overfull.will()
    assert len(will.payload) <= WILL_BYTES
    said = opened(peek(will.payload))
    assert (said.state, len(said.labels)) == ("offline", 60)
    assert (said.problems, said.owners, said.containers) == ([], [], [])


async def test_however_much_is_wrong_presence_can_be_read(overfull):
    link = Published()
    task = asyncio.create_task(overfull.keep_announcing(link))
    overfull.announce()
    await until(lambda: link.publications, "presence is published")
    task.cancel()
    [publication] = link.publications
    assert len(publication.payload) <= READ_BYTES / 2
    said = opened(peek(publication.payload))
    assert said.containers[0] == "c" * 253 + "0"
    assert said.owners
    assert all(len(problem) < presence_module.MAX_PROBLEM_CHARACTERS + 50 for problem in said.problems)
    assert said.problems[0].endswith("... (whole in the agent's log)")
    assert said.problems[-1] == f"and {300 - len(said.problems) + 1} more problems; see the agent's log"


async def test_what_is_little_is_said_whole(keeper, announcing):
    keeper._facts.problems = {str(number): f"problem {number}" for number in range(20)}
    [sentence] = await spoken(keeper, announcing)
    assert opened(sentence.payload).problems == [f"problem {number}" for number in range(20)]


def test_more_labels_than_presence_carries_are_refused():
    text = "".join(f'{"k" * 250}{number:03}="v"\n' for number in range(100))
    with pytest.raises(InvalidSettings, match=r"the labels have \d+ bytes; the limit is 24576"):
        parse_labels(text)
