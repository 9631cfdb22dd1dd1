"""The benchmarks still run: what they measure is what the product does."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks import trust


def test_what_trust_costs_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(trust, "TIMES", 2)
    asyncio.run(trust.main())
    assert "signature and policy checks together, a trigger: " in capsys.readouterr().out
