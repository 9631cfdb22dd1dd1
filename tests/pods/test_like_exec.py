"""A command in a sibling container gets what `kubectl exec` would give it, and ends as SEMANTICS (exec) says.

One pod has a container for each kind of target; every test says in which of them it runs.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from agent.contract.errors import ErrorCode
from agent.contract.messages import Capture, OutcomeMessage, Started
from agent.contract.signing.envelope import Typ, sign
from agent.contract.signing.peeking import peek
from agent.contract.states import Outcome
from tests.agents import Client, Json, until
from tests.pods.broker import BrokerPod, NightlyClient
from tests.pods.images import Images
from tests.pods.play import Playground, Pod, beside_agent

pytestmark = pytest.mark.pods

FS_GROUP = 2345
MINIMAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_DUMPABLE_HINT = (
    "its main process is not dumpable, or holds capabilities that the agent has not: run the container as its own user "
    "(runAsUser), or give the agent's container the runtime's default capabilities"
)

#: What `tools` has in its PATH before everything else; `podhook` and `python3` are programs of the agent's image.
PREPARE_TOOLS = (
    "mkdir /tmp/own;"
    r"""printf '#!/bin/sh\necho the container says "$@"\n' > /tmp/own/podhook;"""
    r"printf 'echo no first line\n' > /tmp/own/bare;"
    r"printf '#!/bin/nowhere\n' > /tmp/own/lost;"
    r"printf '#!/bin/sh\n' > /tmp/own/closed;"
    "chmod 755 /tmp/own/podhook /tmp/own/bare /tmp/own/lost;"
    "exec sleep 1000000"
)
#: The environment's memory is where the kernel says (proc(5), stat, fields 50 and 51).
OVERWRITE = (
    "import ctypes, signal;"
    "fields = open('/proc/self/stat').read().rpartition(')')[2].split();"
    "start, end = int(fields[47]), int(fields[48]);"
    "ctypes.memset(start, 0, {length});"
    "ctypes.memmove(start, {title!r}, len({title!r}));"
    "signal.pause()"
)
NOT_DUMPABLE = "import ctypes, signal; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); signal.pause()"
OVERWROTE = (
    "the main process of container '{}' overwrote its environment, so command 'sh' was not started; "
    "give exec.env, or write exec.environment: minimal"
)


def target(name: str, image: str, *command: str, **more: object) -> Json:
    return {"name": name, "image": image, "command": list(command), **more}


def python_target(name: str, images: Images, script: str) -> Json:
    container = target(name, images.base, "/usr/bin/python3", "-c", script)
    return {**container, "securityContext": {"runAsUser": 999, "runAsGroup": 998}}


@pytest.fixture(scope="module")
def pod(playground: Playground, images: Images, broker_pod: BrokerPod) -> Iterator[Pod]:
    """The pod with all kinds of targets."""
    path = {"name": "PATH", "value": "/tmp/own:/bin"}
    given = {"name": "GIVEN", "value": "by the manifest"}
    sleep = ("sleep", "1000000")
    manifest = beside_agent(
        target("tools", images.tools, "sh", "-c", PREPARE_TOOLS, env=[path, given]),
        target("static", images.static, "/busybox", *sleep, env=[given]),
        target("stranger", images.tools, *sleep, securityContext={"runAsUser": 4242, "runAsGroup": 4343}),
        target("readonly", images.tools, *sleep, securityContext={"readOnlyRootFilesystem": True}),
        target("weak", images.tools, *sleep, securityContext={"capabilities": {"drop": ["ALL"]}}),
        target("gone", images.tools, "sh", "-c", "mkdir /tmp/here; cd /tmp/here; rmdir /tmp/here; exec sleep 1000000"),
        target(
            "shut", images.tools, "sh", "-c", "umask 027; mkdir /tmp/here; cd /tmp/here; chmod 0 .; exec sleep 1000000"
        ),
        python_target("zeroed", images, OVERWRITE.format(length="end - start", title=b"")),
        python_target("titled", images, OVERWRITE.format(length="0", title=b"server: port=5432 waits")),
        python_target("undumpable", images, NOT_DUMPABLE),
        target("restarting", images.tools, *sleep),
    )
    manifest.pod["spec"]["securityContext"] = {"fsGroup": FS_GROUP}
    for volume in manifest.pod["spec"]["volumes"]:  # not the agent's group: docs/security.md
        if "secret" in volume:
            volume["secret"]["defaultMode"] = 0o444
    with Pod(playground, manifest, {"agent": images.agent}, hosts=broker_pod.hosts) as made:
        yield made


async def run(client: Client, pod: Pod, action: Json, **more: object) -> OutcomeMessage:
    """Trigger an action in a pod, once its agent is there."""
    await until(lambda: client.presences.get(str(pod)), f"{pod} is heard of")
    return await client.run(pod, action, **more)


def command(container: str, *argv: str, **more: object) -> Json:
    return {"exec": {"command": list(argv), **more}, "containerName": container}


def sh(container: str, script: str, **more: object) -> Json:
    return command(container, "sh", "-c", script, **more)


def told(outcome: OutcomeMessage) -> tuple[Outcome, str, str]:
    """What became of it, and its error in full."""
    assert outcome.error is not None, outcome
    return outcome.outcome, outcome.error.code, outcome.error.message


async def printed(client: Client, pod: Pod, action: Json) -> str:
    """What a command that succeeds prints."""
    outcome = await run(client, pod, action)
    assert outcome.outcome is Outcome.SUCCEEDED, outcome
    assert outcome.stderr.text == "", outcome
    return outcome.stdout.text


def commands_of(pod: Pod) -> str:
    """The command lines of everything that runs in the pod."""
    return pod.exec("agent", "sh", "-c", "cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' ' '", check=False).stdout


# -- what runs


async def test_a_target_with_nothing_but_one_static_program_needs_no_shell_and_no_libraries(client, pod) -> None:
    assert await printed(client, pod, command("static", "/busybox", "id", "-u")) == "999\n"
    assert "GIVEN=by the manifest\n" in await printed(client, pod, command("static", "/busybox", "env"))
    listed = await printed(client, pod, command("static", "/busybox", "ls", "/"))
    assert listed == pod.exec("static", "/busybox", "ls", "/").stdout


async def test_a_script_is_run_by_its_first_line(client: Client, pod: Pod) -> None:
    assert await printed(client, pod, command("tools", "/tmp/own/podhook", "a b", "")) == "the container says a b \n"


async def test_arguments_arrive_exactly_as_given(client: Client, pod: Pod) -> None:
    given = ["$GIVEN", "*", "a  b", "", "`id`", "ü\n", "--", "{{ .x }}"]
    script = 'for each in "$@"; do printf "%s\\0" "$each"; done'
    assert (await printed(client, pod, command("tools", "sh", "-c", script, "sh", *given))).split("\0") == [*given, ""]


async def test_a_relative_command_is_searched_in_the_containers_path(client: Client, pod: Pod) -> None:
    assert await printed(client, pod, command("tools", "podhook")) == "the container says\n"
    pod.exec("agent", "which", "python3")  # the agent has one
    outcome = await run(client, pod, command("tools", "python3", "--version"))
    assert (outcome.error and outcome.error.code, outcome.exit_code) == (ErrorCode.NOT_FOUND, 127), outcome


async def test_a_path_that_the_hook_gives_is_the_one_that_is_searched(client: Client, pod: Pod) -> None:
    outcome = await run(client, pod, command("tools", "podhook", env=[{"name": "PATH", "value": "/bin"}]))
    assert outcome.exit_code == 127, outcome


async def test_standard_input_is_empty(client: Client, pod: Pod) -> None:
    assert await printed(client, pod, sh("tools", "wc -c")) == "0\n"


async def test_a_writer_whose_reader_is_gone_is_ended_by_sigpipe(client: Client, pod: Pod) -> None:
    assert (
        await printed(client, pod, sh("tools", "(yes; echo $? > /tmp/pipe) | head -n 1; cat /tmp/pipe")) == "y\n141\n"
    )


# -- where it runs


async def test_the_working_directory_is_the_main_processs(client: Client, pod: Pod) -> None:
    assert await printed(client, pod, command("tools", "pwd")) == "/home\n"


async def test_a_working_directory_that_was_deleted_stays_the_commands(client: Client, pod: Pod) -> None:
    assert await printed(client, pod, command("gone", "readlink", "/proc/self/cwd")) == "/tmp/here (deleted)\n"
    assert await printed(client, pod, command("gone", "cat", "/etc/group")) == "root:x:0:\ndatabase:x:998:\n"


async def test_a_working_directory_that_the_user_may_not_enter_becomes_the_root(client: Client, pod: Pod) -> None:
    assert await printed(client, pod, command("shut", "pwd")) == "/\n"


async def test_a_read_only_root_is_read_only_for_the_command_too(client: Client, pod: Pod) -> None:
    outcome = await run(client, pod, sh("readonly", "cat /etc/group; touch /tmp/new"))
    assert outcome.stdout.text == "root:x:0:\ndatabase:x:998:\n", outcome
    assert "Read-only file system" in outcome.stderr.text, outcome
    assert outcome.exit_code == 1


async def test_the_umask_is_the_main_processs(client: Client, pod: Pod) -> None:
    assert await printed(client, pod, sh("tools", "umask")) == "0022\n"
    assert await printed(client, pod, sh("shut", "umask")) == "0027\n"


# -- as whom


IDS = "echo $(id -u) $(id -g); id -G"


async def test_a_user_without_a_name_is_no_obstacle(client: Client, pod: Pod) -> None:
    said = await printed(client, pod, sh("stranger", IDS))
    assert said.splitlines()[0] == "4242 4343"
    assert said == pod.exec("stranger", "sh", "-c", IDS).stdout


async def test_the_supplementary_groups_are_the_main_processs(client: Client, pod: Pod) -> None:
    said = await printed(client, pod, sh("tools", "id -G"))
    assert str(FS_GROUP) in said.split()
    assert said == pod.exec("tools", "id", "-G").stdout


@pytest.mark.parametrize(
    ("user", "ids"),
    [("root", "0 0"), ("database", "999 998"), ("0", "0 998"), ("1234", "1234 998"), ("1234:5", "1234 5")],
)
async def test_a_hook_can_name_another_user_by_name_or_number(client, pod, user, ids) -> None:
    assert (await printed(client, pod, sh("tools", IDS, user=user))).splitlines()[0] == ids


@pytest.mark.parametrize("container", ["tools", "weak"])
async def test_root_has_the_containers_own_capabilities(client: Client, pod: Pod, container: str) -> None:
    look = "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status"
    said = await printed(client, pod, sh(container, look, user="root"))
    assert said == pod.exec(container, "sh", "-c", look, flags=("--user", "root")).stdout


async def test_a_user_that_the_container_does_not_know_is_told(client: Client, pod: Pod) -> None:
    assert told(await run(client, pod, sh("tools", "true", user="nobody-here"))) == (
        Outcome.FAILED,
        ErrorCode.START_FAILED,
        (
            "cannot enter container 'tools': exec.user 'nobody-here' is not in its /etc/passwd; "
            "use a name that is there, or uid or uid:gid"
        ),
    )


# -- with which environment


def variables(text: str) -> dict[str, str]:
    said = dict(line.split("=", 1) for line in text.splitlines())
    return {name: value for name, value in said.items() if not name.startswith("PODHOOK_")}


async def test_the_environment_is_the_main_processs_with_what_the_hook_gives_on_top(client: Client, pod: Pod) -> None:
    inherited = variables(pod.exec("tools", "cat", f"/proc/{pod.pid('tools')}/environ").stdout.replace("\0", "\n"))
    assert inherited["GIVEN"] == "by the manifest"
    assert variables(await printed(client, pod, command("tools", "env"))) == inherited
    added = [{"name": "GIVEN", "value": "by the hook"}, {"name": "MORE", "value": "a=b"}]
    said = variables(await printed(client, pod, command("tools", "env", env=added)))
    assert said == {**inherited, "GIVEN": "by the hook", "MORE": "a=b"}


async def test_a_minimal_environment_is_path_home_and_what_the_hook_gives(client: Client, pod: Pod) -> None:
    minimal = {"PATH": MINIMAL_PATH, "HOME": "/"}
    assert variables(await printed(client, pod, command("tools", "env", environment="minimal"))) == minimal
    added = [{"name": "MORE", "value": "1"}]
    said = await printed(client, pod, command("tools", "env", environment="minimal", env=added))
    assert variables(said) == {**minimal, "MORE": "1"}


async def test_nothing_of_the_agents_environment_reaches_a_sibling(client: Client, pod: Pod) -> None:
    said = await printed(client, pod, command("tools", "env"))
    ours = {line.partition("=")[0] for line in said.splitlines() if line.startswith("PODHOOK_")}
    assert ours == {"PODHOOK_RUN_ID", "PODHOOK_TRIGGER_ID", "PODHOOK_ATTEMPT"}
    assert "/opt/podhook" not in said


@pytest.mark.parametrize("container", ["zeroed", "titled"])
async def test_an_overwritten_environment_fails_before_anything_runs(client, pod, container) -> None:
    outcome = await run(client, pod, sh(container, "touch /tmp/it-ran"))
    assert told(outcome) == (
        Outcome.FAILED,
        ErrorCode.ENVIRONMENT_UNAVAILABLE,
        OVERWROTE.format(container),
    )
    assert pod.exec(container, "test", "-e", "/tmp/it-ran", check=False).returncode == 1


@pytest.mark.parametrize("container", ["zeroed", "titled"])
async def test_an_overwritten_environment_is_no_obstacle_when_the_hook_needs_none(client, pod, container) -> None:
    minimal = {"PATH": MINIMAL_PATH, "HOME": "/"}
    assert variables(await printed(client, pod, command(container, "env", environment="minimal"))) == minimal
    given = [{"name": "DIR", "value": "/data"}]
    assert variables(await printed(client, pod, command(container, "env", env=given))) == {**minimal, "DIR": "/data"}


# -- how it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1, signal.SIGRTMIN])
async def test_a_signal_is_reported_by_its_name(client: Client, pod: Pod, number: signal.Signals) -> None:
    outcome = await run(client, pod, sh("tools", f"kill -{int(number)} $$"))
    assert told(outcome) == (Outcome.FAILED, ErrorCode.SIGNAL, f"command 'sh' was ended by {number.name}")
    assert (outcome.signal, outcome.exit_code) == (number.name, None)


async def test_an_exit_code_is_reported_and_what_is_on_stderr_does_not_matter(client: Client, pod: Pod) -> None:
    outcome = await run(client, pod, sh("tools", "echo bad >&2; exit 7"))
    assert told(outcome) == (Outcome.FAILED, ErrorCode.EXIT_CODE, "command 'sh' exited with code 7")
    assert (outcome.exit_code, outcome.signal, outcome.stderr.text) == (7, None, "bad\n")
    outcome = await run(client, pod, sh("tools", "echo bad >&2"))
    assert (outcome.outcome, outcome.exit_code) == (Outcome.SUCCEEDED, 0)


async def test_a_timeout_leaves_nothing_not_even_grandchildren_with_sessions_of_their_own(client, pod) -> None:
    deaf = "trap '' TERM HUP; "
    script = f'{deaf} (setsid sh -c "{deaf} setsid sleep 54321 & sleep 54321" &); sleep 54321'
    outcome = await run(client, pod, sh("tools", script), timeout_seconds=1)
    assert (outcome.outcome, outcome.error and outcome.error.code) == (Outcome.TIMED_OUT, ErrorCode.TIMEOUT), outcome
    assert outcome.notes == []
    assert "54321" not in commands_of(pod)


async def test_a_timeout_gives_the_command_time_to_end_by_itself(client: Client, pod: Pod) -> None:
    outcome = await run(
        client, pod, sh("tools", "trap 'echo cleared; exit 3' TERM; sleep 54322 & wait"), timeout_seconds=1
    )
    assert (outcome.outcome, outcome.exit_code, outcome.stdout.text) == (Outcome.TIMED_OUT, 3, "cleared\n"), outcome
    assert outcome.duration_seconds < 4
    assert "54322" not in commands_of(pod)


async def test_a_failure_leaves_nothing_of_it_running(client: Client, pod: Pod) -> None:
    wait_for_it = "until [ -e /tmp/is-away ]; do sleep 0.02; done"
    script = f"setsid sh -c 'touch /tmp/is-away; exec sleep 54323' & {wait_for_it}; exit 1"
    outcome = await run(client, pod, sh("tools", script))
    assert outcome.outcome is Outcome.FAILED
    assert "54323" not in commands_of(pod)


async def test_a_cancel_leaves_nothing_of_it_running(client: Client, pod: Pod) -> None:
    await until(lambda: client.presences.get(str(pod)), f"{pod} is heard of")
    sent = await client.trigger(pod, sh("tools", "setsid sleep 54324 & sleep 54324"))
    await client.reply(Started, sent)
    await client.cancel(pod, sent)
    assert (await client.outcome(sent)).outcome is Outcome.CANCELLED
    assert "54324" not in commands_of(pod)


async def test_the_attempt_ends_with_the_command_and_what_it_left_running_stays(client: Client, pod: Pod) -> None:
    outcome = await run(client, pod, sh("tools", "(sleep 5 &); echo done"))
    assert (outcome.outcome, outcome.stdout.text) == (Outcome.SUCCEEDED, "done\n"), outcome
    assert outcome.duration_seconds < 2.5, "it waited for what was left running"
    (note,) = outcome.notes
    assert note.startswith("the command left 1 process (pid "), note
    assert note.endswith(") running in the background"), note
    assert "sleep 5 " in commands_of(pod)


async def test_each_stream_is_kept_up_to_its_limit_and_read_beyond_it(client: Client, pod: Pod) -> None:
    script = "echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo end; head -c 5000 /dev/zero | tr '\\0' y >&2"
    outcome = await run(client, pod, sh("tools", script), capture=Capture(limit_bytes=4096))
    assert outcome.outcome is Outcome.SUCCEEDED, outcome.error
    out, err = outcome.stdout, outcome.stderr
    assert (out.total_bytes, out.truncated, err.total_bytes, err.truncated) == (3000010, True, 5000, True)
    head, mark, tail = out.text.split("\n", 1)[1].split("\n", 2)
    assert out.text.startswith("begin\n")
    assert (len(head), mark, len(tail)) == (1024 - 6, f"[... {3000010 - 4096} bytes cut ...]", 3072)
    assert tail.endswith("xend\n")


async def test_a_command_that_ends_well_because_its_container_ended_is_no_success(client: Client, pod: Pod) -> None:
    await until(lambda: client.presences.get(str(pod)), f"{pod} is heard of")
    main = pod.pid("restarting")
    sent = await client.trigger(pod, sh("restarting", f"while kill -0 {main}; do sleep 0.01; done; exit 0"))
    await client.reply(Started, sent)
    pod.restart("restarting")
    outcome, code, _ = told(await client.outcome(sent))
    assert (outcome, code) == (Outcome.INTERRUPTED, ErrorCode.CONTAINER_RESTARTED)


async def test_a_container_that_restarts_interrupts_the_attempt_and_is_found_again(client: Client, pod: Pod) -> None:
    await until(lambda: client.presences.get(str(pod)), f"{pod} is heard of")
    sent = await client.trigger(pod, sh("restarting", "trap 'exit 0' TERM HUP; sleep 54325 & wait"))
    await client.reply(Started, sent)
    await until(lambda: "54325" in commands_of(pod), "the command runs")
    pod.restart("restarting")
    assert told(await client.outcome(sent)) == (
        Outcome.INTERRUPTED,
        ErrorCode.CONTAINER_RESTARTED,
        "container 'restarting' ended or was started again while command 'sh' ran; whether it took effect is unknown",
    )
    assert "54325" not in commands_of(pod)
    assert await printed(client, pod, sh("restarting", "echo again")) == "again\n"


# -- what cannot start


MISSING = "check its spelling, the interpreter in its #! line, and the image"
NOT_A_PROGRAM = "is not executable: {}; it must be a program with execute permission, or a script that begins with #!"


@pytest.mark.parametrize(
    ("program", "exit_code", "code", "message"),
    [
        ("/bin/nope", 127, ErrorCode.NOT_FOUND, f"'/bin/nope' was not found in container 'tools'; {MISSING}"),
        ("/tmp/own/lost", 127, ErrorCode.NOT_FOUND, f"'/tmp/own/lost' was not found in container 'tools'; {MISSING}"),
        ("/etc/group/x", 127, ErrorCode.NOT_FOUND, f"'/etc/group/x' was not found in container 'tools'; {MISSING}"),
        *(
            (name, 126, ErrorCode.NOT_EXECUTABLE, f"{name!r} in container 'tools' {NOT_A_PROGRAM.format(why)}")
            for name, why in (
                ("/etc", "Permission denied"),
                ("/tmp/own/closed", "Permission denied"),
                ("closed", "Permission denied"),
                ("/tmp/own/bare", "Exec format error"),
                ("bare", "Exec format error"),
            )
        ),
    ],
)  # fmt: skip
async def test_a_command_that_cannot_start_is_told_with_a_shells_exit_code(
    client, pod, program, exit_code, code, message
) -> None:
    outcome = await run(client, pod, command("tools", program))
    assert told(outcome) == (Outcome.FAILED, code, f"command {message}")
    assert outcome.exit_code == exit_code


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "List should have at least 1 item after validation, not 0"),
        ([""], "command[0] is empty; it names the program to run"),
    ],
)
async def test_an_empty_argv_is_refused_before_anything_runs(client: NightlyClient, pod: Pod, argv, why) -> None:
    await until(lambda: client.presences.get(str(pod)), f"{pod} is heard of")
    sent = client.make(pod, command("tools", "placeholder"))
    event = json.loads(peek(sent.payload))
    event["data"]["action"]["exec"]["command"] = argv
    await client.send_bytes(pod, sign(json.dumps(event).encode(), client.key, Typ.COMMAND))
    outcome, code, message = told(await client.outcome(sent))
    assert (outcome, code) == (Outcome.REJECTED, ErrorCode.INVALID_ACTION)
    assert message.startswith("dev.podhook.trigger.v1: data.action.exec.command")
    assert why in message


async def test_a_container_that_is_not_there_is_told_with_those_that_are(client: Client, pod: Pod) -> None:
    outcome, code, message = told(await run(client, pod, command("tool", "true")))
    assert (outcome, code) == (Outcome.REJECTED, ErrorCode.UNKNOWN_CONTAINER)
    names = "gone, readonly, restarting, shut, static, stranger, titled, tools, undumpable, weak, zeroed, agent"
    assert message == f"container 'tool' is not in pod {pod} (has: {names}); set containerName to one of them"


async def test_no_container_name_among_many_is_a_choice_that_the_hook_must_make(client: Client, pod: Pod) -> None:
    outcome, code, message = told(await run(client, pod, {"exec": {"command": ["true"]}}))
    assert (outcome, code) == (Outcome.REJECTED, ErrorCode.UNKNOWN_CONTAINER)
    names = "gone, readonly, restarting, shut, static, stranger, titled, tools, undumpable, weak, zeroed"
    assert message == (
        f"the hook names no container, and the agent does not know which one of pod {pod} is the first (there are "
        f"{names}); set containerName to one of them, or give the agent a pod description (PODHOOK_POD_FILE, "
        "PODHOOK_KUBERNETES)"
    )


async def test_a_target_that_is_not_dumpable_is_told_with_what_to_change(client: Client, pod: Pod) -> None:
    assert told(await run(client, pod, command("undumpable", "true"))) == (
        Outcome.FAILED,
        ErrorCode.START_FAILED,
        f"cannot enter container 'undumpable': root: Permission denied; {NOT_DUMPABLE_HINT}",
    )
