"""The loop beside a broker: look at its files each second, and tell it when they changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from agent.bus.reload.changes import Changes
from agent.bus.reload.files import snapshot
from agent.bus.reload.process import NotToldError
from agent.contract.errors import InvalidSettings

log = structlog.get_logger("podhook.reload")

#: The kubelet renews what it mounts once a minute or so: sooner is soon enough.
LOOK_SECONDS = 1.0


class Reloader:
    """Watches files and tells a broker; what stands in the way is logged once, and tried again at each look.

    Args:
        paths: files, and directories of them.
        tell: tells the broker, and returns its process number; raises NotToldError.
        look: reads the files; another one in tests.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        tell: Callable[[], int],
        look: Callable[[Sequence[Path]], Mapping[str, bytes]] = snapshot,
    ) -> None:
        self._paths = paths
        self._tell = tell
        self._look = look
        self._changes = Changes()
        self._problem: str | None = None

    def run(self, wait: Callable[[float], bool]) -> None:
        """Look until `wait` (seconds) says that it is over."""
        log.info("reloader.started", watched=[str(each) for each in self._paths])
        while True:
            self.step()
            if wait(LOOK_SECONDS):
                log.info("reloader.stopped")
                return

    def step(self) -> None:
        """Look once, and tell the broker if that is due."""
        changes = self._changes
        try:
            changes.look(self._look(self._paths))
        except InvalidSettings as error:
            changes.unreadable()
            self._note(str(error))
            return
        if changes.gone:
            self._note(
                f"{', '.join(changes.gone)} is gone, and mosquitto without its acl lets everybody do everything: "
                "bring it back, or restart this if it shall be gone"
            )
            return
        if not changes.due:
            self._note(None)
            return
        changed = changes.changed
        try:
            pid = self._tell()
        except NotToldError as error:
            self._note(str(error))
            return
        changes.took()
        self._note(None)
        log.info("broker.told_to_reload", pid=pid, changed=list(changed))

    def _note(self, problem: str | None) -> None:
        if problem not in (None, self._problem):
            log.warning("broker.not_told", problem=problem)
        self._problem = problem
