"""A Job from its making to its end: every way it can go, in a cluster in memory where time stands still."""

from __future__ import annotations

import asyncio

import pytest

from agent.cluster.resources import JOBS, PODS
from agent.contract.errors import ClusterNotFound, ClusterRefused, ClusterUnavailable
from agent.contract.redaction import Redactor
from agent.coordinator.functions import (
    CANCEL_SECONDS,
    GRACE_SECONDS,
    LOOK_SECONDS,
    START_WINDOW_SECONDS,
    JobEvent,
)
from agent.coordinator.job_log import log_output
from agent.coordinator.job_vigil import PAUSE_SECONDS
from tests.coordinator.job_world import AWAY, JobWorld, settled
from tests.coordinator.test_jobs import executor, function, job

DENIED = ClusterRefused("the API server does not let jane create jobs; allow it with this:\nkind: Role", status=403)


@pytest.fixture
def world() -> JobWorld:
    return JobWorld(job(function(image="acme/migrate:1")))


async def ended(task: asyncio.Task):
    """Its result, without waiting for anything but the loop."""
    await settled()
    assert task.done(), "it waits for something"
    return task.result()


# --- the usual way


async def test_it_succeeds_and_whoever_watches_hears_of_each_step(world):
    world.cluster.log = (b"migrated 3 tables\n", 18)
    task = world.start()
    await settled()
    world.make_pod()
    world.pod("Pending", {"waiting": {"reason": "ContainerCreating"}})
    world.pod("Pending", {"waiting": {"reason": "ContainerCreating"}}, podIP="10.0.0.1")
    world.pod("Running", {"running": {"startedAt": "2024-05-01T10:00:00Z"}})
    await world.time.advance(5)
    world.exits(0, "Completed")
    result = await ended(task)
    assert (result.outcome, result.exit_code, result.error, result.notes) == ("succeeded", 0, None, [])
    assert (result.stdout.text, result.stdout.total_bytes, result.stdout.truncated) == (
        "migrated 3 tables\n",
        18,
        False,
    )
    assert result.duration_seconds == 5
    assert result.started_at.isoformat() == "2024-05-01T10:00:00+00:00"
    assert world.events == [
        JobEvent("created", world.name),
        JobEvent("pending", "no node yet"),
        JobEvent("pending", "scheduled on node-1"),
        JobEvent("pending", "ContainerCreating"),
        JobEvent("running", "on node-1"),
        JobEvent("ended", "exit code 0"),
    ]
    assert ("jobs", "shop", world.name) in world.cluster.objects, "it is Kubernetes that removes it, 300 s later"


async def test_it_fails_with_its_exit_code_and_the_end_of_its_log(world):
    world.cluster.log = (b"no such table\n", 14)
    task = await world.begun()
    world.exits(3)
    result = await ended(task)
    assert (result.outcome, result.exit_code, result.error.code) == ("failed", 3, "exit_code")
    assert result.error.message == f"Job shop/{world.name} ended with exit code 3"
    assert result.stdout.text == "no such table\n"


async def test_out_of_memory_is_named(world):
    task = await world.begun()
    world.exits(137, "OOMKilled")
    result = await ended(task)
    assert (result.outcome, result.error.code, result.signal) == ("failed", "out_of_memory", "SIGKILL")


async def test_a_pod_that_waits_says_why_and_times_out(world):
    task = world.start()
    await settled()
    world.make_pod()
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    world.pod("Pending", state)
    await settled()
    assert world.events[-1] == JobEvent("pending", "ImagePullBackOff: Back-off pulling image")
    world.ends("Failed", "DeadlineExceeded")
    world.cluster.remove(PODS, world.pod_name)
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("timed_out", "timeout")
    assert result.error.message.endswith("its container never began: ImagePullBackOff: Back-off pulling image")
    assert "log" not in world.cluster.asked


