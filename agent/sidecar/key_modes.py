"""Whether commands in the agent's own container could read its key, or change whom it trusts: by mode and owner."""

from __future__ import annotations

import os
import stat
from pathlib import Path

READABLE = (
    "a hook that runs in the agent's own container can read {path} (mode {mode:04o}), and so speak for every agent of "
    "the namespace: give the file to user {agent} alone, mode 0400 (docs/security.md, Agents sign), or forbid hooks "
    "there by PODHOOK_POLICY"
)
WRITABLE = (
    "a hook that runs in the agent's own container can write to {path} (mode {mode:04o}), and so choose whom the agent "
    "obeys: mount it read-only, or take the right to write from others than its owner"
)


def exposed(agent_key: Path | None, trusted_keys: Path | None, *, agent: int, commands: int) -> str | None:
    """What stands in the way of keeping keys from commands of user and group `commands`; None if nothing does.

    What cannot be looked at is not told here: whoever reads it does. Access lists beyond the mode are not looked at.
    """
    said = []
    if agent_key is not None and (mode := _open_to(agent_key, commands, stat.S_IROTH)) is not None:
        said.append(READABLE.format(path=agent_key, mode=mode, agent=agent))
    if trusted_keys is not None:
        for path in (trusted_keys, *_files_in(trusted_keys)):
            if (mode := _open_to(path, commands, stat.S_IWOTH)) is not None:
                said.append(WRITABLE.format(path=path, mode=mode))
                break
    return "; ".join(said) or None


def _files_in(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir()) if path.is_dir() else []
    except OSError:
        return []


def _open_to(path: Path, user: int, right: int) -> int | None:
    """The mode of a file that this user may read (S_IROTH) or write (S_IWOTH), and reach; else None."""
    try:
        real = path.resolve(strict=True)
        found = real.stat()
        if not _may(found, user, right) or not all(_may(each.stat(), user, stat.S_IXOTH) for each in real.parents):
            return None
        if right == stat.S_IWOTH and os.statvfs(real).f_flag & os.ST_RDONLY:
            return None
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError
        return None
    return stat.S_IMODE(found.st_mode)


def _may(found: os.stat_result, user: int, right: int) -> bool:
    """As the kernel judges: the owner's right counts for the owner, the group's for the group, else the others'."""
    if found.st_uid == user:
        return bool(found.st_mode & (right << 6))
    if found.st_gid == user:
        return bool(found.st_mode & (right << 3))
    return bool(found.st_mode & right)
