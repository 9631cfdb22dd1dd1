"""What is in the files that a broker reads: hashes only, within bounds, whatever somebody mounted there."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from agent.contract.errors import InvalidSettings

#: Ten thousand users of mosquitto are 1.3 MB of hashes and as much of rules; all of it is read each second.
LIMIT_BYTES = 16 * 1024 * 1024
LIMIT_FILES = 256
_PIECE_BYTES = 1 << 16


def snapshot(paths: Iterable[Path]) -> dict[str, bytes]:
    """The hash of each file; of a directory, of the files directly in it.

    In a directory, names that begin with a dot do not count: `..data` and its like are how Kubernetes swaps what it
    mounts, and `.lock` is how `podhook broker user` takes turns. What a file is by its links is what counts, so a swap
    is a change if the content changed.

    Raises:
        InvalidSettings: something is missing, is no file, cannot be read, or is too much; names it and what to do.
    """
    found: dict[str, bytes] = {}
    left = LIMIT_BYTES
    for path in _files(paths):
        if len(found) >= LIMIT_FILES:
            raise InvalidSettings(f"more than {LIMIT_FILES} files are to be watched; name the ones that matter")
        found[str(path)], size = _hash(path, left)
        left -= size
    return found


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        try:
            is_directory = stat.S_ISDIR(path.stat().st_mode)
            names = sorted(os.listdir(path)) if is_directory else []  # noqa: PTH208 (a Path each would be thrown away)
        except OSError as error:
            raise _unreadable(path, error) from error
        if not is_directory:
            yield path
        for name in names:
            entry = path / name
            if not name.startswith(".") and not entry.is_dir():
                yield entry


def _hash(path: Path, limit_bytes: int) -> tuple[bytes, int]:
    """The hash and the size of a regular file."""
    digest, size = hashlib.sha256(), 0
    try:
        # A FIFO would let us wait for somebody who writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 (a descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidSettings(f"{path} is no regular file; name the files that the broker reads")
            while piece := file.read(_PIECE_BYTES):
                size += len(piece)
                if size > limit_bytes:
                    raise InvalidSettings(
                        f"the files to be watched have more than {LIMIT_BYTES} bytes together ({path} is one of them); "
                        "name the ones that matter"
                    )
                digest.update(piece)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.digest(), size


def _unreadable(path: Path, error: OSError) -> InvalidSettings:
    advice = "mount it, or name another path" if isinstance(error, FileNotFoundError) else "let this user read it"
    return InvalidSettings(f"{path}: {error.strerror or error}; {advice}")
