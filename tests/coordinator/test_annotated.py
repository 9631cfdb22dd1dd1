"""Hooks from the pods' own annotations: who runs what, all at once or nothing, and what a failure amounts to."""

from __future__ import annotations

import asyncio
import json

import pytest

from agent.contract.errors import InvalidHook
from agent.contract.velero import PodCommand
from agent.coordinator import Verdict
from agent.coordinator.annotated import AnnotatedPod, Terms, groups_of, run_annotated
from agent.coordinator.kubernetes.annotations import annotated_pod
from agent.coordinator.targets import PodSeen
from tests.coordinator.conftest import Heard, until

PRE = "pre.hook.backup.velero.io/"


def pod(name, script=None, *, container="agent", namespace="default", uid=None, seen=None, **more):
    """A pod whose agent's container runs a shell script before the backup."""
    said = {PRE + key.replace("_", "-"): value for key, value in more.items()}
    if script is not None:
        said |= {PRE + "command": json.dumps(["/bin/sh", "-c", script]), PRE + "container": container}
    seen = PodSeen(namespace, name, uid or f"uid-{namespace}-{name}", **(seen or {}))
    return AnnotatedPod(seen, said)


def names(group):
    return [each.name for each in group.pods]


# -- which pods run what


def test_pods_that_say_the_same_are_one_run_and_those_that_say_nothing_are_counted():
    pods = [pod("b", "x"), pod("d"), pod("a", "x"), pod("c", "y"), pod("e", "x", timeout="5s"), pod("f")]
    groups, notes = groups_of(pods, "pre")
    assert [names(each) for each in groups] == [["a", "b"], ["c"], ["e"]]
    assert groups[0].command == PodCommand(("/bin/sh", "-c", "x"), "agent")
    assert notes == ("2 pods have no pre.hook.backup.velero.io/command, and run nothing",)
    assert groups_of(pods, "post")[0] == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [({"phase": "Succeeded"}, "Succeeded"), ({"phase": "Pending"}, "Pending"), ({"deleting": True}, "being deleted")],
)
def test_pods_that_do_not_run_count_for_nothing_whatever_is_written_on_them(seen, said):
    groups, notes = groups_of([pod("a", "x"), pod("b", "x", timeout="no", seen=seen), pod("c", seen=seen)], "pre")
    assert [names(each) for each in groups] == [["a"]]
    assert notes == (f"not counted, for they are not running: default/b ({said})",)


def test_every_problem_of_every_pod_is_told_with_pod_annotation_and_value():
    with pytest.raises(InvalidHook) as raised:
        groups_of([pod("b", "x", timeout="30"), pod("a", "x", on_error="no", timeout="-1s"), pod("c", "x")], "pre")
    assert [str(each)[:60] for each in raised.value.problems] == [
        "default/a: pre.hook.backup.velero.io/on-error: 'no' is neith",
        "default/a: pre.hook.backup.velero.io/timeout: '-1s' is negat",
        "default/b: pre.hook.backup.velero.io/timeout: '30' is not a ",
    ]


