"""Kubernetes' own schemas (kubernetes-validate): whether an object is one that the API server would take."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import kubernetes_validate

#: From the oldest whose schemas are there to the newest: what we make must be right for all of them.
OLDEST, NEWEST = "1.25", kubernetes_validate.latest_version()


def check(document: dict[str, Any], *versions: str) -> None:
    """Fail where the API server would: unknown fields, missing ones, wrong types."""
    for version in versions or (OLDEST, NEWEST):
        kubernetes_validate.validate(document, version, strict=True)


@functools.cache
def _definitions() -> dict[str, Any]:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    newest = max(folder.glob("v*-local"), key=lambda each: [int(n) for n in each.name[1:].split("-")[0].split(".")])
    return json.loads((newest / "_definitions.json").read_text())["$defs"]


def definition(name: str) -> dict[str, Any]:
    """The newest schema of a type, such as `io.k8s.api.core.v1.Volume`."""
    return _definitions()[name]
