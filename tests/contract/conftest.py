"""Property tests here are judged by their answers: a busy machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("contract", deadline=None)
settings.load_profile("contract")