def test_a_pod_as_the_api_server_lists_it():
    listed = {
        "metadata": {
            "namespace": "shop",
            "name": "db-0",
            "uid": "6f1c",
            "annotations": {"a": "b"},
            "labels": {"app": "db"},
        },
        "spec": {
            "initContainers": [{"name": "setup"}, {"name": "agent", "restartPolicy": "Always"}],
            "containers": [{"name": "mysql"}, {"name": "metrics"}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    seen = PodSeen("shop", "db-0", "6f1c", {"app": "db"}, "Running", True, False, (), "10.0.0.7")
    assert annotated_pod(listed) == AnnotatedPod(seen, {"a": "b"}, ("mysql", "metrics", "agent"))
    listed["metadata"]["deletionTimestamp"] = "2026-03-01T02:30:00Z"
    listed["status"] = {}
    read = annotated_pod(listed).seen
    assert (read.deleting, read.phase, read.ready) == (True, "", False)


# -- through real agents


async def run(fleet, pods, when="pre", on_event=lambda _: None, **terms):
    async with fleet.coordinator() as coordinator:
        return await run_annotated(coordinator, pods, when, terms=Terms(**terms), on_event=on_event)


def outcomes(done):
    return {each.target.pod: str(each.result.outcome) for one in done.runs for each in one.targets}


async def test_different_commands_run_in_their_own_pods_all_at_once(fleet, tmp_path):
    """Each waits for all the others to have begun, and so must run beside them."""
    everybody = ["db-0", "db-1", "web-0"]
    await fleet.spawn(*everybody, "idle")
    wait = f"while [ $(ls {tmp_path} | grep -c began) -lt 3 ]; do sleep 0.02; done"
    pods = [
        pod("db-0", f"touch {tmp_path}/began-$$; {wait}; echo database"),
        pod("db-1", f"touch {tmp_path}/began-$$; {wait}; echo database"),
        pod("web-0", f"touch {tmp_path}/began-$$; {wait}; echo web", timeout="1m"),
        pod("idle"),
    ]
    heard = Heard()
    done = await run(fleet, pods, on_event=heard)
    assert done.verdict is Verdict.SUCCEEDED
    assert outcomes(done) == dict.fromkeys(everybody, "succeeded")
    assert [one.hook for one in done.runs] == ["velero-pre-1", "velero-pre-2"]
    assert {t.target.pod: t.result.stdout.text.strip() for one in done.runs for t in one.targets} == {
        "db-0": "database",
        "db-1": "database",
        "web-0": "web",
    }
    assert done.runs[0].notes[0] == "1 pod has no pre.hook.backup.velero.io/command, and runs nothing"
    assert "ran '/bin/sh' in container agent" in done.runs[1].notes
    assert heard.of("started").count("idle") == 0
    assert len({one.run_id for one in done.runs}) == 2


async def test_what_looks_like_a_template_reaches_the_shell_as_it_stands(fleet):
    await fleet.start("db-0")
    done = await run(fleet, [pod("db-0", "echo '{{ .Name }}' ${NEVER_SET:=from-the-shell}")])
    assert done.runs[0].targets[0].result.stdout.text == "{{ .Name }} from-the-shell\n"


async def test_a_failure_fails_the_whole_unless_its_pods_say_continue(fleet):
    await fleet.start("db-0", "db-1")
    failing = pod("db-1", "exit 3", on_error="Continue")
    done = await run(fleet, [pod("db-0", "exit 0"), failing])
    assert (done.verdict, outcomes(done)) == (Verdict.SUCCEEDED, {"db-0": "succeeded", "db-1": "failed"})
    assert done.tolerated == {done.runs[1].run_id}
    assert done.runs[1].verdict is Verdict.FAILED
    assert "its failure does not count: the pods say on-error: Continue" in done.runs[1].notes
    done = await run(fleet, [pod("db-0", "exit 4"), failing])
    assert (done.verdict, outcomes(done)) == (Verdict.FAILED, {"db-0": "failed", "db-1": "failed"})
    assert (await run(fleet, [failing])).verdict is Verdict.SUCCEEDED


async def test_the_timeout_of_each_pod_is_its_own(fleet):
    await fleet.start("db-0", "db-1")
    done = await run(fleet, [pod("db-0", "sleep 0.5"), pod("db-1", "sleep 60", timeout="400ms")])
    assert outcomes(done) == {"db-0": "succeeded", "db-1": "timed_out"}


async def test_a_pod_without_a_live_agent_stops_all_before_anything_is_triggered(fleet, diary):
    await fleet.start("db-0")
    pods = [pod("db-0", diary.note()), pod("db-1", "echo other"), pod("db-2", "echo third")]
    done = await run(fleet, pods)
    assert (done.verdict, diary.lines) == (Verdict.NOT_STARTED, [])
    (told,) = done.runs
    assert told.error.code == "missing_agents"
    assert "default/db-1 (no agent has said that it is there), default/db-2" in told.error.message
    done = await run(fleet, pods, allow_missing=True)
    assert (done.verdict, outcomes(done), len(diary.lines)) == (Verdict.SUCCEEDED, {"db-0": "succeeded"}, 1)
    assert "went on without 2 pods that have no live agent: default/db-1, default/db-2" in done.runs[0].notes


async def test_a_pod_of_another_uid_is_no_agent(fleet, diary):
    await fleet.start("db-0")
    done = await run(fleet, [pod("db-0", diary.note(), uid="newer")])
    assert (done.runs[0].error.code, diary.lines) == ("missing_agents", [])
    assert "has newer" in done.runs[0].error.message


async def test_a_problem_anywhere_stops_all_before_anything_is_triggered(fleet, diary):
    await fleet.start("db-0", "db-1")
    with pytest.raises(InvalidHook, match=r"default/db-1: pre\.hook\.backup\.velero\.io/command: .*not JSON"):
        await run(fleet, [pod("db-0", diary.note()), pod("db-1", command="[oops")])
    with pytest.raises(
        InvalidHook, match=r"default/db-1: pre\.hook\.backup\.velero\.io/command: action: has \d+ bytes"
    ):
        await run(fleet, [pod("db-0", diary.note()), pod("db-1", "\x01" * 60_000)])  # six bytes each, as sent
    assert diary.lines == []


async def test_nothing_to_run_is_said(fleet):
    async with fleet.coordinator() as coordinator:
        done = await run_annotated(coordinator, [pod("db-0")], "pre")
        assert (done.verdict, done.runs[0].error.code) == (Verdict.NOT_STARTED, "no_targets")
        assert "1 pod has no pre.hook.backup.velero.io/command" in done.runs[0].error.message
        for terms in (Terms(allow_empty=True), Terms(expect=0)):
            assert (await run_annotated(coordinator, [pod("db-0")], "pre", terms=terms)).verdict is Verdict.SUCCEEDED
        done = await run_annotated(coordinator, [pod("db-0", "x"), pod("db-1")], "pre", terms=Terms(expect=2))
        assert done.runs[0].error.code == "unexpected_count"
        assert "1 running pods have a hook" in done.runs[0].error.message


async def test_cancelling_the_task_cancels_every_run(fleet, diary):
    await fleet.spawn("db-0", "db-1")
    pods = [pod("db-0", f"{diary.note('a')}; exec sleep 60"), pod("db-1", f"{diary.note('b')}; exec sleep 61")]
    heard = Heard()
    async with fleet.coordinator() as coordinator:
        task = asyncio.create_task(run_annotated(coordinator, pods, "pre", on_event=heard))
        await until(lambda: len(diary.lines) == 2, "both began")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sorted(heard.of("outcome")) == ["db-0", "db-1"]
    assert {str(each.result.outcome) for each in heard.events if each.kind == "outcome"} == {"cancelled"}


async def test_cancelling_the_coordinator_cancels_every_run_those_that_may_fail_too(fleet, diary):
    await fleet.spawn("db-0", "db-1")
    pods = [
        pod("db-0", f"{diary.note('a')}; exec sleep 60", on_error="Continue"),
        pod("db-1", f"{diary.note('b')}; exec sleep 61", on_error="Continue"),
    ]
    async with fleet.coordinator() as coordinator:
        task = asyncio.create_task(run_annotated(coordinator, pods, "pre"))
        await until(lambda: len(diary.lines) == 2, "both began")
        coordinator.cancel()
        done = await task
    assert (done.verdict, set(outcomes(done).values())) == (Verdict.CANCELLED, {"cancelled"})


async def test_cancelled_while_it_looks_who_is_there_nothing_begins(fleet, diary):
    await fleet.start("db-0")
    async with fleet.coordinator() as coordinator:
        pods = [pod("db-0", diary.note()), pod("gone", "x")]  # one that is missing makes it wait for the broker's quiet
        task = asyncio.create_task(run_annotated(coordinator, pods, "pre", terms=Terms(allow_missing=True)))
        await asyncio.sleep(0)
        coordinator.cancel()
        done = await task
    assert (done.verdict, done.runs[0].error.code, diary.lines) == (Verdict.CANCELLED, "cancelled", [])
