"""Encrypted connections that are received in large pieces.

`ssl.SSLSocket` asks the system twice for each record of 16 KiB, and lets go of the interpreter each time. Here the
ciphertext is received as it comes, and decrypted in memory (`ssl.MemoryBIO`).
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

_T = TypeVar("_T")
_RECEIVED = 1 << 20
"""Bytes of ciphertext that are received at once; more of it costs cache, less costs system calls."""


class HttpsConnection(HTTPConnection):
    """A connection of `http.client`, encrypted; through a proxy where `set_tunnel` was called.

    Args:
        near: host and port to connect to: those of the proxy, if there is one.
        name: what the certificate has to be made out to.
        timeout: seconds for each operation on the socket.
        context: which authorities are trusted.
    """

    def __init__(self, near: tuple[str, int], *, name: str, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(*near, timeout=timeout)
        self._name = name
        self._trusting = context

    def connect(self) -> None:
        """Connect, and agree on the keys.

        Raises:
            OSError: `ssl.SSLCertVerificationError` where the certificate is not trusted.
        """
        super().connect()
        self.sock = TlsSocket(self.sock, self._trusting, self._name)


class TlsSocket(socket.socket):
    """A socket that takes over another's descriptor and speaks TLS over it.

    Of what a socket can do it has what `http.client` and a reader of bodies use: `sendall`, `recv_into` and `makefile`.
    One thread uses it at a time; another one may end its waiting with `shutdown`.

    Args:
        plain: connected. Its descriptor is taken from it, unless the name can be none (ValueError).
        context: which authorities are trusted.
        name: what the certificate has to be made out to.

    Raises:
        OSError: the handshake failed; the descriptor is closed.
        ValueError: no certificate can have this name.
    """

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=name)
        self._ciphertext = memoryview(bytearray(_RECEIVED))
        timeout = plain.gettimeout()
        super().__init__(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self.settimeout(timeout)
        try:
            self._wait_for(self._tls.do_handshake)
            self._flush()
        except BaseException:
            with suppress(OSError):
                self._flush()  # the other side is told why
            self.close()
            raise

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """Encrypt and send.

        Raises:
            OSError: the connection broke, or did not take it in time.
        """
        self._tls.write(data)
        self._flush(flags)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, _: int = 0) -> int:
        """Wait for bytes, and take as many as are there; 0 at the end of the connection.

        Raises:
            OSError: the connection broke, nothing came in time, or a byte was changed on the way.
        """
        into = memoryview(buffer)[: nbytes or None]
        try:
            count = self._wait_for(lambda: self._decrypt(into))
        except ssl.SSLEOFError:
            return 0  # without a good-bye; whoever reads knows how much was announced
        with suppress(ssl.SSLWantReadError, ssl.SSLEOFError):  # no whole record is there; the next call meets the end
            while 0 < count < len(into) and (more := self._decrypt(into[count:])):
                count += more
        return count

    def _decrypt(self, into: memoryview) -> int:
        """Take what is left of one record."""
        return int(self._tls.read(len(into), into))  # type: ignore[arg-type, call-overload, unused-ignore]  # any buffer

    def _wait_for(self, step: Callable[[], _T]) -> _T:
        """Return what a step comes to once the other side has said what it needs."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()

    def _fill(self) -> None:
        if count := super().recv_into(self._ciphertext):
            self._received.write(self._ciphertext[:count])
        else:
            self._received.write_eof()

    def _flush(self, flags: int = 0) -> None:
        """Send what there is to say, also of the protocol's own: new keys, an alert."""
        if self._to_send.pending:
            super().sendall(self._to_send.read(), flags)
