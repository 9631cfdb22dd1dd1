"""Where `podhook` begins: before anything heavy is imported, the agent gives its privileges to a launcher.

`PODHOOK_LAUNCHER=true` (the image sets it) asks for that; it needs root with the runtime's default capabilities.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the command `podhook`."""
    asked = os.environ.get("PODHOOK_LAUNCHER", "").lower() in ("true", "1", "yes", "on")
    helping = {"--help", "-h", "--version"} & set(sys.argv)
    if asked and sys.argv[1:2] == ["agent"] and not helping:
        from agent.pod.supervisor import supervise  # noqa: PLC0415

        flag = _flag("--state-dir")
        state_dir = supervise(flag or os.environ.get("PODHOOK_STATE_DIR") or "/var/lib/podhook")
        if flag:
            sys.argv += ["--state-dir", state_dir]  # the last one counts
        else:
            os.environ["PODHOOK_STATE_DIR"] = state_dir
    from agent.cli.main import main as cli  # noqa: PLC0415

    cli()


def _flag(name: str) -> str:
    """The value of a flag, as `--flag value` or `--flag=value`; the command line is parsed only later."""
    value = ""
    for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if argument == name:
            value = following
        elif argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
    return value
