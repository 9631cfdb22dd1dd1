"""Whether a CycloneDX document names exactly what a lock file installs: `python -m tests.sbom BOM.json LOCK.txt`.

Standard library only: it runs in the tools' environment.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)", re.MULTILINE)


def locked(text: str) -> dict[str, str]:
    """Name -> version of every line of a lock file."""
    return {canonical(found["name"]): found["version"] for found in _PIN.finditer(text)}


def problems(bom: dict[str, Any], pins: dict[str, str]) -> list[str]:
    """What is wrong with a document; nothing if it says what is installed, and by which hash it is known."""
    found = []
    if bom.get("bomFormat") != "CycloneDX":
        found.append(f"bomFormat is {bom.get('bomFormat')!r}, not 'CycloneDX'")
    if bom.get("metadata", {}).get("component", {}).get("name") != "podhook":
        found.append("it does not say that it is podhook's")
    components = {canonical(each["name"]): each for each in bom.get("components", [])}
    for name in sorted(pins.keys() | components.keys()):
        said = components.get(name, {}).get("version")
        if said != pins.get(name):
            found.append(f"{name}: {said or 'missing'} in the document, {pins.get(name, 'none')} in the lock file")
        elif not components[name].get("purl", "").startswith(f"pkg:pypi/{name}@"):
            found.append(f"{name}: its purl is {components[name].get('purl')!r}")
    return found


def canonical(name: str) -> str:
    """A name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main(bom_file: str, lock_file: str) -> int:
    """Print what is wrong, or what was written."""
    pins = locked(Path(lock_file).read_text(encoding="utf-8"))
    found = problems(json.loads(Path(bom_file).read_text(encoding="utf-8")), pins)
    for problem in found:
        print(f"{bom_file}: {problem}", file=sys.stderr)
    if not found:
        print(f"{bom_file}: {len(pins)} components")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
