"""Where podhook begins: who only asks for help forks nothing, and little is imported before the privileges are gone."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import __version__, entry

ROOT = Path(__file__).parents[1]
#: All that runs as root: what is imported there is read by whoever asks what root does.
STANDARD_LIBRARY = """
    __future__ abc array builtins codecs collections contextlib copyreg ctypes encodings enum errno functools
    genericpath io itertools json keyword marshal math operator os posix posixpath re reprlib resource select
    selectors signal socket stat struct sys time types typing warnings zipimport
"""
PODHOOK = """
    agent agent.contract agent.contract.secret_names agent.entry agent.pod agent.pod.child agent.pod.job
    agent.pod.kernel agent.pod.launcher agent.pod.offspring agent.pod.stepping agent.pod.supervisor agent.pod.target
"""

#: Runs `podhook` with a supervisor and a fork that only say that they were called.
_WATCHED = """
import os, sys
from agent.pod import supervisor

def told(what):
    print(what, flush=True)
    os._exit(99)

supervisor.supervise = lambda state_dir: told(f"supervise {state_dir}")
os.fork = os.forkpty = os.posix_spawn = lambda *_: told("fork")
sys.argv[0] = "podhook"
from agent.entry import main
main()
"""


def podhook(*arguments: str, **variables: str) -> tuple[int, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PODHOOK_")}
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, *arguments],
        cwd=ROOT,
        env=kept | {f"PODHOOK_{key}": value for key, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout or done.stderr


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        (["--version"], f"podhook {__version__}"),
        (["agent", "--help"], "Usage: podhook agent"),
        (["agent", "-h"], "Usage: podhook agent"),
        (["agent", "--state-dir", "/nowhere", "--help"], "Usage: podhook agent"),
        (["--help"], "Usage: podhook [OPTIONS]"),
        (["check", "--help"], "Usage: podhook check"),
    ],
)
def test_who_only_asks_forks_nothing_though_a_launcher_is_asked_for(arguments, begins):
    code, said = podhook(*arguments, LAUNCHER="true")
    assert (code, said.strip()[: len(begins)]) == (0, begins)


@pytest.mark.parametrize("asked", ["true", "True", "1", "yes", "on"])
def test_an_agent_that_is_asked_for_a_launcher_is_supervised(asked):
    assert podhook("agent", LAUNCHER=asked) == (99, "supervise /var/lib/podhook\n")


@pytest.mark.parametrize("asked", ["", "false", "0", "no", "off", "maybe"])
def test_an_agent_that_is_not_asked_for_one_is_not(asked, tmp_path):
    code, said = podhook("agent", "--no-such-option", LAUNCHER=asked)
    assert code == 2, said


@pytest.mark.parametrize(
    ("arguments", "variables", "state_dir"),
    [
        ([], {}, "/var/lib/podhook"),
        ([], {"STATE_DIR": ""}, "/var/lib/podhook"),
        ([], {"STATE_DIR": "/of/variable"}, "/of/variable"),
        (["--state-dir", "/of/flag"], {"STATE_DIR": "/of/variable"}, "/of/flag"),
        (["--state-dir=/of/flag"], {}, "/of/flag"),
        (["--state-dir=/first", "--state-dir", "/last"], {}, "/last"),
    ],
)
def test_the_supervisor_gets_the_directory_that_the_agent_will_use(arguments, variables, state_dir):
    assert podhook("agent", *arguments, LAUNCHER="true", **variables) == (99, f"supervise {state_dir}\n")


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], ""),
        (["agent"], ""),
        (["agent", "--state-dir", "/a"], "/a"),
        (["agent", "--state-dir=/a"], "/a"),
        (["agent", "--state-dir=/a=b"], "/a=b"),
        (["agent", "--state-dir=/a", "--state-dir=/b"], "/b"),
        (["agent", "--state-dir", "/a", "--state-dir=/b"], "/b"),
        (["agent", "--state-dir=/a", "--state-dir", "/b", "--pod", "db-0"], "/b"),
        (["agent", "--state-dir"], ""),
        (["agent", "--state-dir="], ""),
        (["agent", "--state-directory", "/a"], ""),
        (["agent", "--state-dirs=/a"], ""),
        (["agent", "state-dir", "/a"], ""),
    ],
)
def test_a_flag_is_read_as_it_will_be_parsed(monkeypatch, arguments, value):
    monkeypatch.setattr(entry.sys, "argv", ["podhook", *arguments])
    assert entry._flag("--state-dir") == value


@pytest.mark.parametrize("flag", [True, False])
def test_where_the_state_can_be_kept_is_told_to_the_agent(monkeypatch, flag):
    """Without CHOWN it is a directory below the one that was given."""
    from agent.pod import supervisor

    cli = importlib.import_module("agent.cli.main")  # `agent.cli` has a function of that name
    given = ["--state-dir", "/given"] if flag else []
    seen: list[tuple[list[str], str | None]] = []
    monkeypatch.setattr(entry.sys, "argv", ["podhook", "agent", *given])
    monkeypatch.setenv("PODHOOK_LAUNCHER", "true")
    monkeypatch.setenv("PODHOOK_STATE_DIR", "/of/variable")
    monkeypatch.setattr(supervisor, "supervise", lambda state_dir: f"{state_dir}/agent")
    monkeypatch.setattr(cli, "main", lambda: seen.append((entry.sys.argv[2:], os.environ["PODHOOK_STATE_DIR"])))
    entry.main()
    if flag:
        assert seen == [([*given, "--state-dir", "/given/agent"], "/of/variable")]
    else:
        assert seen == [([], "/of/variable/agent")]


def test_what_runs_as_root_imports_a_small_part_of_the_standard_library_and_nothing_else():
    script = "import agent.entry, agent.pod.supervisor, agent.pod.launcher, sys; print(*sorted(sys.modules))"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    standard, imported = STANDARD_LIBRARY.split(), done.stdout.split()
    others = {name for name in imported if name.partition(".")[0] not in standard and not name.startswith("_")}
    others -= set(PODHOOK.split())
    assert others == set(), f"root imports {', '.join(sorted(others))}"
    for heavy in ("asyncio", "logging", "pydantic", "subprocess", "pathlib", "threading", "importlib.metadata"):
        assert heavy not in imported, heavy


def test_the_launcher_fits_in_a_readers_head():
    lines = (ROOT / "agent" / "pod" / "launcher.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 300, f"it has {len(lines)} lines; look for two ideas"
