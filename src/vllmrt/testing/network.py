"""A machine without network, for the length of a test."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def cut_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse every connection and every look-up of a name that Python code tries; return the list of them."""
    tried: list[str] = []
    connect, sendto = socket.socket.connect, socket.socket.sendto

    def refuse(what: str) -> None:
        tried.append(what)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    def no_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            refuse(f"connect {address}")
        connect(self, address)

    def no_connect_ex(self: socket.socket, address: Any) -> int:
        try:
            no_connect(self, address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def no_sendto(self: socket.socket, data: Any, *more: Any) -> int:
        if self.family != socket.AF_UNIX:
            refuse(f"send to {more[-1]}")
        return sendto(self, data, *more)

    def no_name(host: Any, *_: Any, **__: Any) -> Any:
        tried.append(f"look up {host}")
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket.socket, "connect", no_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", no_connect_ex)
    monkeypatch.setattr(socket.socket, "sendto", no_sendto)
    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    return tried
