"""The stages on which agents are tested."""

from __future__ import annotations

from tests.agents import any_stage, stage

__all__ = ["any_stage", "stage"]
