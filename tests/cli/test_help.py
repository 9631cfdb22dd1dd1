"""`--help` says what a script needs: exit codes, environment variables, defaults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent import __version__
from agent.cli.main import COMMANDS
from tests.cli.conftest import clean_environment


def podhook(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        env=clean_environment(COLUMNS="120"),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, " ".join(done.stdout.split()), done.stderr


def test_help_names_every_command_and_all_exit_codes():
    code, out, _ = podhook("--help")
    assert code == 0
    assert out.startswith("Usage: podhook [OPTIONS] COMMAND")
    for name, purpose in COMMANDS.items():
        assert f"{name} {purpose}" in out
    for number in ("0 succeeded", "1 a hook failed", "2 usage", "3 no targets", "4 broker", "130 interrupted"):
        assert number in out


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, flag):
    code, out, err = podhook(name, flag)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: podhook {name} [OPTIONS]")


@pytest.mark.parametrize("name", ["run", "agents", "check", "demo"])
def test_help_says_which_exit_codes_there_are(name):
    assert "Exit codes: 0 " in podhook(name, "--help")[1]


@pytest.mark.parametrize("name", ["run", "agents"])
def test_help_says_which_variables_name_the_broker(name):
    out = podhook(name, "--help")[1]
    assert "--broker URL mqtt://[USER[:PASSWORD]@]HOST[:PORT], or mqtts:// for TLS. [env var: PODHOOK_BROKER;" in out
    for variable in ("TOPIC_ROOT", "BROKER_USER_FILE", "BROKER_PASSWORD_FILE", "BROKER_CA_FILE"):
        assert f"[env var: PODHOOK_{variable}" in out


def test_help_of_the_agent_names_the_variable_of_every_setting():
    from agent.sidecar.settings import AgentSettings

    out = podhook("agent", "--help")[1]
    for name in AgentSettings.model_fields:
        assert f"PODHOOK_{name.upper()}" in out.replace("- ", "-"), name


def test_run_has_every_option_of_the_requirement():
    out = podhook("run", "--help")[1]
    for option in ("namespace", "timeout", "max-retry", "max-parallel", "max-errors", "param", "expect"):
        assert f"--{option} " in out
    for option in ("--allow-empty", "--allow-missing", "-o, --output table|json", "--keep-going", "-A, --all-names"):
        assert option in out
    assert "[default: 5m]" in out


def test_agents_defaults_to_all_namespaces_and_run_to_one():
    assert "may be given again. [default: all]" in podhook("agents", "--help")[1]
    assert "may be given again. [default: default]" in podhook("run", "--help")[1]


def test_the_version_is_told():
    assert podhook("--version")[:2] == (0, f"podhook {__version__}")


def test_without_a_command_help_is_shown_and_the_exit_code_is_usage():
    code, out, err = podhook()
    assert code == 2
    assert "Usage: podhook" in out + " ".join(err.split())


def test_an_unknown_command_or_option_is_usage():
    code, _, err = podhook("rnu")
    assert (code, "rnu" in err) == (2, True)
    code, _, err = podhook("run", "--no-such")
    assert (code, "--no-such" in err) == (2, True)


@pytest.mark.parametrize("name", ["run", "check", "demo"])
def test_help_does_not_load_what_it_does_not_need(name):
    """Start-up time is part of every hook: help needs neither MQTT nor HTTP nor YAML."""
    script = (
        f"import sys; sys.argv = ['podhook', '{name}', '--help']\nimport agent.cli\n"
        "try: agent.cli.main()\nexcept SystemExit: pass\n"
        "print([name for name in ('aiohttp', 'aiomqtt', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
