"""Users of a broker: names, rules, hashes, and files that two commands may change at once."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bus import access, passwords
from agent.bus.accounts import MosquittoFiles, NatsFiles, UnknownUserError, read, replace, write_secret
from agent.contract.errors import BadInput, InvalidSettings
from agent.contract.topics import Topics
from tests.agents import PROJECT
from tests.brokers import mosquitto_binary

TOPICS = Topics()
SHIPPED = PROJECT / "manifests" / "broker" / "mosquitto" / "acl"
LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
#: Each is special to a topic, a pattern, a password file, a configuration, or is somebody else's name.
BAD_NAMES = (
    "",
    "+",
    "#",
    "a/b",
    "a+b",
    "a#",
    "a:b",
    "a b",
    "a\nb",
    "A",
    "a_b",
    "-a",
    "a-",
    "a.b",
    "$a",
    "a" * 64,
    "ä",
    '"',
)


# -- names and rules


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_would_break_a_rule_or_a_file_is_refused(name):
    with pytest.raises(BadInput):
        access.agents_of(name, TOPICS)
    with pytest.raises(BadInput):
        access.coordinator(name, None, TOPICS)
    with pytest.raises(BadInput):
        access.coordinator("fine", [name], TOPICS)
    with pytest.raises(BadInput):
        access.agent_of_pod(name, "db-0", TOPICS)


@given(namespace=LABELS, pod=LABELS, other=LABELS)
def test_no_two_kinds_of_user_have_one_name(namespace, pod, other):
    kinds = [
        access.agents_of(namespace, TOPICS).name,
        access.agent_of_pod(namespace, pod, TOPICS).name,
        access.coordinator(other, None, TOPICS).name,
        access.NATS_NOBODY,
    ]
    assert len(set(kinds)) == 4
    with pytest.raises(BadInput):
        access.label("namespace", kinds[2])  # so the pattern with its name in it covers no namespace


def test_a_name_too_long_for_a_certificate_is_refused_with_the_limit():
    with pytest.raises(InvalidSettings, match=r"has 67 characters; .* at most 64"):
        access.agent_of_pod("shop", "d" * 62, TOPICS)


def test_the_shipped_rules_are_those_that_the_command_begins_with():
    assert SHIPPED.read_text(encoding="utf-8") == access.mosquitto_base(TOPICS)


@given(names=st.lists(LABELS, unique=True, max_size=5), chosen=st.integers(0, 4))
def test_a_section_comes_and_goes_and_leaves_the_others(names, chosen):
    base = access.mosquitto_base(TOPICS) + "\n# a line of the operator's own\ntopic read own/#\n"
    text = base
    users = [access.coordinator(name, [name], TOPICS) for name in names]
    for user in users:
        text = access.mosquitto_with(access.mosquitto_with(text, user), user)
    for user in users:
        assert text.count(f"\nuser {user.name}\n") == 1
        assert access.mosquitto_has(text, user.name)
    if chosen < len(users):
        without = access.mosquitto_without(text, users[chosen].name)
        assert not access.mosquitto_has(without, users[chosen].name)
        assert sum(access.mosquitto_has(without, user.name) for user in users) == len(users) - 1
    for user in users:
        text = access.mosquitto_without(text, user.name)
    assert text.split() == base.split()


def test_a_section_without_its_end_is_not_guessed_at():
    text = access.mosquitto_with(access.mosquitto_base(TOPICS), access.coordinator("a", None, TOPICS))
    broken = text.replace("# podhook: end of coordinator_a\n", "")
    with pytest.raises(InvalidSettings, match="no '# podhook: end of coordinator_a'"):
        access.mosquitto_without(broken, "coordinator_a")


@pytest.mark.parametrize(
    ("user", "publish", "subscribe"),
    [
        (
            access.agents_of("shop", TOPICS),
            ["podhook.v1.agents.shop.*.presence", "podhook.v1.runs.*.*.shop.*"],
            ["podhook.v1.agents.shop.*.commands", "podhook.v1.agents.shop.*.presence"],
        ),
        (
            access.coordinator("a", ["shop", "billing"], TOPICS, prunes=True),
            [
                "podhook.v1.agents.shop.*.commands",
                "podhook.v1.agents.billing.*.commands",
                "podhook.v1.agents.shop.*.presence",
                "podhook.v1.agents.billing.*.presence",
            ],
            ["podhook.v1.agents.*.*.presence", "podhook.v1.runs.coordinator_a", "podhook.v1.runs.coordinator_a.>"],
        ),
        (
            access.agent_of_pod("shop", "db.x-0", TOPICS),
            ["podhook.v1.agents.shop.db//x-0.presence", "podhook.v1.runs.*.*.shop.db//x-0"],
            ["podhook.v1.agents.shop.db//x-0.commands", "podhook.v1.agents.shop.db//x-0.presence"],
        ),
    ],
)
def test_topics_become_nats_subjects(user, publish, subscribe):
    made = access.nats_user(user, "hash")
    assert made["permissions"] == {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}}
    assert made["allowed_connection_types"] == ["MQTT"]


# -- hashes


def test_the_hash_is_mosquittos_own(tmp_path):
    """mosquitto_passwd, with its salt, comes to what we come to."""
    file = tmp_path / "passwords"
    tool = mosquitto_binary("mosquitto_passwd")
    subprocess.run([tool, "-c", "-b", file, "shop", "the password"], check=True, timeout=10)
    theirs = file.read_text(encoding="ascii").strip().partition(":")[2]
    _, kind, rounds, salt, _ = theirs.split("$")
    import base64

    assert (kind, int(rounds)) == ("7", passwords.PBKDF2_ROUNDS)
    assert passwords.mosquitto_hash("the password", base64.b64decode(salt)) == theirs
    assert passwords.mosquitto_hash("the passwore", base64.b64decode(salt)) != theirs


def test_passwords_and_salts_are_new_each_time():
    made = {passwords.new_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) >= 43 for each in made), "256 bits"
    assert passwords.mosquitto_hash("x") != passwords.mosquitto_hash("x")
    assert passwords.bcrypt_hash("x") != passwords.bcrypt_hash("x")


def test_without_bcrypt_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(passwords, "_by_package", lambda *_: b"")
    monkeypatch.setattr(passwords, "_by_system", lambda *_: b"*0")
    with pytest.raises(InvalidSettings, match="pip install bcrypt"):
        passwords.bcrypt_hash("x")


# -- files


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_reads_them_and_no_password_stands_there(tmp_path):
    os.umask(os.umask(0))
    files, secret = MosquittoFiles(tmp_path / "auth", TOPICS), tmp_path / "secret"
    assert files.put(access.agents_of("shop", TOPICS), "pass word", patterned=True, needs_none=False) is False
    assert (
        NatsFiles(tmp_path / "nats").put(
            access.agents_of("shop", TOPICS), "pass word", patterned=True, needs_none=False
        )
        is False
    )
    write_secret(secret, "shop", "pass word")
    for path in (tmp_path / "auth" / "passwords", tmp_path / "auth" / "acl", tmp_path / "nats" / "users.conf"):
        assert mode(path) == 0o600
        assert "pass word" not in path.read_text()
    assert {path.name: (mode(path), path.read_text()) for path in secret.iterdir()} == {
        "user": (0o600, "shop"),
        "password": (0o600, "pass word"),
    }
    assert mode(secret) == 0o700
    assert sorted(path.name for path in (tmp_path / "auth").iterdir()) == [".lock", "acl", "passwords"]


def test_a_file_that_its_group_may_read_stays_so_and_nobody_elses(tmp_path):
    file = tmp_path / "passwords"
    file.write_text("")
    file.chmod(0o664)
    replace(file, "x")
    assert mode(file) == 0o640


def test_a_file_that_cannot_be_replaced_is_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "passwords"
    file.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidSettings, match=r"passwords: No space left"):
        replace(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["passwords"]
    assert read(file) == "old"


def test_lines_of_others_stay_and_broken_ones_are_named(tmp_path):
    files = MosquittoFiles(tmp_path, TOPICS)
    (tmp_path / "passwords").write_text("ann:$6$x$y\n\nshop:$7$old\n")
    assert files.put(access.agents_of("shop", TOPICS), "new", patterned=True, needs_none=False) is True
    lines = (tmp_path / "passwords").read_text().splitlines()
    assert lines[0] == "ann:$6$x$y"
    assert [line.partition(":")[0] for line in lines] == ["ann", "shop"]
    (tmp_path / "passwords").write_text("ann\n")
    with pytest.raises(InvalidSettings, match="line 1, is not `user:hash`"):
        files.remove("shop")


def test_another_topic_root_than_the_rules_have_is_refused(tmp_path):
    (tmp_path / "acl").write_bytes(SHIPPED.read_bytes())
    files = MosquittoFiles(tmp_path, Topics("other"))
    with pytest.raises(InvalidSettings, match="other/v1/agents/%u"):
        files.put(access.agents_of("shop", Topics("other")), "x", patterned=True, needs_none=False)


def test_who_is_not_there_is_not_removed(tmp_path):
    with pytest.raises(UnknownUserError, match="no user shop"):
        MosquittoFiles(tmp_path, TOPICS).remove("shop")
    with pytest.raises(UnknownUserError, match="no user shop"):
        NatsFiles(tmp_path).remove("shop")


def test_the_last_user_of_nats_leaves_one_that_lets_nobody_in(tmp_path):
    """A NATS server without users lets everybody in."""
    files = NatsFiles(tmp_path)
    files.put(access.agents_of("shop", TOPICS), "x", patterned=True, needs_none=False)
    files.remove("shop")
    (left,) = access.nats_users(read(tmp_path / "users.conf"))
    assert left["user"] == access.NATS_NOBODY
    assert left["permissions"] == {"publish": {"deny": [">"]}, "subscribe": {"deny": [">"]}}


@pytest.mark.parametrize("text", ["users: [", "users: [1]", 'users: [{"name": "x"}]', "accounts: {}", "{}"])
def test_users_of_nats_that_somebody_else_wrote_are_left_alone(tmp_path, text):
    (tmp_path / "users.conf").write_text(text)
    with pytest.raises(InvalidSettings, match="not as `podhook broker user` writes them"):
        NatsFiles(tmp_path).put(access.agents_of("shop", TOPICS), "x", patterned=True, needs_none=False)
    assert (tmp_path / "users.conf").read_text() == text


# -- the command


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent", "broker", "user", *map(str, arguments)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    return out, err


@pytest.mark.parametrize("server", ["mosquitto", "nats"])
def test_commands_at_the_same_time_lose_no_user(tmp_path, server):
    names = [f"ns-{number}" for number in range(6)]
    running = [start(name, "--for", server, "--files", tmp_path, "--secret", tmp_path / name) for name in names]
    for each in running:
        finish(each)
    if server == "nats":
        found = {each["user"] for each in access.nats_users(read(tmp_path / "users.conf"))} - {access.NATS_NOBODY}
    else:
        found = {line.partition(":")[0] for line in read(tmp_path / "passwords").splitlines()}
    assert found == set(names)


def test_a_password_is_printed_only_when_that_is_asked_for(tmp_path):
    out, err = finish(start("shop", "--files", tmp_path, "--secret", tmp_path / "s"))
    password = (tmp_path / "s" / "password").read_text()
    assert out == ""
    assert password not in err
    out, err = finish(start("shop", "--files", tmp_path, "--print"))
    assert len(out.strip()) >= 43
    assert out.strip() != password
    assert out.strip() not in err
    assert "changed shop" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shop"], "--secret DIR, or --print"),
        (["a/b", "--print"], "not a Kubernetes name"),
        (["a:b", "--print"], "not a Kubernetes name"),
        (["a.b", "--print"], "no dot"),
        (["nightly", "--coordinator", "--print"], "whose agents it may command"),
        (["nightly", "--coordinator", "-A", "-n", "shop", "--print"], "contradict each other"),
        (["nightly", "--coordinator", "-n", "+", "--print"], "not a Kubernetes name"),
        (["shop", "-n", "billing", "--print"], "are for a --coordinator"),
        (["shop", "--pod", "db-0", "--print"], "with --certificate"),
        (["shop", "--certificate", "--for", "nats"], "NATS users here have passwords"),
        (["shop", "--keep-password"], "no user shop"),
        (["shop", "--keep-password", "--print"], "no password is made"),
        (["shop", "--remove"], "no user shop"),
        (["nightly", "--coordinator", "--remove"], "no user coordinator_nightly"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(tmp_path, arguments, said):
    _, err = finish(start(*arguments, "--files", tmp_path / "auth"), code=2)
    assert said in " ".join(err.split()).replace("│ ", "")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_nats_files_are_read_back_as_written(tmp_path):
    files = NatsFiles(tmp_path)
    files.put(access.coordinator("a", None, TOPICS), "x", patterned=False, needs_none=False)
    before = access.nats_users(read(tmp_path / "users.conf"))
    files.put(access.coordinator("a", ["shop"], TOPICS), None, patterned=False, needs_none=False)
    after = access.nats_users(read(tmp_path / "users.conf"))
    assert before[1]["password"] == after[1]["password"]
    assert json.dumps(before) != json.dumps(after)
