"""A directory as Kubernetes mounts a Secret or a ConfigMap, and renews it: in one step, by swapping a link."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

DATA = "..data"


class Mounted:
    """`directory/NAME` is a link to `..data/NAME`, and `..data` to a directory that is never written to again.

    (Kubernetes, pkg/volume/util/atomic_writer.go.) Files have the mode given, 0644 if none is. With a pod's `fsGroup`
    they are that group's to read, too (volume_linux.go, SetVolumeOwnership). One that was mounted before is renewed.
    """

    def __init__(
        self, directory: Path, files: Mapping[str, bytes], mode: int = 0o644, fs_group: int | None = None
    ) -> None:
        self.directory = directory
        self._mode = mode if fs_group is None else mode | 0o440
        self._group = -1 if fs_group is None else fs_group
        directory.mkdir(parents=True, exist_ok=True)
        self.renew(files)

    def renew(self, files: Mapping[str, bytes]) -> None:
        """Swap in other content. Names that are new get their link after it, as those that are gone lose theirs."""
        before = (self.directory / DATA).resolve() if (self.directory / DATA).exists() else None
        made = self.directory / f"..{uuid.uuid4().hex}"
        made.mkdir()
        made.chmod(0o755)
        for name, content in files.items():
            (made / name).write_bytes(content)
            if os.geteuid() == 0:
                os.chown(made / name, -1, self._group)
            (made / name).chmod(self._mode)
        aside = self.directory / "..data_tmp"
        aside.symlink_to(made.name)
        aside.replace(self.directory / DATA)
        for name in files:
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"{DATA}/{name}")
        for path in self.directory.iterdir():
            if not path.name.startswith("..") and path.name not in files:
                path.unlink()
        if before is not None:
            shutil.rmtree(before)
