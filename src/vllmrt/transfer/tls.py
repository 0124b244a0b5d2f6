"""Encrypted connections that are received in large pieces.

`ssl.SSLSocket` asks the system twice for each record of 16 KiB, and lets go of the interpreter each time. Here the
ciphertext is received as it comes, and decrypted in memory (`ssl.MemoryBIO`).
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

_T = TypeVar("_T")
_RECEIVED = 512 << 10
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

    Of what a socket can do it has what `http.client` and a reader of bodies use: `send`, `sendall`, `recv`, `recv_into`
    and `makefile`. One thread uses it at a time; another one may end its waiting with `shutdown`.

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
        self._fault: ssl.SSLError | None = None
        self._ended = False
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

    @property
    def is_idle(self) -> bool:
        """Whether nothing was received that nobody has read yet, and the other side has not ended it."""
        return not (self._ended or self._fault or self._received.pending or self._tls.pending())

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """Encrypt and send.

        Raises:
            OSError: the connection broke, or did not take it in time.
        """
        self._wait_for(lambda: self._tls.write(data))
        self._flush(flags)

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        """Encrypt and send all of it, as `sendall` does; return the number of bytes."""
        self.sendall(data, flags)
        return memoryview(data).nbytes

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Return the bytes that are there, waiting for some; see `recv_into`."""
        buffer = bytearray(bufsize)
        return bytes(buffer[: self.recv_into(buffer, 0, flags)])

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """Wait for bytes, and take as many as are there; 0 at the end of the connection.

        Raises:
            OSError: the connection broke, nothing came in time, or a byte was changed on the way.
            ValueError: flags, of which TLS has none.
        """
        if flags:
            raise ValueError(flags)
        if self._fault:
            raise self._fault
        into = memoryview(buffer)[: nbytes or None]
        count = self._wait_for(lambda: self._decrypt(into))
        try:
            while 0 < count < len(into) and (more := self._decrypt(into[count:])):
                count += more
        except ssl.SSLWantReadError:
            pass  # no whole record is there
        except ssl.SSLError as error:
            self._fault = error  # for the next call: what came before it is good
        return count

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        """Do nothing of what the plain socket would do in clear."""
        raise NotImplementedError

    sendto = sendmsg = sendmsg_afalg = sendfile = _refuse
    recvfrom = recvfrom_into = recvmsg = recvmsg_into = _refuse

    def _decrypt(self, into: memoryview) -> int:
        """Take what is left of one record; 0 at the end, with or without a good-bye: whoever reads knows the length."""
        try:
            count = int(self._tls.read(len(into), into))  # type: ignore[arg-type, call-overload, unused-ignore]  # any buffer
        except ssl.SSLEOFError:
            count = 0
        self._ended = not count and len(into) > 0
        return count

    def _wait_for(self, step: Callable[[], _T]) -> _T:
        """Return what a step comes to once the other side has said what it needs; all of it has one time-out."""
        deadline = None
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                now = time.monotonic()
                deadline = deadline or now + (self.gettimeout() or threading.TIMEOUT_MAX)
                if now > deadline:
                    raise TimeoutError("timed out") from None
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
