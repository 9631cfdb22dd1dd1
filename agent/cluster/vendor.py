"""The one import of kubernetes_asyncio, made when a cluster is asked for: it takes 38 MB and most of a second."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import ModuleType

from agent.cluster.words import Words
from agent.contract.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class Vendor:
    """What is used of kubernetes_asyncio: its `client` (one question, signed) and its `config` (how to log in)."""

    client: ModuleType
    config: ModuleType


async def load(words: Words) -> Vendor:
    """Import it in a thread: whoever asks has other things to do meanwhile.

    Raises:
        InvalidSettings: it is not installed, or cannot be imported here.
    """
    return await asyncio.to_thread(_load, words)


def _load(words: Words) -> Vendor:
    try:
        from kubernetes_asyncio import client, config  # noqa: PLC0415
    except ImportError as error:
        raise InvalidSettings(
            f"{words.wanted}kubernetes-asyncio cannot be imported ({error}); install it: "
            f"pip install 'podhook[kubernetes]', or {words.otherwise}"
        ) from error
    except RuntimeError as error:  # Path.home(), which it calls while it is imported
        raise InvalidSettings(
            f"{words.wanted}kubernetes-asyncio cannot be imported ({error}); set HOME to any directory"
        ) from error
    return Vendor(client, config)
