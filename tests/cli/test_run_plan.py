"""`podhook run PLAN --phase`: one list of a plan, for scripts that wrap themselves, and for what was left undone."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import script

pytestmark = [pytest.mark.broker, pytest.mark.processes]

HERE = {"type": "Operator"}


@pytest.fixture
def plan(shared, tmp_path):
    """A plan in a directory of its own; every hook notes a line there."""

    def hook(name, text, executor=HERE, **more):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(script(text, executor)))
        return {"name": name, "file": f"{name}.yaml", **more}

    def note(text):
        return f'echo "{text}" >> {tmp_path}/diary'

    pre = [hook("freeze", note("freeze ${WHAT}"), None, params={"WHAT": "all"}), hook("second", note("second"))]
    post = [
        hook("broken", "exit 3"),
        hook("thaw", note("{{ .Name }} {{ .Namespace }} {{ .Status.Phase }} <{{ .Status.Error }}>")),
        hook("alarm", note("alarm"), executionPolicy="OnFailure"),
    ]
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"preBackup": pre, "postBackup": post}))
    return path


def diary(plan):
    file = plan.parent / "diary"
    return file.read_text().splitlines() if file.exists() else []


def test_a_pre_list_runs_in_order_with_the_parameters_of_the_plan(shared, plan):
    done = shared("run", plan, "--phase", "preBackup", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert diary(plan) == ["freeze all", "freeze all", "second"]
    assert [json.loads(line)["hook"] for line in done.stdout.splitlines()] == ["freeze", "second"]


@pytest.mark.parametrize(
    ("status", "lines", "said"),
    [
        ("Succeeded", ["plan default Succeeded <>"], "postBackup[2] alarm is skipped: OnFailure"),
        ("Failed", ["plan default Failed <>", "alarm"], "failed"),
    ],
)
def test_a_post_list_runs_by_policy_and_a_hook_that_fails_does_not_keep_the_next(shared, plan, status, lines, said):
    done = shared("run", plan, "--phase", "postBackup", "--status-phase", status)
    assert (done.returncode, diary(plan)) == (1, lines), done.stderr
    assert said in done.stderr + done.stdout


def test_an_error_is_handed_to_templates_without_what_a_shell_would_read(shared, plan):
    shared("run", plan, "--phase", "postBackup", "--status-phase", "Failed", "--status-error", "dump `id` failed")
    assert diary(plan)[0] == "plan default Failed <dump ?id? failed>"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the file is a HookPlan: say which list with --phase (preBackup, postBackup"),
        (["--phase", "pre"], "--phase 'pre' is not one of preBackup"),
        (["--phase", "preRestore"], "the plan has no preRestore (it has preBackup, postBackup)"),
        (["--phase", "postBackup"], "depends on the result: give --status-phase"),
        (["--phase", "preBackup", "--status-phase", "Failed"], "runs before there is a result"),
        (["--phase", "preBackup", "--param", "A=b"], "--param has no meaning with a HookPlan"),
        (["--phase", "preBackup", "--selector", "a=b"], "--selector has no meaning with a HookPlan"),
    ],
)
def test_2_for_usage(shared, plan, arguments, said):
    done = shared("run", plan, *arguments)
    assert (done.returncode, diary(plan)) == (2, [])
    assert said in " ".join(done.stderr.split())


def test_2_for_phase_of_a_file_of_hooks(shared):
    done = shared("run", shared.file("true"), "--phase", "preBackup")
    assert done.returncode == 2
    assert "--phase is for a HookPlan, and this file holds hooks" in " ".join(done.stderr.split())
    whole = shared.file({"kind": "BackupConfiguration", "spec": {"sessions": [{"hooks": {"preBackup": []}}]}})
    done = shared("run", whole, "--phase", "preBackup")
    assert (done.returncode, "this file holds hooks" in done.stderr) == (2, False)
    assert "paste the lists below its spec.sessions[].hooks into a HookPlan" in " ".join(done.stderr.split())


def test_the_plans_namespace_is_where_its_hooks_run_unless_another_is_named(shared, plan):
    document = json.loads(plan.read_text())
    plan.write_text(json.dumps({**document, "namespace": "lab"}))
    assert shared("run", plan, "--phase", "preBackup").returncode == 3
    assert shared("run", plan, "--phase", "preBackup", "-n", "default").returncode == 0
    assert len(diary(plan)) == 3


def test_check_says_what_of_a_plan_needs_a_cluster(shared, plan):
    document = json.loads(plan.read_text())
    document["preBackup"].append({"hookTemplate": {"name": "far"}})
    plan.write_text(json.dumps(document))
    done = shared("check", plan)
    assert done.returncode == 0, done.stderr
    assert "preBackup[0] freeze: Always: valid\n" in done.stdout
    assert "preBackup[2] far: Always: the entry is valid; what it names is in a cluster" in done.stdout
    document["postBackup"][1]["params"] = {"X": "y"}
    plan.write_text(json.dumps(document))
    done = shared("check", plan)
    assert done.returncode == 2
    assert "postBackup[1]: param X: is neither declared nor used" in done.stderr
