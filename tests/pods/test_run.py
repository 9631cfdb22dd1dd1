"""The guide's hooks in a real database's container, by the command that people use: `podhook run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pods.broker import BrokerPod, heard_of
from tests.pods.images import PROJECT, Images
from tests.pods.play import EXAMPLES, Playground, Pod
from tests.pods.stand_ins import Manifest

pytestmark = pytest.mark.pods

PASSWORD = "a-password"  # the guide's hooks do not quote it
GUIDE = EXAMPLES.parent / "guide"
RUN_SECONDS = 60
#: MariaDB has no super_read_only: its read_only binds everybody but who may override it.
RENAMED = ("super_read_only", "read_only")


@pytest.fixture(scope="module")
def mysql(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """The MariaDB example under the names that the guide's files use."""
    manifest = Manifest.read(EXAMPLES / "mariadb.yaml")
    manifest.pod["metadata"]["labels"]["app"] = "my-app"
    described = manifest.pod["metadata"]["annotations"]
    described["podhook.dev/pod"] = described["podhook.dev/pod"].replace('"mariadb"', '"mysql"')
    manifest.container("mariadb")["name"] = "mysql"
    secrets = {"mariadb": {"root-password": PASSWORD}}
    chosen = {"mysql": images.mariadb, "agent": images.agent}
    with Pod(playground, manifest, chosen, secrets=secrets, hosts=broker_pod.hosts) as pod:
        yield pod


def podhook_run(
    broker: BrokerPod, pod: Pod, hook: str | Path, *, selector: str = ""
) -> subprocess.CompletedProcess[str]:
    """`podhook run` on a file, or on a text as standard input; `selector` is for what other tests have pods of, too."""
    file, text = (str(hook), None) if isinstance(hook, Path) else ("-", hook)
    command = [sys.executable, "-m", "agent", "run", file, "-n", pod.namespace, "-o", "json"]
    command += ["--expect", "1", *(["-l", selector] if selector else [])]
    env = {**os.environ, **broker.coordinator}
    return subprocess.run(
        command, cwd=PROJECT, env=env, input=text, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )


def succeeded(ended: subprocess.CompletedProcess[str]) -> str:
    """What the one command printed, if the run succeeded; the agent's key vouches for it."""
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (target,) = json.loads(ended.stdout)["targets"]
    assert target["verified"] is True
    return str(target["stdout"])


async def test_the_guides_mysql_hooks_do_to_a_real_server_what_they_say(broker_pod: BrokerPod, mysql: Pod) -> None:
    def sql(statement: str) -> str:
        return mysql.exec("mysql", "mariadb", "-uroot", f"-p{PASSWORD}", "-N", "-e", statement).stdout

    sql("create database companyRecord; create table companyRecord.employee (id int); create user app; "
        "grant insert on companyRecord.* to app")  # fmt: skip

    def app_writes() -> bool:
        insert = "insert into companyRecord.employee values (1)"
        said = mysql.exec("mysql", "mariadb", "-uapp", "-e", insert, check=False)
        assert said.returncode == 0 or "read-only" in said.stderr, said.stderr
        return said.returncode == 0

    await heard_of(broker_pod, mysql)
    assert app_writes()
    for name, writable in (("exec-mysql-read-only", False), ("exec-mysql-writable", True)):
        text = (GUIDE / f"{name}.yaml").read_text(encoding="utf-8").replace(*RENAMED)
        succeeded(podhook_run(broker_pod, mysql, text))
        assert app_writes() is writable, f"after {name}"
    succeeded(podhook_run(broker_pod, mysql, GUIDE / "exec-mysql-rename-table.yaml"))
    assert sql("show tables in companyRecord") == "salaryRecord\n"
    succeeded(podhook_run(broker_pod, mysql, GUIDE / "exec-mysql-drop-database.yaml"))
    assert "companyRecord" not in sql("show databases")


async def test_the_hooks_beside_the_example_pods_run_in_them(broker_pod: BrokerPod, mariadb: Pod) -> None:
    def read_only() -> str:
        query = 'exec mariadb -uroot -p"$MYSQL_ROOT_PASSWORD" -Ne "select @@global.read_only"'
        return mariadb.exec("mariadb", "sh", "-c", query).stdout.strip()

    await heard_of(broker_pod, mariadb)
    for name, expected in (("mariadb-read-only", "1"), ("mariadb-writable", "0")):
        hook = EXAMPLES.parent / "hooks" / f"{name}.yaml"
        succeeded(podhook_run(broker_pod, mariadb, hook, selector=f"app=mariadb,pod-uid={mariadb.uid}"))
        assert read_only() == expected, f"after {name}"


BRACKET = r"""
action:
  exec:
    command:
      - psql
      - --username=postgres
      - --tuples-only
      - --no-align
      - --set=ON_ERROR_STOP=1
      - --command=select pg_backup_start('hook', true)
      - --command=select lsn from pg_backup_stop()
executor: {type: Pod, pod: {selector: app=postgresql}}
"""
CHECKPOINT = """
action:
  exec: {command: [psql, -U, postgres, -c, CHECKPOINT]}
  containerName: postgresql
executor: {type: Pod, pod: {selector: app=postgresql}}
"""


async def test_a_checkpoint_and_a_backup_bracket_in_a_real_postgresql(broker_pod: BrokerPod, postgresql: Pod) -> None:
    def flushed() -> int:
        query = "select checkpoint_lsn - '0/0' from pg_control_checkpoint()"
        return int(postgresql.exec("postgresql", "psql", "-U", "postgres", "-Atc", query).stdout)

    await heard_of(broker_pod, postgresql)
    before = flushed()
    assert succeeded(podhook_run(broker_pod, postgresql, CHECKPOINT)) == "CHECKPOINT\n"
    assert flushed() > before
    started, stopped = succeeded(podhook_run(broker_pod, postgresql, BRACKET)).split()
    assert "/" in started
    assert "/" in stopped


async def test_a_hook_that_fails_in_the_container_fails_the_run_and_says_why(broker_pod: BrokerPod, mysql: Pod) -> None:
    await heard_of(broker_pod, mysql)
    text = (GUIDE / "exec-mysql-writable.yaml").read_text(encoding="utf-8")
    ended = podhook_run(broker_pod, mysql, text.replace("super_read_only", "no_such_variable"))
    assert ended.returncode == 1
    assert "no_such_variable" in ended.stdout, "the server's own words"
