"""The command `podhook`: one file a command, each importing what it needs when it runs."""

from __future__ import annotations

from agent.cli.main import main

__all__ = ["main"]
