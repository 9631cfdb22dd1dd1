"""The journal's file: opened by one agent at a time, brought up to date, and set aside when it is damaged."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from agent.contract.errors import JournalLocked, JournalNewer, JournalUnavailable

#: The file's bound: about a thousand outcomes with all the output that is kept, or MAX_ROWS without.
MAX_BYTES = 64 * 1024 * 1024
PAGE_BYTES = 4096

#: One step a version: a new file takes all of them, an older one those that it has not seen. A step, once released,
#: is never changed; what it makes must be readable by every later podhook.
STEPS = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE attempts (
        run_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        trigger_hash TEXT NOT NULL,
        coordinator TEXT NOT NULL,
        name TEXT NOT NULL,
        targets TEXT NOT NULL,
        state TEXT NOT NULL,
        deadline REAL NOT NULL,
        changed_at REAL NOT NULL,
        outcome TEXT,
        delivered INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (run_id, attempt)
    ) WITHOUT ROWID;
    CREATE INDEX undelivered ON attempts (changed_at) WHERE outcome IS NOT NULL AND delivered = 0;
    CREATE TABLE tombstones (
        run_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        deadline REAL NOT NULL,
        PRIMARY KEY (run_id, attempt)
    ) WITHOUT ROWID;
    """,
    # 2: when a trigger was issued (of older rows the earliest that it can have been), and the latest attempts first.
    """
    ALTER TABLE attempts ADD COLUMN issued_at REAL NOT NULL DEFAULT 0;
    UPDATE attempts SET issued_at = min(deadline - 900, changed_at);
    CREATE INDEX latest ON attempts (changed_at);
    """,
    # 3: run ids are each key's own ("": unsigned), so are tombstones ("": anybody's); and signed commands that acted.
    """
    ALTER TABLE attempts RENAME TO attempts_2;
    CREATE TABLE attempts (
        run_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        kid TEXT NOT NULL,
        trigger_hash TEXT NOT NULL,
        coordinator TEXT NOT NULL,
        name TEXT NOT NULL,
        targets TEXT NOT NULL,
        state TEXT NOT NULL,
        issued_at REAL NOT NULL,
        deadline REAL NOT NULL,
        changed_at REAL NOT NULL,
        outcome TEXT,
        delivered INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (run_id, attempt, kid)
    ) WITHOUT ROWID;
    INSERT INTO attempts SELECT run_id, attempt, '', trigger_hash, coordinator, name, targets, state, issued_at,
        deadline, changed_at, outcome, delivered FROM attempts_2;
    DROP TABLE attempts_2;
    CREATE INDEX undelivered ON attempts (changed_at) WHERE outcome IS NOT NULL AND delivered = 0;
    CREATE INDEX latest ON attempts (changed_at);
    ALTER TABLE tombstones RENAME TO tombstones_2;
    CREATE TABLE tombstones (
        run_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        kid TEXT NOT NULL,
        deadline REAL NOT NULL,
        PRIMARY KEY (run_id, attempt, kid)
    ) WITHOUT ROWID;
    INSERT INTO tombstones SELECT run_id, attempt, '', deadline FROM tombstones_2;
    DROP TABLE tombstones_2;
    CREATE TABLE commands (
        kid TEXT NOT NULL,
        id TEXT NOT NULL,
        expires REAL NOT NULL,
        PRIMARY KEY (kid, id)
    ) WITHOUT ROWID;
    """,
)
SCHEMA_VERSION = len(STEPS)


def path_of(directory: Path, pod_uid: str) -> Path:
    """One file a pod uid, so that a successor of the same name never speaks for its predecessor."""
    return directory / f"journal-{re.sub(r'[^A-Za-z0-9-]', '_', pod_uid)[:128]}.sqlite3"


def lock_of(path: Path) -> Path:
    """The lock beside a journal."""
    return path.with_suffix(".lock")


