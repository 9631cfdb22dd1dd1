from __future__ import annotations

from tests.cluster.conftest import world

__all__ = ["world"]
