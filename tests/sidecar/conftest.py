"""The stages on which agents are tested."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.agents import Stage, any_stage, stage
from tests.proxy import Proxy

__all__ = ["any_stage", "proxy", "stage"]


@pytest.fixture
async def proxy(stage: Stage) -> AsyncIterator[Proxy]:
    """A proxy in front of the stage's broker."""
    async with Proxy(stage.broker.port).serving() as made:
        yield made