def read_suffix(path: Path) -> str | None:
    """The suffix that is kept in the lock; None if there is none yet, or it cannot be read."""
    try:
        text = lock_of(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[0-9a-f]{12}", text) else None


def keep_suffix(path: Path, suffix: str) -> None:
    """Write it into the lock, if it can be written; the mark of a refusal stays as it is."""
    with contextlib.suppress(OSError):
        mark = lock_of(path).stat().st_mtime if lock_of(path).exists() else 0
        lock_of(path).write_text(suffix, encoding="ascii")
        os.utime(lock_of(path), (mark, mark))


def mark_refused(path: Path, until: datetime) -> None:
    """Note that what was issued before `until` may have been refused without a record.

    A time stamp can be set where nothing can be written any more: on a disk that is full.

    Raises:
        OSError: not here either (a read-only file system).
    """
    seconds = max(until.timestamp(), lock_of(path).stat().st_mtime)
    os.utime(lock_of(path), (seconds, seconds))


def refused_until(path: Path) -> datetime:
    """The latest mark, or long ago."""
    return datetime.fromtimestamp(lock_of(path).stat().st_mtime, UTC)


def lock(path: Path) -> int:
    """Make the directory if need be and take the file for this process; returns the lock's descriptor.

    The lock is a file beside the journal. It holds the client id's suffix, for the session must be found again also
    while the journal cannot be read, and its modification time is the latest mark of a refusal (`mark_refused`).

    Raises:
        JournalLocked: another agent has it.
        JournalUnavailable: no room or no right.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = not lock_of(path).exists()
        held = os.open(lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if new:
            os.utime(held, (0, 0))  # no mark yet
    except OSError as error:
        raise JournalUnavailable(f"cannot use state directory {path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise JournalLocked(f"another agent has {path} open; give each agent its own state directory") from error
    except OSError as error:
        os.close(held)
        raise JournalUnavailable(f"cannot lock {path}: {error.strerror}") from error
    return held


def connect(path: Path, now: datetime) -> sqlite3.Connection:
    """Open the file, or make it, with the present schema.

    Raises:
        JournalNewer: written by a newer podhook; left untouched.
        sqlite3.Error: damaged (see `is_damage`), or the disk's fault.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # its -wal and -shm get the same mode
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise JournalNewer(
                f"journal {path} has schema {version}, this podhook knows up to {SCHEMA_VERSION}; upgrade the agent"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an acknowledgement goes out next: it must be on disk
        if version > 0 and (verdict := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"damaged: {verdict}")
        if version < SCHEMA_VERSION:
            _bring_up_to_date(connection, version, now)
        # Only now: a step may copy a table, and needs twice its room for that.
        connection.execute(f"PRAGMA max_page_count = {MAX_BYTES // PAGE_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up_to_date(connection: sqlite3.Connection, version: int, now: datetime) -> None:
    """All missing steps or none: a crash in between leaves the file as it was."""
    connection.execute("BEGIN IMMEDIATE")
    for step in STEPS[version:]:
        for statement in step.split(";"):
            if statement.strip():
                connection.execute(statement)
    if version == 0:
        born = repr(now.timestamp())
        for key, value in (
            ("born_at", born),
            ("floor", born),
            ("forgotten_deadline", "0.0"),
            ("client_suffix", secrets.token_hex(6)),
        ):
            connection.execute("INSERT INTO meta (key, value) VALUES (?, ?)", (key, value))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file itself is at fault, and not the disk, a lock or a right: waiting will not mend it."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:  # found by us, or text that is not UTF-8
        return True
    damaged = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}  # ERROR: a table is missing
    return code & 0xFF in damaged or code == sqlite3.SQLITE_IOERR_SHORT_READ


def set_aside(path: Path, now: datetime) -> Path:
    """Rename a damaged file, for people to look at; returns its new path."""
    aside = path.with_name(f"{path.name}.corrupt-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside
