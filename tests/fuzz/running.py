"""One chunk of inputs: so many, from one seed. The same seed tries the same inputs again."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass

import hypothesis
from hypothesis import HealthCheck, Phase

from tests.fuzz.harnesses import BY_NAME, Harness

#: Small enough to end soon after its time is over.
CHUNK_INPUTS = 500


@dataclass(frozen=True, slots=True)
class Found:
    """How many inputs were tried, and the first that was answered wrongly: its seed, and what was said of it."""

    inputs: int
    seed: int = 0
    failure: str = ""


def chunk(harness: Harness, seed: int | None, inputs: int = CHUNK_INPUTS) -> int:
    """Try so many inputs (seed None: other ones each time); returns how many it were.

    Raises:
        Exception: whatever the check raised for the smallest input that hypothesis could make of a bad one.
    """
    tried = 0

    def body(drawn: object) -> None:
        nonlocal tried
        tried += 1
        harness.check(drawn)

    test = hypothesis.given(drawn=harness.inputs)(body)
    if seed is not None:
        test = hypothesis.seed(seed)(test)
    hypothesis.settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.target, Phase.shrink],
        print_blob=False,
    )(test)()
    return tried


def run(name: str, seed: int, seconds: float) -> Found:
    """Chunk after chunk, with one seed after the other, until the time is over or something is found."""
    harness, end, tried = BY_NAME[name], time.monotonic() + seconds, 0
    while True:
        try:
            tried += chunk(harness, seed)
        except Exception as error:  # noqa: BLE001 (it is what was looked for)
            return Found(tried, seed, "".join(traceback.format_exception(error)))
        if time.monotonic() >= end:
            return Found(tried)
        seed += 1
