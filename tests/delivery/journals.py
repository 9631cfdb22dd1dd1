"""What an agent's journal has on disk, seen by somebody else than the agent."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Literal

from tests.agents import AgentProcess


def rows(agent: AgentProcess, table: Literal["attempts", "tombstones"]) -> int:
    """How many rows a table has."""
    return _number(agent, f"SELECT count(*) FROM {table}")


def delivered(agent: AgentProcess, run_id: str) -> bool:
    """Whether it says that the broker has the outcome of this run."""
    return bool(_number(agent, "SELECT delivered FROM attempts WHERE run_id = ?", run_id))


def _number(agent: AgentProcess, query: str, *arguments: str) -> int:
    (path,) = agent.state.glob("journal-*.sqlite3")
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute(query, arguments).fetchone()[0])
