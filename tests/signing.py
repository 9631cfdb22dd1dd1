"""Commands as a coordinator signs them, for clients that have no coordinator's manners."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from agent.contract.events import seal
from agent.contract.messages import Message, Trigger
from agent.contract.signing.envelope import Typ, sign
from agent.contract.signing.keys import SigningKey
from agent.sidecar.app import utc_now
from tests.agents import AnyAgent


def signed(agent: AnyAgent, message: Message, key: SigningKey, **changes: Any) -> bytes:
    """A command to this agent; `audience`, `expires`, `time`, `event_id` and the like may be others."""
    now = utc_now()
    expires = message.deadline if isinstance(message, Trigger) else now + timedelta(minutes=15)
    said = {
        "source": "/coordinators/test",
        "time": now,
        "event_id": str(uuid.uuid4()),
        "issuer": key.kid,
        "audience": f"{agent.namespace}/{agent.pod}/{agent.uid}",
        "expires": expires,
        **changes,
    }
    return sign(seal(message, **said), key, Typ.COMMAND)