async def test_a_job_whose_pod_nobody_makes(world):
    task = world.start()
    await settled()
    world.ends("Failed", "DeadlineExceeded")
    result = await ended(task)
    assert result.outcome == "timed_out"
    assert "no pod of it was seen: if a quota, Pod Security" in result.error.message


async def test_what_ended_before_the_watches_began_is_seen(world):
    world.cluster.fail["watch jobs"] = world.cluster.fail["watch pods"] = DENIED
    task = await world.begun()
    world.exits(3)
    await settled()
    assert not task.done()
    await world.time.advance(LOOK_SECONDS)
    assert (await ended(task)).exit_code == 3
    assert world.told.count("unseen") >= 1
    assert "allow it with this" in next(each.text for each in world.events if each.kind == "unseen")


async def test_news_that_no_watch_told_is_found_by_looking(world):
    task = await world.begun()
    world.exits(3, silently=True)
    await world.time.advance(LOOK_SECONDS - 1)
    assert not task.done()
    await world.time.advance(1)
    assert (await ended(task)).exit_code == 3


async def test_who_watches_cannot_stop_it(world, caplog):
    def breaks(_: JobEvent) -> None:
        raise RuntimeError("the terminal is gone")

    task = await world.begun(on_event=breaks)
    world.exits(0)
    assert (await ended(task)).outcome == "succeeded"


async def test_a_watch_that_breaks_is_begun_again(world):
    task = await world.begun()
    world.cluster.break_watches(AWAY)
    await world.time.advance(PAUSE_SECONDS)
    assert world.told[-1] == "unseen"
    world.exits(0)
    assert (await ended(task)).outcome == "succeeded"
    assert world.cluster.asked.count("watch jobs") == 2


# --- the timeout


async def test_the_next_attempt_waits_for_the_end_of_this_ones_pod(world):
    task = await world.begun()
    world.cluster.log = (b"half\n", 5)
    world.ends("Failed", "DeadlineExceeded")
    await settled()
    assert not task.done(), "its pod still runs"
    world.cluster.log = (b"half\nterminated\n", 16)
    world.pod("Failed", {"terminated": {"exitCode": 143, "startedAt": "2024-05-01T10:00:00Z"}})
    result = await ended(task)
    assert (result.outcome, result.exit_code, result.signal) == ("timed_out", 143, "SIGTERM")
    assert result.stdout.text == "half\nterminated\n"


async def test_kubernetes_1_31_says_that_it_will_fail_first(world):
    task = await world.begun()
    world.cluster.log = (b"half\n", 5)
    world.ends("FailureTarget", "DeadlineExceeded")
    await settled()
    assert "log" in world.cluster.asked, "its pod may be gone in a moment"
    assert not task.done()
    world.cluster.remove(PODS, world.pod_name)
    world.cluster.fail["log"] = ClusterNotFound("no pod")
    world.ends("Failed", "DeadlineExceeded")
    result = await ended(task)
    assert (result.outcome, result.stdout.text, result.notes) == ("timed_out", "half\n", [])


async def test_a_pod_that_does_not_end_is_noted(world):
    task = await world.begun()
    world.ends("FailureTarget", "DeadlineExceeded")
    await world.time.advance(GRACE_SECONDS - 1)
    assert not task.done()
    await world.time.advance(1)
    result = await ended(task)
    assert result.outcome == "timed_out"
    assert result.notes == ["its pod has not ended yet: kubectl says what it waits for"]


async def test_a_job_that_nobody_ends_is_lost_and_deleted(world):
    task = await world.begun()
    await world.time.advance(300 + GRACE_SECONDS)
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("lost", "silent")
    assert "is the kube-controller-manager running?" in result.error.message
    assert world.cluster.asked[-1] == "delete jobs Background"


# --- an API server that is away


async def test_an_api_server_that_comes_back_in_time(world):
    task = await world.begun()
    world.cluster.fail["everything"] = AWAY
    world.cluster.break_watches(AWAY)
    await world.time.advance(200)
    assert not task.done()
    assert world.told.count("unseen") == 1
    world.exits(0, silently=True)
    del world.cluster.fail["everything"]
    await world.time.advance(LOOK_SECONDS)
    assert (await ended(task)).outcome == "succeeded"


