"""`podhook crds`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from agent.contract.crds import definitions
from tests.cli.conftest import clean_environment


def podhook(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        env=clean_environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "whose"),
    [((), "podhook"), (("--group", "podhook"), "podhook"), (("--group", "kubestash"), "kubestash")],
)
def test_it_prints_what_kubectl_can_apply(arguments, whose):
    said = podhook("crds", *arguments)
    assert (said.returncode, said.stderr) == (0, "")
    assert list(yaml.safe_load_all(said.stdout)) == definitions(whose)


def test_another_group_is_a_usage_error():
    said = podhook("crds", "--group", "example.com")
    assert said.returncode == 2
    assert "'podhook', 'kubestash'" in said.stderr
