"""`podhook keygen`: a pair of keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.exits import errors_as_exits


def command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the key is called, and its files: NAME.key and NAME.pub.")
    ],
    directory: Annotated[
        Path, typer.Option("--directory", "-d", metavar="DIR", help="Where the files go.", show_default="here")
    ] = Path(),
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME",
            help="A coordinator's key: obeyed in this namespace only; may be given again. [default: in all]",
        ),
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="A coordinator's key that may also cancel what other keys began.")
    ] = False,
) -> None:
    """Make a pair of Ed25519 keys, as JSON Web Keys.

    \b
    A coordinator's pair: NAME.key stays with it (podhook run --key NAME.key); NAME.pub goes to the agents that shall
    obey it (the directory of PODHOOK_TRUSTED_KEYS).

    \b
    A namespace's agent pair: NAME.key goes to the agents of the namespace (PODHOOK_AGENT_KEY); NAME.pub goes to the
    coordinators (the directory of --agent-keys), under the name of the namespace.

    Standard output is the key's id, its thumbprint, by which logs and audits name it. A file that exists is never
    overwritten. To rotate, make a new pair under another name, let both public keys be trusted, sign with the new one,
    then remove the old.

    Exit codes: 0 made, 2 usage, or a file that is there.
    """
    with errors_as_exits():
        from agent.contract.errors import BadInput
        from agent.contract.signing.keys import generate, private_text, public_text
        from agent.contract.topics import check_name

        if not name or name[0] == "." or "/" in name or not name.isprintable():
            raise BadInput(f"key name {name[:60]!r} cannot be a file's name; --directory says where the files go")
        allowed = [check_name("--namespace", each) for each in namespace] if namespace else None
        key = generate(name)
        secret, public = directory / f"{name}.key", directory / f"{name}.pub"
        for path in (secret, public):
            if path.exists():
                raise BadInput(f"{path} exists, and a key is never overwritten; choose another name or remove it")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write(secret, private_text(key), 0o600)
            _write(public, public_text(key, namespaces=allowed, operator=operator), 0o644)
        except OSError as error:
            raise BadInput(f"cannot write {error.filename}: {error.strerror}") from error
        print(key.kid)


def _write(path: Path, text: str, mode: int) -> None:
    """Make a file that nobody else had a moment to read. Raises OSError if it is there."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
