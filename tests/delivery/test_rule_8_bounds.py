"""Delivery, rule 8: everything has a bound, and at a bound there is a clear refusal, not silence.

- Attempts in flight: one more is `busy`, and in a flood everybody is answered. Output kept: its head and its tail, with
  how much there was. Time: whatever runs longer is ended with all that it started.
- An outcome is cut to fit into 120 KiB as sent, or into what the broker takes.
- If the link drops twice while it is published, it goes without its output.
- Bytes that are not UTF-8 travel as base64, and say so.

The size of the journal has its tests in tests/test_journal.py, a disk that is full in tests/sidecar/test_agent.py.
"""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import aiohttp
import pytest

from agent.contract.messages import MAX_OUTCOME_BYTES, OutcomeMessage, Started
from tests.agents import TRUE, AgentProcess, Json, Stage, code, left_running, shell, stage_on
from tests.brokers import Mosquitto, free_port
from tests.delivery.clocks import clocked
from tests.delivery.packets import Packet, PacketProxy
from tests.delivery.spy import Spy

pytestmark = [pytest.mark.broker, pytest.mark.processes]


# -- in flight


async def test_one_more_than_the_limit_is_busy(stage: Stage) -> None:
    agent, tally, client = await stage.agent(max_concurrent=1), stage.tally(), stage.client
    first = await client.trigger(agent, shell("sleep 60"))
    await client.reply(Started, first)
    sent = await client.trigger(agent, tally.action())
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("rejected", "busy")
    assert outcome.error is not None
    assert "runs 1 attempts, the limit is 1; try again later" in outcome.error.message
    await client.cancel(agent, first)
    await client.outcome(first)
    await client.again(agent, sent)  # there is room now, but a refused id stays refused
    assert await client.outcome(sent, count=2) == outcome
    await client.works(agent)
    assert tally.runs == 0, agent.tail()


async def test_in_a_flood_of_triggers_each_is_run_or_refused_and_none_is_met_with_silence(stage: Stage) -> None:
    agent, client, tally = await stage.agent(max_concurrent=4), stage.client, stage.tally()
    sent = [client.make(agent, tally.action("sleep 0.5")) for _ in range(150)]
    client.made.clear()  # they end by themselves, and to look for each takes long
    await asyncio.gather(*(client.again(agent, each) for each in sent))
    ended = [await client.outcome(each) for each in sent]
    kinds = {(str(each.outcome), code(each)) for each in ended}
    assert kinds == {("succeeded", None), ("rejected", "busy")}, kinds
    succeeded = sum(each.outcome == "succeeded" for each in ended)
    assert tally.runs == succeeded, f"{succeeded} succeeded, {tally.runs} ran\n{agent.tail()}"
    await client.works(agent)


async def test_whoever_has_an_outcome_may_trigger_at_once_even_with_room_for_only_one(stage: Stage) -> None:
    agent, client = await stage.agent(max_concurrent=1), stage.client
    outcomes = [await client.run(agent, TRUE) for _ in range(60)]
    assert [code(each) for each in outcomes if each.outcome != "succeeded"] == [], agent.tail()


async def healthz(agent: AgentProcess) -> Json:
    """What the agent says to a liveness probe."""
    url = f"http://127.0.0.1:{agent.settings['HEALTH_PORT']}/healthz"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        said: Json = await answer.json()
        return said


async def test_a_full_journal_refuses_says_so_and_makes_room_by_itself(stage: Stage) -> None:
    """Three rows: two that count for a day, one refusal that goes as soon as its id need not be kept."""
    tally, client = stage.tally(), stage.client
    agent, clock = await clocked(stage, 0, test_max_rows=3, health_port=free_port())
    for _ in range(2):
        await client.run(agent, TRUE)
    late = await client.trigger(agent, tally.action(), issued_in=-1, deadline_in=-0.5)
    assert code(await client.outcome(late)) == "expired"
    refused = await client.trigger(agent, tally.action())
    outcome = await client.outcome(refused)
    assert (outcome.outcome, code(outcome)) == ("rejected", "journal_full")
    assert "3 attempts of at most 3" in outcome.error.message
    presence = await client.presence(agent, lambda said: said and said.problems, "the problem is said")
    assert "the journal is full" in presence.problems[0]
    health = await healthz(agent)
    assert (health["status"], health["problems"]) == ("degraded", ["journal_full"])
    after = len(client.said(agent))
    clock.set_ahead(29)  # the late one's deadline and half a minute are over
    await client.presence(agent, lambda said: said and not said.problems, "there is room again", after=after)
    await client.again(agent, refused)
    assert code(await client.outcome(refused, count=2)) == "journal_unavailable", "a refusal turned into a yes"
    assert tally.runs == 0, agent.tail()


# -- time


