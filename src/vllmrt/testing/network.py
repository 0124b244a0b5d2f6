"""A machine without network, for the length of a test."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def cut_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse every connection and every look-up of a name that Python code tries; return the list of them."""
    tried: list[str] = []
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX:
            return connect(self, address)
        tried.append(f"connect {address}")
        raise ConnectionRefusedError(111, "Connection refused")

    def refuse_quietly(self: socket.socket, address: Any) -> int:
        try:
            refuse(self, address)
        except OSError as error:
            return error.errno or 111
        return 0

    def unknown(host: Any, *_: Any, **__: Any) -> Any:
        tried.append(f"look up {host}")
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse_quietly)
    monkeypatch.setattr(socket.socket, "sendto", lambda self, _, *more: refuse(self, more[-1]))
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    return tried
