"""Whose commands this agent obeys, and the key with which it signs what it says; both read again on change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent.contract.errors import ErrorCode, InvalidKey, InvalidSettings, Unverified
from agent.contract.messages import MAX_COMMAND_BYTES
from agent.contract.signing.peeking import KEY_SUFFIXES, looks_signed, peek
from agent.sidecar.obeyed import UNSIGNED

if TYPE_CHECKING:
    from agent.contract.signing.keys import Keyring, SigningKey, TrustedKey

#: A mounted volume has more files than keys, all of them hidden.
MAX_FILES = 256


@dataclass(frozen=True, slots=True)
class Voucher:
    """Who vouches for a command: a key by its thumbprint; "" is whoever reaches the broker, where that is enough.

    `since` is when that came to be enough here, also over restarts; None where nobody keeps it.
    """

    kid: str = ""
    name: str = ""
    operator: bool = True
    since: datetime | None = None

    def may_end(self, kid: str) -> bool:
        """Whether it may speak of what this other key began: its own, or any as an operator."""
        return self.operator or self.kid == kid


#: Where unsigned commands are obeyed, everybody is an operator.
ANYBODY = Voucher()


@dataclass(frozen=True, slots=True)
class Trust:
    """What is trusted at this moment. `keys` None: no key; then everybody is if `allow_unsigned`, else nobody."""

    namespace: str
    keys: Keyring | None
    allow_unsigned: bool
    since: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Whether nobody at all is obeyed."""
        return self.keys is None and not self.allow_unsigned

    def open(self, payload: bytes) -> tuple[bytes, Voucher]:
        """The CloudEvent in a payload, and who vouches for it. A message never chooses: the agent does.

        Raises:
            Unverified: nobody who is trusted does.
        """
        if self.keys is None:
            if not self.allow_unsigned:
                raise Unverified(
                    ErrorCode.UNSIGNED,
                    "the agent has no trusted key and does not run unsigned triggers; give it the public keys of its "
                    "coordinators (PODHOOK_TRUSTED_KEYS, made by `podhook keygen`), or set "
                    "PODHOOK_ALLOW_UNSIGNED=true if everybody who reaches the broker may run commands here",
                )
            return peek(payload), Voucher(since=self.since.get(UNSIGNED))
        if not looks_signed(payload):
            raise Unverified(
                ErrorCode.UNSIGNED,
                "the agent obeys only signed commands, and this one is not; sign it with a key that it trusts "
                "(--key FILE or PODHOOK_KEY)",
            )
        from agent.contract.signing.envelope import Typ, verify  # noqa: PLC0415 (10 MB, for those who have keys)

        verified = verify(payload, self.keys, Typ.COMMAND, limit_bytes=MAX_COMMAND_BYTES)
        if not verified.key.may_command(self.namespace):
            raise Unverified(
                ErrorCode.KEY_NOT_ALLOWED,
                f"key {verified.key} may not command namespace {self.namespace!r} (only: "
                f"{', '.join(sorted(verified.key.namespaces or ()))}); sign with another, or add it to the key's file",
            )
        key = verified.key
        return verified.payload, Voucher(key.kid, key.name, key.operator, self.since.get(key.kid))


class TrustedKeys:
    """The keys in a file or a directory, read again when something there changes.

    A file that cannot be read is reported, and its keys are not trusted: removing a file revokes at once, and so does
    breaking it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: object = None
        self.keyring: Keyring | None = None
        self.problem: str | None = None

    def look(self) -> bool:
        """Read what changed; returns whether something did."""
        from agent.contract.signing.keys import Keyring, parse_trusted_keys  # noqa: PLC0415

        problems: list[str] = []
        try:
            files = key_files(self._path)
        except OSError as error:
            files = []
            problems.append(f"{self._path} cannot be read ({error.strerror})")
        texts, stamp = _read(files, problems)
        if (stamp, tuple(problems)) == self._seen:
            return False
        self._seen = (stamp, tuple(problems))
        keys: list[TrustedKey] = []
        for path, text in texts.items():
            try:
                keys += parse_trusted_keys(text, path.name)
            except InvalidKey as error:
                problems.append(str(error))
        try:
            ring = Keyring(keys)
            self.keyring = ring if len(ring) else None
            problems += ring.contradictions
        except InvalidKey as error:
            self.keyring = None
            problems.append(str(error))
        self.problem = f"trusted keys: {'; '.join(problems)}" if problems else None
        return True


def key_files(path: Path) -> list[Path]:
    """The files of keys below a path: itself, or those in a directory that are named like keys and not hidden.

    Raises:
        OSError: it is not there, or may not be read.
    """
    if not path.is_dir():
        path.stat()
        return [path]
    return sorted(each for each in path.iterdir() if each.suffix in KEY_SUFFIXES and not each.name.startswith("."))


def _read(files: list[Path], problems: list[str]) -> tuple[dict[Path, bytes], tuple[tuple[str, bytes], ...]]:
    """What stands in the files; what cannot be read goes to `problems`."""
    from agent.contract.signing.keys import MAX_KEY_FILE_BYTES  # noqa: PLC0415

    texts: dict[Path, bytes] = {}
    if len(files) > MAX_FILES:
        problems.append(f"there are {len(files)} files of keys; the limit is {MAX_FILES}, and none is read")
        files = []
    for path in files:
        try:
            with path.open("rb") as file:
                texts[path] = file.read(MAX_KEY_FILE_BYTES + 1)
        except OSError as error:
            problems.append(f"{path.name} cannot be read ({error.strerror})")
    return texts, tuple((str(path), text) for path, text in texts.items())


class Signature:
    """How this agent signs what it says: with its namespace's agent key, or not at all while it has none.

    A broken file keeps the last good key. `configured` is whether there shall be a key: while it cannot be read, nobody
    is believed to speak for this agent. Without, everybody is who reaches its topic.
    """

    def __init__(self, *, configured: bool = False) -> None:
        self.key: SigningKey | None = None
        self._configured = configured
        self._ring: Keyring | None = None

    def use(self, text: str, path: Path) -> None:
        """Take the keys in a file from now on: the first private one signs, all are believed.

        Raises:
            InvalidSettings: there is no private key.
        """
        from agent.contract.signing.keys import Keyring, parse_agent_keys  # noqa: PLC0415

        try:
            key, believed = parse_agent_keys(text, str(path))
            ring = Keyring(replace(each, namespaces=None, operator=False) for each in believed)
        except InvalidKey as error:
            raise InvalidSettings(str(error)) from error
        self.key, self._ring = key, ring

    def sign(self, said: bytes) -> bytes:
        """What goes out."""
        if self.key is None:
            return said
        from agent.contract.signing.envelope import Typ, sign  # noqa: PLC0415

        return sign(said, self.key, Typ.OUTCOME)

    def ours(self, payload: bytes) -> bytes:
        """What an agent of our own namespace said.

        Raises:
            Unverified: we have a key, or shall have one, and this is not signed with one that we believe.
        """
        if self._ring is None:
            if self._configured:
                raise Unverified(ErrorCode.UNKNOWN_KEY, "the agent's own key could not be read yet: nobody is believed")
            return peek(payload)
        from agent.contract.signing.envelope import Typ, verify  # noqa: PLC0415

        return verify(payload, self._ring, Typ.OUTCOME, limit_bytes=MAX_COMMAND_BYTES).payload
