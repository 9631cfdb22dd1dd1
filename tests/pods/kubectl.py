"""What the documentation asks of `kubectl`, without a cluster: `python kubectl.py FILE ARGUMENT...` notes it in a file.

Secrets and ConfigMaps are kept by namespace; what is applied or forwarded is somebody else's to do. Anything that the
documentation does not say is refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(state: Path, arguments: list[str]) -> None:
    """Do one command."""
    objects = json.loads(state.read_text()) if state.exists() else {"namespaces": [], "secrets": {}, "config_maps": {}}
    namespace = "default"
    if arguments[0] == "-n":
        namespace, arguments = arguments[1], arguments[2:]
        if namespace not in objects["namespaces"]:
            sys.exit(f"kubectl: there is no namespace {namespace}")
    match arguments:
        case ["create", "namespace", name]:
            objects["namespaces"].append(name)
        case ["create", "secret", "generic", name, *sources]:
            objects["secrets"].setdefault(namespace, {})[name] = _data(sources)
        case ["create", "configmap", name, *sources]:
            objects["config_maps"].setdefault(namespace, {})[name] = _data(sources)
        case ["apply", *files]:
            for flag, file in zip(files[::2], files[1::2], strict=True):
                if flag != "-f" or not Path(file).is_file():
                    sys.exit(f"kubectl: {flag} {file} cannot be applied")
        case ["port-forward", target, ports]:
            print(f"kubectl: {target} is forwarded, {ports}, by the test")
        case _:
            sys.exit(f"kubectl: the tests do not know {arguments}")
    state.write_text(json.dumps(objects))


def _data(sources: list[str]) -> dict[str, str]:
    data: dict[str, str] = {}
    for source in sources:
        flag, _, value = source.partition("=")
        if flag == "--from-literal":
            key, _, text = value.partition("=")
            data[key] = text
        elif flag == "--from-file" and "=" not in value:
            path = Path(value)
            files = [each for each in path.iterdir() if each.is_file()] if path.is_dir() else [path]
            data |= {each.name: each.read_text(encoding="utf-8") for each in files}
        else:
            sys.exit(f"kubectl: the tests do not know {source}")
    return data


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
