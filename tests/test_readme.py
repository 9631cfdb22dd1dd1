"""The README says what is true: its table of settings is the settings', and what it names exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agent.cli.exits import Exit
from agent.cli.main import COMMANDS
from agent.contract.errors import ErrorCode
from agent.contract.states import Outcome
from agent.sidecar.settings import ENV_PREFIX, AgentSettings

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->"


def settings_table() -> str:
    """The table as it must stand in the README."""
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in AgentSettings.model_fields.items():
        default = "~/.local/state/podhook" if name == "state_dir" else field.default
        shown = "" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_settings_is_the_settings_own() -> None:
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if os.environ.get("PODHOOK_README") == "write":
        README.write_text(before + BEGIN + settings_table() + END + after, encoding="utf-8")
    written = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert written == settings_table(), (
        "the settings changed: PODHOOK_README=write make test PYTEST_ARGS=tests/test_readme.py"
    )


def test_every_outcome_and_exit_code_is_explained() -> None:
    text = README.read_text(encoding="utf-8")
    for outcome in Outcome:
        assert f"| `{outcome}` |" in text, f"outcome {outcome} is not in the README's table"
    for code in Exit:
        assert f"\n| {int(code)} |" in text, f"exit code {int(code)} is not in the README's table"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8")))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists(), f"the README links to {target}, which is not there"


def test_every_command_it_shows_exists() -> None:
    shown = set(re.findall(r"\$ podhook ([a-z]+)", README.read_text(encoding="utf-8")))
    assert shown
    assert shown <= set(COMMANDS), f"the README shows commands that are not there: {shown - set(COMMANDS)}"


def test_error_codes_are_documented_by_name() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    why_not = (ROOT / "agent" / "coordinator" / "targets.py").read_text(encoding="utf-8")
    not_begun = re.findall('code(?:, text)? = "([a-z_]+)"', why_not) + re.findall(
        '^ +"([a-z_]+)",$', why_not, re.MULTILINE
    )
    assert {"no_targets", "no_ready_pod", "unexpected_count"} <= set(not_begun)
    missing = [code for code in [*ErrorCode, *not_begun] if f"| `{code}` |" not in text]
    assert not missing, f"docs/errors.md does not explain: {', '.join(missing)}"
