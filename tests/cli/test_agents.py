"""`podhook agents`: who is there, and what changes."""

from __future__ import annotations

import json

import pytest

from tests.brokers import free_port, poll

pytestmark = [pytest.mark.broker, pytest.mark.processes]


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_the_table_shows_each_agent(shared):
    done = shared("agents")
    assert done.returncode == 0
    for pod in ("db-0", "db-1"):
        [row] = [line for line in done.stdout.splitlines() if pod in line]
        assert row.split()[:5] == ["default", pod, "online", "agent", "app=db"]


def test_json_is_one_object_an_agent(shared):
    found = lines(shared("agents", "-o", "json").stdout)
    assert [each["pod"] for each in found] == ["db-0", "db-1"]
    keys = {
        "namespace",
        "pod",
        "pod_uid",
        "state",
        "version",
        "started_at",
        "clock",
        "skew_seconds",
        "labels",
        "containers",
        "owners",
        "unsigned",
        "problems",
    }
    for each in found:
        assert each.keys() >= keys
        assert (each["state"], each["labels"], each["unsigned"]) == ("online", {"app": "db"}, True)


def test_the_skew_of_each_clock_is_measured(shared):
    found = lines(shared("agents", "-o", "json").stdout)
    assert all(abs(each["skew_seconds"]) < 1 for each in found), found
    [row] = [line for line in shared("agents").stdout.splitlines() if "db-0" in line]
    assert row.split()[-1] in ("+0.0s", "-0.0s")


def test_who_is_gone_for_good_is_pruned_and_who_lives_stays(cli):
    cli.agent("db-0")
    gone = cli.agent("db-1")
    cli.online("db-0", "db-1")
    gone.process.kill()
    poll(lambda: "offline" in cli("agents").stdout, "the will speaks", 20)
    done = cli("agents", "--prune", "-o", "json")
    assert done.returncode == 0
    assert "cleared the presence of default/db-1, which was offline" in done.stderr
    assert "db-0" not in done.stderr
    assert [each["pod"] for each in lines(done.stdout)] == ["db-0"]
    assert [each["pod"] for each in lines(cli("agents", "-o", "json").stdout)] == ["db-0"]
    assert "cleared" not in cli("agents", "--prune").stderr, "there is nothing left to prune"


def test_prune_goes_no_further_than_namespace_and_selector(cli):
    gone = cli.agent("db-0", "shop")
    cli.online("db-0")
    gone.process.kill()
    poll(lambda: "offline" in cli("agents").stdout, "the will speaks", 20)
    assert "cleared" not in cli("agents", "--prune", "-n", "lab").stderr
    assert "cleared" not in cli("agents", "--prune", "-l", "app=web").stderr
    assert "cleared" in cli("agents", "--prune", "-n", "shop", "-l", "app=db").stderr


def test_nobody_is_told_as_such(cli):
    done = cli("agents")
    assert (done.returncode, "no agents" in done.stdout) == (0, True)
    assert cli("agents", "-o", "json").stdout == ""


def test_namespace_and_selector_narrow_it(cli):
    cli.agent("db-0", "shop")
    cli.agent("web-0", "lab", labels='app="web"\n')
    cli.online("db-0", "web-0")

    def pods(*arguments):
        return [each["pod"] for each in lines(cli("agents", "-o", "json", *arguments).stdout)]

    assert pods() == ["web-0", "db-0"]  # lab, shop
    assert pods("-n", "shop") == ["db-0"]
    assert pods("-l", "app in (web, none)") == ["web-0"]
    assert pods("-n", "shop", "-l", "app=web") == []


def test_what_is_wrong_with_an_agent_is_told_in_a_sentence(cli):
    cli.agent("db-0", ALLOW_UNSIGNED="false")
    cli.online("db-0")
    done = cli("agents")
    assert "default/db-0: every trigger is refused: no trusted key" in done.stdout


def test_watch_shows_who_comes_vanishes_and_goes(cli):
    watching = cli.start("agents", "--watch", "-o", "json")
    agent = cli.agent("db-0")

    def told(state):
        return any(each["pod"] == "db-0" and each["state"] == state for each in lines("".join(watching.out)))

    poll(lambda: told("online"), "online is told", 20)
    agent.process.kill()
    poll(lambda: told("offline"), "offline is told", 20)
    back = cli.agent("db-0")
    poll(lambda: lines("".join(watching.out))[-1]["state"] == "online", "online again", 20)
    back.process.terminate()
    poll(lambda: told("gone"), "gone is told", 20)
    watching.interrupt()
    assert watching.wait() == 130
    assert "Traceback" not in "".join(watching.err)


def test_watch_as_a_table_shows_a_change_of_labels(cli):
    cli.agent("db-0")
    cli.online("db-0")
    watching = cli.start("agents", "--watch")
    poll(lambda: any("app=db" in line for line in watching.out), "the first table", 20)
    (cli.directory / "agent-default-db-0" / "labels").write_text('app="db"\ntier="primary"\n')
    poll(lambda: any("tier=primary" in line for line in watching.out), "the change", 20)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-l", "a in"], 2, "cannot read 'a in'"),
        (["-n", "No_Name"], 2, "is not a Kubernetes name"),
        (["--broker", "http://x"], 2, "write mqtt://HOST:PORT"),
        (["--broker", "mqtt://127.0.0.1:{port}"], 4, "cannot reach the broker"),
    ],
)
def test_what_goes_wrong_has_an_exit_code_and_a_sentence(cli, arguments, code, said):
    done = cli("agents", *(argument.format(port=free_port()) for argument in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
