"""`podhook crds`: HookTemplate and Function for a cluster that does not know them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from agent.cli.exits import errors_as_exits


class Whose(StrEnum):
    """In whose API groups they are."""

    PODHOOK = "podhook"
    KUBESTASH = "kubestash"


def command(
    group: Annotated[
        Whose, typer.Option("--group", help="podhook.dev, or KubeStash's core.kubestash.com and addons.kubestash.com.")
    ] = Whose.PODHOOK,
) -> None:
    """Print the CustomResourceDefinitions of HookTemplate and Function, for `kubectl apply -f -`.

    They are for clusters without KubeStash. Where KubeStash is, its own are there already and podhook reads its
    objects: --group kubestash would replace its definitions by ours.
    """
    with errors_as_exits():
        print(written(str(group)), end="")


def written(whose: str) -> str:
    """Both definitions as YAML."""
    import yaml

    from agent.contract.crds import definitions

    return yaml.safe_dump_all(definitions(whose), sort_keys=False, width=120)
