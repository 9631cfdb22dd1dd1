"""A directory as Kubernetes mounts a Secret or a ConfigMap, and renews it: in one step, by swapping a link."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

DATA = "..data"


class Mounted:
    """`directory/NAME` is a link to `..data/NAME`, and `..data` to a directory that is never written to again.

    (Kubernetes, pkg/volume/util/atomic_writer.go.) Files have the mode given, 0644 if none is.
    """

    def __init__(self, directory: Path, files: Mapping[str, bytes], mode: int = 0o644) -> None:
        self.directory = directory
        self._mode = mode
        directory.mkdir(parents=True, exist_ok=True)
        self.renew(files)

    def renew(self, files: Mapping[str, bytes]) -> None:
        """Swap in other content. Names that are new get their link after it, as those that are gone lose theirs."""
        before = (self.directory / DATA).resolve() if (self.directory / DATA).exists() else None
        made = self.directory / f"..{uuid.uuid4().hex}"
        made.mkdir()
        for name, content in files.items():
            (made / name).write_bytes(content)
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
