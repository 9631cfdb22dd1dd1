"""The policy file of a running agent: read again when it changes, and never open because it cannot be read."""

from __future__ import annotations

from pathlib import Path

import structlog

from agent.contract.errors import ErrorCode, InvalidPolicy, InvalidSettings, Refusal
from agent.pod.identity import WatchedFile
from agent.sidecar.policy.document import Policy, load_policy

log = structlog.get_logger("podhook.policy")

#: The rule that refuses everything while there is no other: the setting that asks for a policy.
RULE = "PODHOOK_POLICY"
#: Of a broken file, presence says so many problems; `podhook policy check` says all.
_TOLD = 3


class PolicyFile:
    """The last good policy of a file; `path` None is an agent without a policy."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = WatchedFile(path)
        self._policy: Policy | None = None
        self.problem: str | None = None

    def look(self) -> None:
        """Read the file if it changed. A file that cannot be used leaves the last good policy; `problem` says so."""
        try:
            text = self._file.changed()
            if text is None:
                return
            self._policy = load_policy(text)
        except InvalidPolicy as error:
            more = f"; and {len(error.problems) - _TOLD} more" if len(error.problems) > _TOLD else ""
            self._broken("; ".join(str(problem) for problem in error.problems[:_TOLD])[:1500] + more)
        except InvalidSettings as error:
            self._broken(str(error))
        else:
            self.problem = None
            log.info(
                "policy.loaded",
                path=str(self._path),
                inline=self._policy.document.inline,
                containers=list(self._policy.commands),
                catalogue=list(self._policy.catalogue),
            )

    def _broken(self, why: str) -> None:
        state = "the policy is as last read" if self._policy is not None else "every trigger is refused: no policy yet"
        self.problem = f"{state}: PODHOOK_POLICY: {why} (podhook policy check names every problem)"

    def current(self) -> Policy | None:
        """The policy in force; None without a policy file.

        Raises:
            Refusal: there is a file, and it could never be used.
        """
        if self._path is not None and self._policy is None:
            raise Refusal(
                ErrorCode.POLICY_UNAVAILABLE,
                f"this agent was given the policy {self._path}, and has never been able to use it, so it runs nothing; "
                "mend the file: podhook policy check names every problem",
                RULE,
            )
        return self._policy
