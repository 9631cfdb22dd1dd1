"""Real agents whose clock is ours to set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.agents import AgentProcess, Stage

#: See there.
ALTERED = ("-m", "tests.delivery.altered", "agent")


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of one agent."""

    file: Path

    def set_ahead(self, seconds: float) -> None:
        """From now on it stands this far ahead of the true time; less than 0 is behind."""
        written = self.file.with_suffix(".new")
        written.write_text(str(seconds), encoding="ascii")
        written.replace(self.file)


async def clocked(stage: Stage, ahead: float, **settings: Any) -> tuple[AgentProcess, Clock]:
    """An agent that is online, and its clock."""
    clock = Clock(stage.directory / f"clock-{len(stage.agents)}")
    clock.set_ahead(ahead)
    agent = stage.make(test_clock=clock.file, **settings)
    agent.program = ALTERED
    await stage.start(agent)
    return agent, clock
