"""The commands of `podhook`. Each lives in a file of its own and is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

#: Command -> (module, what it is for). The module has a function `command`, or a `group` of them.
COMMANDS = {
    "run": "Run the hooks of a file and gather one verdict each.",
    "around": "Run a command between a plan's pre hooks and its post hooks.",
    "agents": "Show which agents are there.",
    "runs": "Show the latest runs that the agents know.",
    "query": "Ask the agents what became of a run, whoever began it.",
    "cancel": "Cancel a run, whoever began it.",
    "broker": "Issue users of the broker, and make it read its files again when they change.",
    "check": "Validate a file of hooks, or a broker; explains every problem.",
    "keygen": "Make a pair of keys, for a coordinator or for a namespace's agents.",
    "policy": "Check what an agent's policy says, or whether it allows a hook.",
    "crds": "Print HookTemplate and Function for a cluster that does not know them.",
    "agent": "Be an agent: the sidecar beside a database.",
    "demo": "See it work: a broker, five agents and a file of hooks, on this machine.",
}


class LazyGroup(TyperGroup):
    """A group whose commands are imported only when they are used: start-up time is part of every hook."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Every command, in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"agent.cli.{cmd_name}")
        if hasattr(module, "group"):
            return typer.main.get_command(module.group)
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        kind = getattr(module, "click_class", None)
        single.command(cmd_name, cls=kind, help=module.command.__doc__, short_help=COMMANDS[cmd_name])(module.command)
        return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from agent import __version__

        print(f"podhook {__version__}")
        raise typer.Exit


@app.callback()
def _podhook(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Backup hooks beside every database: agents run them in their own pods, triggered over MQTT.

    Exit codes: 0 succeeded, 1 a hook failed, 2 usage or invalid file, 3 no targets or missing agents (nothing was
    triggered), 4 broker or cluster unreachable or refused us, 5 still running, 130 interrupted.
    """


def main() -> None:
    """Entry point."""
    from agent.cli.streams import fill_closed

    fill_closed()
    app(prog_name="podhook")
