"""An SFTP server on loopback: paramiko's own, over a directory."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

USER, PASSWORD = "user", "s3cr3t-pw"


@contextmanager
def serve_sftp(root: Path) -> Iterator[int]:
    """Serve a directory, read only; yield the port. Every connection ends with the block."""
    import paramiko

    root.mkdir(exist_ok=True)
    key = paramiko.RSAKey.generate(2048)
    transports: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError, EOFError, paramiko.SSHException):
                while True:
                    transport = paramiko.Transport(listener.accept()[0])
                    transports.append(transport)
                    transport.add_server_key(key)
                    transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _files(str(root)))
                    transport.start_server(server=_door())

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for transport in transports:
                transport.close()


def _door() -> Any:
    import paramiko

    class Door(paramiko.ServerInterface):
        def check_auth_password(self, username: str, password: str) -> int:
            known = (username, password) == (USER, PASSWORD)
            return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

        def check_channel_request(self, kind: str, chanid: int) -> int:
            del kind, chanid
            return int(paramiko.OPEN_SUCCEEDED)

        def get_allowed_auths(self, username: str) -> str:
            del username
            return "password"

    return Door()


def _files(root: str) -> Any:
    import paramiko

    class Handle(paramiko.SFTPHandle):
        def stat(self) -> Any:
            return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))

    class Files(paramiko.SFTPServerInterface):
        def _at(self, path: str) -> str:
            return root + self.canonicalize(path)

        def list_folder(self, path: str) -> Any:
            found = []
            for name in os.listdir(self._at(path)):
                attributes = paramiko.SFTPAttributes.from_stat(os.lstat(f"{self._at(path)}/{name}"))
                attributes.filename = name
                found.append(attributes)
            return found

        def stat(self, path: str) -> Any:
            try:
                return paramiko.SFTPAttributes.from_stat(Path(self._at(path)).stat())
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)

        lstat = stat

        def open(self, path: str, flags: int, attr: Any) -> Any:
            del attr
            if flags & (os.O_WRONLY | os.O_RDWR):
                return paramiko.SFTP_PERMISSION_DENIED
            handle = Handle(flags)
            try:
                handle.readfile = open(self._at(path), "rb")  # noqa: SIM115, PTH123 - paramiko closes it
            except OSError as error:
                return paramiko.SFTPServer.convert_errno(error.errno)
            return handle

    return Files