async def test_an_api_server_that_stays_away_leaves_it_lost(world):
    task = await world.begun()
    world.cluster.fail["everything"] = AWAY
    world.cluster.break_watches(AWAY)
    await world.time.advance(300 + GRACE_SECONDS - 1)
    assert not task.done()
    await world.time.advance(1)
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("lost", "silent")
    assert str(AWAY) in result.error.message


async def test_an_api_server_that_comes_back_at_the_very_last_is_asked_once_more(world):
    world.timeout_seconds = 305  # no look falls on the end of the wait
    task = await world.begun()
    world.cluster.fail["everything"] = AWAY
    world.cluster.break_watches(AWAY)
    await world.time.advance(305 + GRACE_SECONDS - 1)
    world.exits(0, silently=True)
    world.cluster.fail = {"watch jobs": AWAY, "watch pods": AWAY}
    await world.time.advance(1)
    assert (await ended(task)).outcome == "succeeded"


async def test_the_end_of_a_job_counts_also_when_its_pod_cannot_be_asked(world):
    task = await world.begun()
    world.cluster.fail["list pods"] = world.cluster.fail["log"] = AWAY
    world.exits(3)
    result = await ended(task)
    assert (result.outcome, result.exit_code) == ("failed", 3)
    assert result.notes == [
        f"its pod could not be looked at again: {AWAY}",
        f"its log could not be read: {AWAY}",
    ]


# --- others who delete


async def test_a_pod_that_is_deleted_interrupts(world):
    task = await world.begun()
    world.cluster.change(PODS, world.pod_name, metadata={"deletionTimestamp": "2024-05-01T10:00:30Z"})
    world.exits(143)
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("interrupted", "pod_gone")


async def test_a_pod_that_vanishes_interrupts(world):
    task = await world.begun()
    world.cluster.remove(PODS, world.pod_name)
    world.ends("Failed", "BackoffLimitExceeded")
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("interrupted", "pod_gone")
    assert result.notes == []


@pytest.mark.parametrize("silently", [False, True])
async def test_a_job_that_is_deleted_interrupts(world, silently):
    task = await world.begun()
    world.cluster.remove(JOBS, world.name, silently=silently)
    await world.time.advance(LOOK_SECONDS)
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("interrupted", "job_deleted")


async def test_another_job_of_its_name_is_not_it(world):
    task = await world.begun()
    world.cluster.remove(JOBS, world.name, silently=True)
    world.cluster.make(world.job)
    world.ends("Complete")
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("interrupted", "job_deleted")


async def test_a_pod_of_another_job_is_not_its_pod(world):
    task = world.start()
    await settled()
    world.make_pod(ownerReferences=[{"uid": "another"}])
    world.pod("Failed", {"terminated": {"exitCode": 9}})
    world.ends("Failed", "BackoffLimitExceeded")
    result = await ended(task)
    assert (result.outcome, result.exit_code) == ("interrupted", None)
    assert world.told == ["created"]


# --- making it


async def test_nothing_is_made_where_its_pods_may_not_be_seen(world):
    world.cluster.fail["list pods"] = ClusterRefused("does not let jane list pods", status=403)
    result = await ended(world.start())
    assert (result.outcome, result.error.code) == ("rejected", "job_refused")
    assert result.error.message == f"Job shop/{world.name} was not made: does not let jane list pods"
    assert world.cluster.asked == ["list pods"]


async def test_a_missing_right_is_named_with_the_rule_that_gives_it(world):
    world.cluster.fail["create jobs"] = DENIED
    result = await ended(world.start())
    assert (result.outcome, result.error.code) == ("rejected", "job_refused")
    assert "kind: Role" in result.error.message


