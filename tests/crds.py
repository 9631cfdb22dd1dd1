"""The files of manifests/crds, as the models of today make them. `make crds` writes them."""

from __future__ import annotations

from pathlib import Path

import yaml

from agent.contract.crds import OWN, definitions

FOLDER = Path(__file__).resolve().parents[1] / "manifests" / "crds"
HEAD = "# Made of podhook's models by make crds; for KubeStash's groups see podhook crds --help.\n"


def files() -> dict[str, str]:
    """By name: hooktemplates.yaml, functions.yaml."""
    return {
        f"{each['spec']['names']['plural']}.yaml": HEAD + yaml.safe_dump(each, sort_keys=False, width=120)
        for each in definitions(OWN)
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"manifests/crds/{name}")
