"""What `kubectl port-forward` does: a port of the host's loopback that leads to one of a pod."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
from types import TracebackType
from typing import Self

CONNECT_SECONDS = 10


class Forward:
    """Listens on a free port while it is entered; every connection is carried to `address`, until one end hangs up."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._server = _Server(("127.0.0.1", 0), _Carry)
        self._server.target = address
        self._thread = threading.Thread(target=self._server.serve_forever, name=f"forward to {address}", daemon=True)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(CONNECT_SECONDS)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    target: tuple[str, int]


class _Carry(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(self.server.target, CONNECT_SECONDS) as there,
        ):
            here = self.request
            for each in (here, there):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            other = {here: there, there: here}
            while True:
                for each in select.select([here, there], [], [])[0]:
                    if not (data := each.recv(65536)):
                        return
                    other[each].sendall(data)
