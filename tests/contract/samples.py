"""Fixed messages of every type, with every field set: what the golden files hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from agent.contract.actions import Action
from agent.contract.events import seal
from agent.contract.messages import (
    Accepted,
    AttemptReport,
    Cancel,
    Capture,
    CapturedStream,
    CatalogueHook,
    ErrorDetail,
    Go,
    Guard,
    GuardMessage,
    Heartbeat,
    Message,
    OutcomeMessage,
    Output,
    Owner,
    Presence,
    Query,
    Ready,
    Release,
    Renew,
    Report,
    Started,
    Targets,
    Trigger,
)
from agent.contract.states import AttemptState, GuardState, Outcome

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
QUERY = "01890a5d-ac96-774b-bcce-b302099a9999"
UID = "6f1c3c52-7a5b-4a3f-9d52-0c9f4f6f9a01"
NOW = datetime(2026, 3, 1, 2, 30, 0, 250000, tzinfo=UTC)
#: A sender far from Greenwich: the offset travels.
LATER = datetime(2026, 3, 1, 8, 5, 0, tzinfo=timezone(timedelta(hours=5, minutes=30)))

OF = {"run_id": RUN, "attempt": 1}
SAID_BY = {**OF, "namespace": "shop", "pod": "db-0", "pod_uid": UID, "trigger_hash": "ab" * 32}
TARGETS = Targets.of([("shop", "db-0", UID), ("shop", "db-1", "1c9f6d2e-0000-4000-8000-000000000002")])

FREEZE = Action.model_validate(
    {
        "exec": {
            "command": ["/bin/sh", "-c", 'mysql -e "SET GLOBAL super_read_only = ON;" # größer'],
            "user": "mysql",
            "env": [{"name": "LANG", "value": "C"}, {"name": "MYSQL_PWD", "valueFrom": {"file": "mysql/password"}}],
            "environment": "minimal",
        },
        "containerName": "mysql",
    }
)
THAW = Action.model_validate(
    {
        "exec": {"command": ["/bin/sh", "-c", 'mysql -e "SET GLOBAL super_read_only = OFF;"']},
        "containerName": "mysql",
    }
)
NOTIFY = Action.model_validate(
    {
        "httpPost": {
            "host": "my-service.mynamespace.svc",
            "port": "web",
            "path": "/demo?a=b",
            "scheme": "HTTPS",
            "httpHeaders": [
                {"name": "X-Run", "value": "1"},
                {"name": "X-Run", "value": "2"},
                {"name": "Authorization", "valueFrom": {"file": "http-token"}},
            ],
            "body": '{"name": "john doe"}',
            "form": [{"key": "age", "values": ["28", "29"]}],
        },
        "containerName": "web",
    }
)
CALL = {
    **OF,
    "coordinator": "nightly",
    "pod_uid": UID,
    "targets": TARGETS,
    "issued_at": NOW,
    "deadline": LATER,
}

OUTCOME = OutcomeMessage(
    **SAID_BY,
    outcome=Outcome.FAILED,
    exit_code=1,
    signal="SIGKILL",
    http_status=503,
    stdout=CapturedStream(text="one\n[... 70000 bytes cut ...]\ntwo: ü\n", total_bytes=70012, truncated=True),
    stderr=CapturedStream(text="/wA=", encoding="base64", total_bytes=2),
    duration_seconds=1.5,
    started_at=NOW,
    error=ErrorDetail(code="exit_code", message="mysql exited with code 1", rule="containers.mysql.commands[0]"),
    notes=["a process was left running in the background: 42 (sleep)"],
)

#: File name -> message. A name begins with the type's own, so that a reader finds it.
SAMPLES: dict[str, Message] = {
    "trigger.v1-exec": Trigger(
        **CALL,
        action=FREEZE,
        name="mysql-freeze",
        timeout_seconds=90,
        capture=Capture(limit_bytes=16384),
        guard=Guard(undo=THAW, ttl_seconds=600, timeout_seconds=30),
        wait_for_go=True,
    ),
    "trigger.v1-http": Trigger(**CALL, action=NOTIFY),
    "trigger.v1-http-get": Trigger(
        **CALL, action=Action.model_validate({"httpGet": {"port": 8080, "path": "/", "scheme": "HTTP"}})
    ),
    "trigger.v1-tcp": Trigger(**CALL, action=Action.model_validate({"tcpSocket": {"host": "db", "port": 3306}})),
    "trigger.v1-catalogue": Trigger(**CALL, hook=CatalogueHook(name="freeze", params={"LOCK": "a b"})),
    "go.v1": Go(**OF, pod_uid=UID, start_by=LATER),
    "cancel.v1": Cancel(**OF, pod_uid=UID, deadline=LATER),
    "renew.v1": Renew(**OF, ttl_seconds=600),
    "release.v1": Release(**OF, pod_uid=UID, deadline=LATER),
    "query.v1": Query(
        query_id=QUERY,
        coordinator="nightly",
        run_id=RUN,
        attempt=1,
        settle=True,
        pod_uid=UID,
        issued_at=NOW,
        deadline=LATER,
    ),
    "query.v1-list": Query(query_id=QUERY, coordinator="nightly", limit=20),
    "accepted.v1": Accepted(**SAID_BY),
    "ready.v1": Ready(**SAID_BY),
    "started.v1": Started(**SAID_BY, at=NOW),
    "heartbeat.v1": Heartbeat(**SAID_BY, running_seconds=20.5),
    "output.v1": Output(**SAID_BY, stream="stderr", text="/wA=", encoding="base64"),
    "outcome.v1": OUTCOME,
    "outcome.v1-succeeded": OutcomeMessage(**SAID_BY, outcome=Outcome.SUCCEEDED),
    "guard.v1": GuardMessage(
        **SAID_BY,
        state=GuardState.UNDO_FAILED,
        error=ErrorDetail(code="exit_code", message="the undo exited with code 1"),
    ),
    "report.v1": Report(
        attempt=2,
        query_id=QUERY,
        run_id=RUN,
        namespace="shop",
        pod="db-0",
        pod_uid=UID,
        attempts=[
            AttemptReport(
                attempt=1, state=AttemptState.FAILED, trigger_hash="ab" * 32, targets=TARGETS, outcome=OUTCOME
            ),
            AttemptReport(
                run_id=RUN,
                attempt=2,
                state=AttemptState.STARTED,
                trigger_hash="cd" * 32,
                name="mysql-freeze",
                issued_at=NOW,
                deadline=LATER,
                changed_at=NOW,
                key_id="xS2w4RZpCzeAB3q0HLUf8VmnHGnMTA1KE4sqKsc3WIg",
            ),
        ],
        query_hash="ef" * 32,
        tombstoned=True,
        tombstoned_for="xS2w4RZpCzeAB3q0HLUf8VmnHGnMTA1KE4sqKsc3WIg",
        cannot_tell="asked about another pod uid",
        clock=NOW,
    ),
    "presence.v1": Presence(
        namespace="shop",
        pod="db-0",
        pod_uid=UID,
        state="online",
        born_at=NOW,
        clock=LATER,
        version="0.1.0",
        started_at=NOW,
        labels={"app": "db"},
        containers=["mysql", "metrics"],
        owners=[Owner(api_version="apps/v1", kind="StatefulSet", name="db", uid=UID, controller=True)],
        unsigned=True,
        problems=["no trusted key: every trigger is refused"],
    ),
}


def sealed(message: Message) -> bytes:
    """The payload of a message, from a fixed sender at a fixed time."""
    return seal(message, source="/agents/shop/db-0", time=NOW, event_id=QUERY)