async def test_what_runs_longer_than_its_timeout_is_ended_with_all_that_it_started(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    sent = await client.trigger(agent, shell("setsid sleep 60 & sleep 60 & wait"), timeout_seconds=0.5)
    outcome = await client.outcome(sent)
    assert (outcome.outcome, code(outcome)) == ("timed_out", "timeout")
    assert left_running(sent.run_id) == [], f"something of it is left: {outcome.notes}\n{agent.tail()}"


# -- output


async def test_of_long_output_the_head_and_the_tail_are_kept_and_how_much_there_was_is_told(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    outcome = await client.run(agent, shell("echo first; head -c 1000000 /dev/zero | tr '\\0' x; echo; echo last"))
    kept = outcome.stdout
    assert (kept.truncated, kept.total_bytes, kept.encoding) == (True, 1_000_012, "utf-8")
    assert kept.text.startswith("first\nxxx")
    assert kept.text.endswith("xxx\nlast\n")
    assert "bytes cut ...]" in kept.text
    assert 32_000 < len(kept.text) < 33_000, f"{len(kept.text)} bytes are kept instead of 32 KiB"


async def test_bytes_that_are_not_utf8_travel_as_base64_and_say_so(stage: Stage) -> None:
    agent, client = await stage.agent(), stage.client
    outcome = await client.run(agent, shell(r"printf '\377\000\200'; printf 'text: \303\274' >&2"))
    assert (outcome.stdout.encoding, base64.b64decode(outcome.stdout.text)) == ("base64", b"\xff\x00\x80")
    assert (outcome.stderr.encoding, outcome.stderr.text) == ("utf-8", "text: ü")


#: 64 KiB on each stream, of a character that takes six bytes in JSON.
LARGE = shell("head -c 65536 /dev/zero | tr '\\0' '\\1'; head -c 65536 /dev/zero | tr '\\0' '\\1' >&2; exit 3")
ALL_OF_IT = {"capture": {"limit_bytes": 65536}}


async def test_an_outcome_is_cut_to_fit_into_120_kib_as_sent(stage: Stage) -> None:
    agent, client = await stage.agent(output_limit_bytes=65536), stage.client
    async with Spy(stage, "replies") as spy:
        sent = await client.trigger(agent, LARGE, **ALL_OF_IT)
        outcome = await client.outcome(sent)
        await stage.until(lambda: spy.of(OutcomeMessage), "the spy hears it, too")
        size = len(spy.of(OutcomeMessage)[0].payload)
    assert MAX_OUTCOME_BYTES == 120 * 1024
    assert 8 * 1024 < size <= MAX_OUTCOME_BYTES, f"{size} bytes as sent"
    assert (outcome.outcome, outcome.exit_code) == ("failed", 3)
    for stream in (outcome.stdout, outcome.stderr):
        assert (stream.truncated, stream.total_bytes) == (True, 65536)
        assert stream.text, "all of it is gone although some fits"
    (attempt,) = (await client.ask_about(agent, sent)).attempts
    assert (attempt.outcome and attempt.outcome.exit_code) == 3, "the report does not fit"


async def test_an_outcome_is_cut_to_fit_into_what_the_broker_takes(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path, "max_packet_size 8192")
    broker.start()
    try:
        async with stage_on(broker, tmp_path) as stage:
            agent, client = await stage.agent(), stage.client
            sent = await client.trigger(agent, shell("yes | head -c 60000"))
            outcome = await client.outcome(sent)
            assert (outcome.outcome, outcome.stdout.truncated, outcome.stdout.total_bytes) == ("succeeded", True, 60000)
            report = await client.ask_about(agent, sent)
            assert [each.state for each in report.attempts] == ["succeeded"], agent.tail()
    finally:
        broker.stop()


async def test_a_long_report_is_cut_to_its_newest_attempts(stage: Stage) -> None:
    """Many attempts, each with a long reason: the newest are told, and the link survives."""
    agent, client = await stage.agent(), stage.client
    first = client.make(agent, TRUE)
    refused = {**TRUE, "containerName": "x" * 4000}
    for attempt in range(1, 61):
        await client.trigger(agent, refused, run_id=first.run_id, attempt=attempt)
    last = client.make(agent, TRUE, run_id=first.run_id, attempt=60)
    await client.outcome(last)
    report = await client.query(agent, first.run_id)
    assert report.attempts[-1].attempt == 60, agent.tail()
    assert len(client.seal(report)) <= 121 * 1024


async def test_an_outcome_during_which_the_link_drops_twice_goes_without_its_output(
    any_stage: Stage, any_proxy: PacketProxy
) -> None:
    """As with a broker that takes no packet of this size, and says so by breaking the connection (NATS over 1 MB)."""
    client = any_stage.client
    agent = await any_stage.agent(broker_url=any_proxy.url)
    broken = break_large_outcomes(any_proxy, times=1_000_000)
    sent = await client.trigger(agent, shell("yes | head -c 20000; exit 3"))
    outcome = await client.outcome(sent)
    assert (outcome.outcome, outcome.exit_code) == ("failed", 3)
    assert len(broken) == 2, f"the link broke {len(broken)} times"
    assert (outcome.stdout.text, outcome.stdout.total_bytes, outcome.stdout.truncated) == ("", 20_000, True)
    any_proxy.passes = lambda _: True
    (attempt,) = (await client.ask_about(agent, sent)).attempts
    assert attempt.outcome is not None
    assert len(attempt.outcome.stdout.text) == 20_000, "the journal, which is the record, lost its output"
    await client.works(agent)
    assert len(client.heard(OutcomeMessage, sent.run_id)) == 1, agent.tail()


async def test_an_outcome_during_which_the_link_drops_once_keeps_its_output(stage: Stage, proxy: PacketProxy) -> None:
    client = stage.client
    agent = await stage.agent(broker_url=proxy.url)
    broken = break_large_outcomes(proxy, times=1)
    outcome = await client.run(agent, shell("yes | head -c 20000; exit 3"))
    assert len(broken) == 1, f"the link broke {len(broken)} times"
    assert (len(outcome.stdout.text), outcome.stdout.truncated) == (20_000, False)


def break_large_outcomes(proxy: PacketProxy, *, times: int) -> list[int]:
    """So many times break the link when an outcome with its output comes by; returns their sizes."""
    broken: list[int] = []

    def passes(packet: Packet) -> bool:
        large = not packet.down and packet.says(OutcomeMessage) and len(packet.raw) > 8 * 1024
        if large and len(broken) < times:
            broken.append(len(packet.raw))
            proxy.cut()
            return False
        return True

    proxy.passes = passes
    return broken
