"""What trust costs each trigger: its signature, where it may run, and what is said in return."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from agent.contract.actions import Action
from agent.contract.events import seal
from agent.contract.messages import OutcomeMessage, Targets, Trigger
from agent.contract.signing.envelope import Typ, sign
from agent.contract.signing.keys import Keyring, generate, parse_trusted_keys, public_text
from agent.contract.states import Outcome
from agent.pod.identity import Identity
from agent.sidecar.inbox import open_command
from agent.sidecar.policy.document import load_policy
from agent.sidecar.policy.judge import Asked, judge
from agent.sidecar.trust import Trust

TIMES = 3000
#: Rules beside the one that counts.
RULES = 100


async def main() -> None:
    """Print the medians."""
    now = datetime.now(UTC)
    key, others = generate("bench"), [generate(f"other-{number}") for number in range(3)]
    ring = Keyring(each for pair in (key, *others) for each in parse_trusted_keys(public_text(pair), pair.name))
    identity = Identity("shop", "db-0", str(uuid.uuid4()))
    trigger = Trigger(
        run_id=str(uuid.uuid4()),
        attempt=1,
        coordinator="c-bench",
        pod_uid=identity.pod_uid,
        targets=Targets.of([("shop", "db-0", identity.pod_uid)]),
        action=Action.model_validate({"exec": {"command": ["/usr/bin/freeze", "99"]}, "containerName": "mysql"}),
        issued_at=now,
        deadline=now + timedelta(seconds=30),
    )
    said = seal(
        trigger,
        source="/coordinators/c-bench",
        time=now,
        event_id=str(uuid.uuid4()),
        issuer=key.kid,
        audience=f"shop/db-0/{identity.pod_uid}",
        expires=trigger.deadline,
    )
    signed = sign(said, key, Typ.COMMAND)
    commands = "\n".join(f'      - ["/usr/bin/freeze", "{number}"]' for number in range(RULES))
    policy = load_policy(f"inline: true\ncontainers:\n  mysql:\n    commands:\n{commands}\n".encode())
    assert trigger.action is not None
    asked = Asked(trigger.action, container="mysql", timeout_seconds=30)
    outcome = seal(
        OutcomeMessage(
            outcome=Outcome.SUCCEEDED,
            run_id=trigger.run_id,
            attempt=1,
            trigger_hash="0" * 64,
            namespace="shop",
            pod="db-0",
            pod_uid=identity.pod_uid,
        ),
        source=identity.source,
        time=now,
        event_id=str(uuid.uuid4()),
    )
    trusting, anybody = Trust("shop", ring, allow_unsigned=False), Trust("shop", None, allow_unsigned=True)
    verified = _median_us(lambda: open_command(signed, trusting, identity, now))
    opened = _median_us(lambda: open_command(said, anybody, identity, now))
    judged = _median_us(lambda: judge(policy, asked))
    answered = _median_us(lambda: sign(outcome, key, Typ.OUTCOME))
    print(f"open a signed trigger of {len(signed)} bytes: {verified:.0f} us; an unsigned one: {opened:.0f} us")
    print(f"judge it by a policy of {RULES} commands: {judged:.1f} us; sign its outcome: {answered:.0f} us")
    total = (verified - opened + judged + answered) / 1000
    print(f"signature and policy checks together, a trigger: {total:.2f} ms")


def _median_us(work: Callable[[], object]) -> float:
    for _ in range(100):
        work()
    times = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6
