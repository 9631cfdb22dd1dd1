"""Values of Secrets that a call fills in are taken out of what is told of the run, and said to travel."""

import base64
import json

import pytest

from agent.contract.messages import CapturedStream, Result
from agent.contract.outcomes import OutputBuffer
from agent.contract.states import Outcome
from agent.contract.templates import load_hooks
from agent.coordinator import Coordinator, HookCall
from agent.coordinator.secrets import Secrets
from tests.coordinator.conftest import Heard

SECRET = "correct-horse-battery"


def call(executor="{type: Operator}", text="echo ${PW} $HOME", **more):
    document = {"action": {"exec": {"command": ["/bin/sh", "-c", text]}}}
    hook = load_hooks(json.dumps(document)[:-1] + f', "executor": {executor}}}')[0]
    return HookCall(hook, variables={"PW": SECRET, "USER": "app"}, **more)


def secrets(**more):
    made = call(secret_variables=frozenset({"PW"}), **more)
    return Secrets.of(made, made.executor())


@pytest.mark.parametrize(
    ("executor", "says"),
    [
        (
            "{type: Pod, pod: {selector: app=db}}",
            "PW: values of Secrets stand in the trigger: whoever reads the broker",
        ),
        ("{type: Function, function: {name: f}}", "PW: values of Secrets stand in the Job: whoever may read Jobs"),
        ("{type: Operator}", None),
    ],
)
def test_where_a_secret_travels_is_said(executor, says):
    notes = secrets(executor=executor).notes
    assert notes[0].startswith(says) if says else notes == ()


@pytest.mark.parametrize("more", [{"text": "echo"}, {"params": {"PW": "given"}}])
def test_a_secret_that_is_not_filled_in_travels_nowhere(more):
    assert secrets(executor="{type: Pod, pod: {selector: app=db}}", **more).notes == ()


async def test_what_a_run_tells_has_no_secret_in_it():
    heard = Heard()
    async with Coordinator(None) as coordinator:
        run = await coordinator.run(
            call(text="echo a ${PW} b; echo ${PW} >&2; exit 3", secret_variables=frozenset({"PW"})), on_event=heard
        )
    assert SECRET not in json.dumps(run.to_json())
    assert SECRET not in str(heard.events)
    assert run.targets[0].result.stdout.text.startswith("a ")
    assert SECRET not in repr(call())


@pytest.mark.parametrize("around", [0, 8 * 1024 - 10, 8 * 1024 - len(SECRET), 40 * 1024 - 10])
def test_nor_has_the_place_where_an_agent_cut_its_output(around):
    buffer = OutputBuffer(32 * 1024)
    buffer.write(b"x" * around + SECRET.encode() + b"y" * (64 * 1024 - around))
    result = Result(outcome=Outcome.SUCCEEDED, stdout=buffer.captured())
    text = secrets().taken_out(result).stdout.text
    assert "correct-" not in text
    assert "-battery" not in text
    assert "bytes cut" in text


def test_nor_has_output_that_is_no_text():
    data = b"\xff" + SECRET.encode() + b"\xff"
    stream = CapturedStream(text=base64.b64encode(data).decode(), encoding="base64", total_bytes=len(data))
    kept = secrets().taken_out(Result(outcome=Outcome.SUCCEEDED, stdout=stream)).stdout
    assert kept.encoding == "base64"
    assert SECRET.encode() not in base64.b64decode(kept.text)