async def test_nothing_ever_left_when_the_api_server_was_away_from_the_beginning(world):
    world.cluster.fail["everything"] = AWAY
    task = world.start()
    await world.time.advance(START_WINDOW_SECONDS)
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("unreachable", "never_published")
    assert result.error.message == f"Job shop/{world.name} was not made: not within 30s: {AWAY}"
    assert "create jobs" not in world.cluster.asked


async def test_a_short_absence_is_waited_for(world):
    world.cluster.fail["everything"] = AWAY
    task = world.start()
    await world.time.advance(START_WINDOW_SECONDS / 2)
    del world.cluster.fail["everything"]
    await world.time.advance(PAUSE_SECONDS)
    assert world.told == ["unseen", "created"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def made_and_lost(world):
    """The API server makes it, and nobody hears of that."""

    def answer() -> Exception:
        world.cluster.make(world.job)
        world.cluster.fail["create jobs"] = AssertionError("a second one")
        return AWAY

    return answer


async def test_a_lost_answer_is_found_again_and_nothing_is_made_twice(world):
    world.cluster.fail["create jobs"] = made_and_lost(world)
    task = world.start()
    await world.time.advance(PAUSE_SECONDS)
    assert world.told == ["unseen", "adopted"]
    world.make_pod()
    world.exits(0)
    assert (await ended(task)).outcome == "succeeded"


async def test_whether_it_was_made_is_not_known(world):
    def answer() -> Exception:
        world.cluster.fail["everything"] = AWAY
        return AWAY

    world.cluster.fail["create jobs"] = answer
    task = world.start()
    await world.time.advance(START_WINDOW_SECONDS)
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("lost", "silent")
    assert "whether" in result.error.message
    assert "it ends by itself within 5m, and is removed 5m later" in result.error.message


async def test_a_right_that_is_lost_in_doubt_leaves_it_lost(world):
    def answer() -> Exception:
        world.cluster.fail["everything"] = ClusterRefused("does not accept jane's credentials", status=401)
        return AWAY

    world.cluster.fail["create jobs"] = answer
    task = world.start()
    await world.time.advance(PAUSE_SECONDS)
    assert (await ended(task)).outcome == "lost"


async def test_ours_of_an_earlier_life_is_taken_up(world):
    world.cluster.make(world.job)
    task = world.start()
    await settled()
    assert world.told == ["adopted"]
    world.make_pod()
    world.exits(4)
    assert (await ended(task)).exit_code == 4
    assert "create jobs" not in world.cluster.asked


async def test_a_foreign_job_of_that_name_is_refused_and_left_alone(world):
    world.cluster.make(job(function(image="acme/other:2")))
    result = await ended(world.start())
    assert (result.outcome, result.error.code) == ("rejected", "id_reused")
    assert "with other content" in result.error.message
    assert not [each for each in world.cluster.asked if each.startswith(("create", "delete"))]


async def test_a_foreign_job_that_comes_in_between_is_refused_too(world):
    def answer() -> None:
        if ("jobs", "shop", world.name) not in world.cluster.objects:
            world.cluster.make(job(function(image="acme/other:2")))

    world.cluster.fail["create jobs"] = answer
    task = world.start()
    await world.time.advance(PAUSE_SECONDS)
    assert (await ended(task)).error.code == "id_reused"


# --- cancelling


async def test_cancelled_before_anything_was_made(world):
    world.stop.set()
    result = await ended(world.start())
    assert (result.outcome, result.error.code) == ("cancelled", "tombstoned")
    assert world.cluster.asked == []


async def test_cancelled_while_the_api_server_is_away(world):
    world.cluster.fail["everything"] = AWAY
    task = world.start()
    await settled()
    world.stop.set()
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("cancelled", "tombstoned")


async def test_cancelled_in_doubt(world):
    world.cluster.fail["create jobs"] = AWAY
    task = world.start()
    await settled()
    world.stop.set()
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("lost", "silent")
    assert "it was cancelled meanwhile" in result.error.message


async def test_cancelled_in_doubt_while_the_api_server_is_away_does_not_ask_without_a_pause(world):
    def answer() -> Exception:
        world.cluster.fail["everything"] = AWAY
        return AWAY

    world.cluster.fail["create jobs"] = answer
    task = world.start()
    await settled()
    world.stop.set()
    await world.time.advance(PAUSE_SECONDS * 3)
    assert len(world.cluster.asked) == 3 + 1 + 3, "the first three, one when it was stopped, and one after each pause"
    await world.time.advance(START_WINDOW_SECONDS)
    assert (await ended(task)).outcome == "lost"


async def test_cancelled_in_doubt_about_one_that_was_made_deletes_it(world):
    world.cluster.fail["create jobs"] = made_and_lost(world)
    task = world.start()
    await settled()
    world.stop.set()
    await settled()
    world.cluster.remove(JOBS, world.name)
    result = await ended(task)
    assert result.outcome == "cancelled"
    assert "delete jobs Foreground" in world.cluster.asked


async def test_cancelling_deletes_its_pod_and_waits_for_its_end(world):
    world.cluster.log = (b"half\n", 5)
    task = await world.begun()
    world.stop.set()
    await settled()
    assert "delete jobs Foreground" in world.cluster.asked
    assert world.told[-1] == "cancelling"
    assert not task.done(), "its pod still ends"
    world.pod("Failed", {"terminated": {"exitCode": 143, "startedAt": "2024-05-01T10:00:00Z"}})
    world.cluster.remove(PODS, world.pod_name)
    world.cluster.remove(JOBS, world.name)
    result = await ended(task)
    assert (result.outcome, result.error.code, result.notes) == ("cancelled", "cancelled", [])
    assert result.stdout.text == "half\n"


async def test_a_pod_that_does_not_end_when_it_is_cancelled_is_noted(world):
    task = await world.begun()
    world.stop.set()
    await world.time.advance(CANCEL_SECONDS)
    result = await ended(task)
    assert result.outcome == "cancelled"
    assert result.notes == ["it was deleted, and its pod has not ended 1m later"]


async def test_a_cancel_that_comes_too_late_changes_nothing(world):
    task = await world.begun()
    world.exits(0)
    world.stop.set()
    assert (await ended(task)).outcome == "succeeded"
    assert "delete jobs Foreground" not in world.cluster.asked


async def test_it_succeeds_while_it_is_cancelled(world):
    world.cluster.log = (b"done\n", 5)
    task = await world.begun()
    world.cluster.fail["delete jobs Foreground"] = lambda: world.exits(0)
    world.stop.set()
    result = await ended(task)
    assert result.outcome == "succeeded"
    assert result.notes == ["it was cancelled when it had succeeded already"]
    assert result.stdout.text == "done\n"


async def test_cancelling_goes_on_until_the_api_server_is_back(world):
    task = await world.begun()
    world.cluster.fail["everything"] = AWAY
    world.stop.set()
    await world.time.advance(PAUSE_SECONDS * 5)
    assert not task.done()
    del world.cluster.fail["everything"]
    await world.time.advance(PAUSE_SECONDS)
    world.cluster.remove(JOBS, world.name)
    assert (await ended(task)).outcome == "cancelled"


@pytest.mark.parametrize("error", [AWAY, ClusterRefused("does not let jane delete jobs", status=403)])
async def test_what_cannot_be_cancelled_is_lost(world, error):
    task = await world.begun()
    world.cluster.fail["delete jobs Foreground"] = error
    world.stop.set()
    await world.time.advance(CANCEL_SECONDS)
    result = await ended(task)
    assert (result.outcome, result.error.code) == ("lost", "silent")
    assert f"could not be cancelled: {error}; it ends by itself within 5m" in result.error.message


async def test_a_task_that_is_cancelled_deletes_its_job(world):
    task = await world.begun()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.cluster.asked[-1] == "delete jobs Background"
    assert world.cluster.objects.keys() == {("pods", "shop", world.pod_name)}


async def test_a_task_that_is_cancelled_in_doubt_looks_for_its_job(world):
    world.cluster.fail["create jobs"] = made_and_lost(world)
    task = world.start()
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.cluster.objects == {}


async def test_a_task_that_is_cancelled_never_deletes_what_is_not_its_own(world):
    other = job(function(image="acme/other:2"))
    world.cluster.fail["create jobs"] = lambda: world.cluster.make(other) and AWAY
    task = world.start()
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ("jobs", "shop", world.name) in world.cluster.objects


async def test_a_task_that_is_cancelled_waits_for_no_api_server_that_is_away(world):
    task = await world.begun()
    world.cluster.fail["everything"] = AWAY
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- its output


async def test_a_long_log_is_its_end_from_the_beginning_of_a_line(world):
    whole = b"".join(b"line %d\n" % number for number in range(5000))
    world.cluster.log = (whole, len(whole))
    task = await world.begun(limit_bytes=1000)
    world.exits(0)
    stdout = (await ended(task)).stdout
    assert stdout.truncated
    assert stdout.total_bytes == len(whole)
    mark, first, *_, last = stdout.text.strip().split("\n")
    assert (first.split(" ")[0], last) == ("line", "line 4999")
    assert mark == f"[... {len(whole) - len(stdout.text.encode()) + len(mark) + 2} bytes cut ...]"
    assert len(stdout.text) <= 1000 + len(mark) + 2


async def test_a_log_of_unknown_length_is_cut(world):
    world.cluster.log = (b"rest of a line\nwhole line\n", None)
    task = await world.begun()
    world.exits(0)
    stdout = (await ended(task)).stdout
    assert (stdout.text, stdout.truncated) == ("whole line\n", True)


async def test_secrets_do_not_get_out():
    template = executor("env: [{name: DB_PASSWORD, value: hunter22}, {name: MODE, value: dry-run}]")
    world = JobWorld(job(function(), template))
    world.cluster.log = (b"login hunter22 with t0psecret, dry-run\n", 39)
    task = await world.begun(redactor=Redactor([b"t0psecret"]))
    world.exits(3)
    assert (await ended(task)).stdout.text == "login [redacted] with [redacted], dry-run\n"


def test_half_a_secret_at_the_cut_does_not_get_out_either():
    secret = b"correct-horse-battery-staple"
    whole = b"x" * 1000 + secret + b"y" * 90
    redactor = Redactor([secret, b"battery"])
    for kept in range(60, 130):
        text = log_output(whole[-kept:], len(whole), 200, redactor).text
        assert not any(part in text for part in ("rect", "horse", "battery", "stap", "aple"))
        assert text.endswith("y" * min(kept, 90))


async def test_errors_say_no_secret():
    template = executor("env: [{name: DB_PASSWORD, value: hunter22}]")
    world = JobWorld(job(function(), template))
    world.cluster.fail["create jobs"] = ClusterRefused('invalid: env[0].value: "hunter22"', status=422)
    result = await ended(world.start())
    assert result.error.message.endswith('was not made: invalid: env[0].value: "[redacted]"')


async def test_a_log_that_is_refused_is_a_note(world):
    world.cluster.fail["log"] = ClusterRefused("does not let jane get the log of pods", status=403)
    task = await world.begun()
    world.exits(0)
    result = await ended(task)
    assert result.outcome == "succeeded"
    assert result.notes == ["its log could not be read: does not let jane get the log of pods"]


async def test_retry_after_is_heeded(world):
    world.cluster.fail["everything"] = ClusterUnavailable("slow down", retry_after_seconds=20, status=429)
    task = world.start()
    await world.time.advance(19)
    assert len(world.cluster.asked) == 1
    await world.time.advance(1)
    assert len(world.cluster.asked) == 2
    assert (await ended(task)).outcome == "unreachable"
