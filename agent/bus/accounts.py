"""The files in which a broker finds its users: changed under a lock, replaced in one step, readable by few."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.bus import access
from agent.bus.access import User
from agent.bus.passwords import bcrypt_hash, mosquitto_hash, new_password
from agent.contract.errors import InvalidSettings
from agent.contract.topics import Topics

_MODE = 0o600
_LOCK = ".lock"
_PASSWORD_LINE = re.compile(r"[^:\s]+:\S+")


class UnknownUserError(InvalidSettings):
    """A user that is to be changed or removed is not there."""


@dataclass(frozen=True, slots=True)
class MosquittoFiles:
    """`passwords` and `acl` in one directory, as manifests/broker/mosquitto mounts them."""

    directory: Path
    topics: Topics

    @property
    def _passwords(self) -> Path:
        return self.directory / "passwords"

    @property
    def _acl(self) -> Path:
        return self.directory / "acl"

    def put(self, user: User, password: str | None, *, patterned: bool, needs_none: bool) -> bool:
        """Add or change a user, with a new password or (None) the one that it has; returns whether it was there before.

        `patterned`: the pattern for every namespace covers it, so it has no rules of its own. `needs_none`: it shows a
        certificate, so no password is fine.

        Raises:
            UnknownUserError: a password is to be kept, and there is none.
            InvalidSettings: a file cannot be read, written or understood; nothing was changed, or the command can be
                given again.
        """
        with locked(self.directory):
            acl = read(self._acl) or access.mosquitto_base(self.topics)
            self._check_root(acl)
            lines = self._lines()
            if password is None and not needs_none and not any(_is_of(line, user.name) for line in lines):
                raise UnknownUserError(
                    f"there is no user {user.name} in {self._passwords} whose password could be kept"
                )
            before = access.mosquitto_has(acl, user.name) or any(_is_of(line, user.name) for line in lines)
            if password is not None:
                lines = [line for line in lines if not _is_of(line, user.name)]
                lines.append(f"{user.name}:{mosquitto_hash(password)}")
            replace(self._acl, acl if patterned else access.mosquitto_with(acl, user))
            replace(self._passwords, "".join(f"{line}\n" for line in lines))
            return before

    def remove(self, name: str) -> None:
        """Remove a user and its rules.

        Raises:
            UnknownUserError: it is not there.
            InvalidSettings: a file cannot be read, written or understood.
        """
        with locked(self.directory):
            lines, acl = self._lines(), read(self._acl)
            kept = [line for line in lines if not _is_of(line, name)]
            rules = access.mosquitto_without(acl, name)
            if kept == lines and rules == acl:
                raise UnknownUserError(f"there is no user {name} in {self._passwords} or {self._acl}")
            replace(self._passwords, "".join(f"{line}\n" for line in kept))
            if rules != acl:
                replace(self._acl, rules)

    def _lines(self) -> list[str]:
        lines = [line for line in read(self._passwords).splitlines() if line.strip()]
        for number, line in enumerate(lines, start=1):
            if not _PASSWORD_LINE.fullmatch(line):
                raise InvalidSettings(f"{self._passwords}, line {number}, is not `user:hash`; mend the file by hand")
        return lines

    def _check_root(self, acl: str) -> None:
        wanted = f"pattern read {self.topics.commands('%u', '+')}"
        if wanted not in acl.splitlines():
            raise InvalidSettings(
                f"{self._acl} has no line {wanted!r}, the rule by which agents read commands; "
                "give its --topic-root, or begin with the file of manifests/broker/mosquitto"
            )


@dataclass(frozen=True, slots=True)
class NatsFiles:
    """`users.conf` in a directory, as manifests/broker/nats includes it."""

    directory: Path

    @property
    def _users(self) -> Path:
        return self.directory / "users.conf"

    def put(self, user: User, password: str | None, *, patterned: bool, needs_none: bool) -> bool:  # noqa: ARG002
        """Add or change a user, with a new password or (None) the one that it has; returns whether it was there before.

        NATS has neither patterns nor, here, certificates: each user has its own rules and a password.

        Raises:
            UnknownUserError: a password is to be kept, and there is none.
            InvalidSettings: the file cannot be read, written or understood, or no bcrypt is at hand.
        """
        with locked(self.directory):
            users = self._all()
            before = next((each for each in users if each["user"] == user.name), None)
            if password is None and before is None:
                raise UnknownUserError(f"there is no user {user.name} in {self._users} whose password could be kept")
            hashed = bcrypt_hash(password) if password is not None else str((before or {})["password"])
            kept = [each for each in users if each["user"] != user.name]
            self._write([*kept, access.nats_user(user, hashed)])
            return before is not None

    def remove(self, name: str) -> None:
        """Remove a user.

        Raises:
            UnknownUserError: it is not there.
            InvalidSettings: the file cannot be read, written or understood.
        """
        with locked(self.directory):
            users = self._all()
            kept = [each for each in users if each["user"] != name]
            if kept == users:
                raise UnknownUserError(f"there is no user {name} in {self._users}")
            self._write(kept)

    def _all(self) -> list[dict[str, object]]:
        text = read(self._users)
        return access.nats_users(text) if text else []

    def _write(self, users: list[dict[str, object]]) -> None:
        if not any(each["user"] == access.NATS_NOBODY for each in users):
            users = [access.nats_nobody(bcrypt_hash(new_password())), *users]
        replace(self._users, access.nats_text(users))


Files = MosquittoFiles | NatsFiles


def write_secret(directory: Path, user: str, password: str) -> None:
    """Write `user` and `password` into a directory, as the agent's and the coordinator's `*_FILE` settings read them.

    Raises:
        InvalidSettings: it cannot be written.
    """
    _errors_named(lambda: directory.mkdir(mode=0o700, parents=True, exist_ok=True), directory)
    replace(directory / "user", user)
    replace(directory / "password", password)


# -- files


def _is_of(line: str, name: str) -> bool:
    return line.partition(":")[0] == name


def _errors_named(work: Callable[[], object], path: Path) -> None:
    try:
        work()
    except OSError as error:
        raise InvalidSettings(f"{path}: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: two commands at once would lose a user of one.

    Raises:
        InvalidSettings: the directory or its lock cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    except OSError as error:
        raise InvalidSettings(f"{directory} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(path: Path) -> str:
    """The text of a file; empty if it is not there.

    Raises:
        InvalidSettings: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def replace(path: Path, text: str) -> None:
    """Replace a file in one step, so that a broker that reads meanwhile sees the old or the new one.

    Mode 0600; one that was there keeps its owner, and its group's right to read.

    Raises:
        InvalidSettings: it cannot be written; the old one is as it was.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")

    def work() -> None:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                with contextlib.suppress(FileNotFoundError):
                    _as_before(file.fileno(), path)
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    _errors_named(work, path)


def _as_before(descriptor: int, path: Path) -> None:
    before = path.stat()
    if os.geteuid() == 0:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, _MODE | (before.st_mode & 0o040))
