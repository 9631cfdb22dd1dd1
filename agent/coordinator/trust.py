"""With which key the coordinator signs, and whose word it takes: agent keys by namespace, if it was given them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.contract.errors import BadInput, ErrorCode, InvalidKey, Unverified
from agent.contract.events import digest, digest_of_unverified
from agent.contract.messages import MAX_COMMAND_BYTES
from agent.contract.signing.peeking import KEY_SUFFIXES, peek
from agent.contract.topics import check_name

if TYPE_CHECKING:
    from agent.contract.signing.keys import Keyring, SigningKey, TrustedKey


@dataclass(frozen=True, slots=True)
class Sealed:
    """A command as it is sent. Answers to it name `digest`, or `digest_of_refusal` if they do not believe it."""

    payload: bytes
    digest: str
    digest_of_refusal: str


@dataclass(frozen=True, slots=True)
class Trust:
    """The coordinator's own key, and the public keys of agents by namespace. None: unsigned, and unverified."""

    key: SigningKey | None = None
    agents: Mapping[str, Keyring] | None = None

    @property
    def kid(self) -> str:
        """The thumbprint of our own key; "" if we sign nothing."""
        return self.key.kid if self.key is not None else ""

    @property
    def verifies(self) -> bool:
        """Whether what agents say is verified."""
        return self.agents is not None

    def seal(self, said: bytes) -> Sealed:
        """Sign a command, if there is a key."""
        payload = said
        if self.key is not None:
            from agent.contract.signing.envelope import Typ, sign  # noqa: PLC0415 (only for who has a key)

            payload = sign(said, self.key, Typ.COMMAND)
        return Sealed(payload, digest(said), digest_of_unverified(payload))

    def open(self, payload: bytes, namespace: str) -> bytes:
        """What an agent of a namespace said.

        Raises:
            Unverified: there are agent keys, and this is not signed with one of that namespace's.
        """
        if self.agents is None:
            return peek(payload)
        from agent.contract.signing.envelope import Typ, verify  # noqa: PLC0415

        keys = self.agents.get(namespace)
        if keys is None:
            known = ", ".join(sorted(self.agents)) or "none"
            raise Unverified(ErrorCode.UNKNOWN_KEY, f"there is no agent key of namespace {namespace!r} (have: {known})")
        return verify(payload, keys, Typ.OUTCOME, limit_bytes=MAX_COMMAND_BYTES).payload


def printable(text: str, limit: int = 400) -> str:
    """A sentence that repeats what a stranger wrote, fit for a terminal and a line of a log."""
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[:limit])
    return shown if len(text) <= limit else f"{shown}..."


def load_key(path: Path) -> SigningKey:
    """A coordinator's private key. Raises InvalidKey, naming the file."""
    from agent.contract.signing.keys import parse_signing_key  # noqa: PLC0415

    return parse_signing_key(_read(path), str(path))


def load_agent_keys(directory: Path) -> dict[str, Keyring]:
    """The public keys of agents, by namespace: files named after it (`shop.pub`), and all in a directory of its name.

    A file may be a JWKS. Hidden files, those of other names, and other directories are left alone: who has no key is
    not believed.

    Raises:
        InvalidKey: no directory, no key in it, or a file that is none; names it.
    """
    from agent.contract.signing.keys import Keyring, parse_trusted_keys  # noqa: PLC0415

    try:
        files = list(_agent_key_files(directory))
    except OSError as error:
        raise InvalidKey(
            f"agent keys {error.filename or directory}: {error.strerror}; give a directory with NAMESPACE.pub files "
            "in it, or with a directory of such files for each NAMESPACE"
        ) from error
    keys: dict[str, list[TrustedKey]] = {}
    for name, path in files:
        try:
            namespace = check_name("namespace", name)
        except BadInput as error:
            raise InvalidKey(f"agent key {path}: a file is named after its namespace: {error}") from error
        keys.setdefault(namespace, []).extend(parse_trusted_keys(_read(path), str(path)))
    if not keys:
        raise InvalidKey(
            f"there is no agent key in {directory}; put the public key of each namespace there, NAMESPACE.pub"
        )
    rings = {namespace: Keyring(found) for namespace, found in keys.items()}
    for namespace, ring in rings.items():
        if ring.contradictions:
            raise InvalidKey(f"agent keys of namespace {namespace}: {'; '.join(ring.contradictions)}")
    return rings


def _is_name(text: str) -> bool:
    try:
        check_name("namespace", text)
    except BadInput:
        return False
    return True


def _agent_key_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Files of keys, and what each calls its namespace. Raises OSError."""
    for each in sorted(directory.iterdir()):
        if each.name.startswith("."):
            continue
        if not each.is_dir():
            if each.suffix in KEY_SUFFIXES:
                yield each.stem, each
        elif _is_name(each.name):
            inside = sorted(each.iterdir())
            yield from ((each.name, one) for one in inside if one.suffix in KEY_SUFFIXES and one.name[0] != ".")


def _read(path: Path) -> bytes:
    from agent.contract.signing.keys import MAX_KEY_FILE_BYTES  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidKey(f"key file {path}: {error.strerror}") from error
