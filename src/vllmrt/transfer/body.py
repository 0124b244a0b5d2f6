"""The body of an answer, received from the socket itself into the caller's buffer.

That is faster than through the buffers above it (reference: s3-facts).
"""

from __future__ import annotations

import http.client
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import TransientSourceError
from vllmrt.transfer.answers import shown, words

if TYPE_CHECKING:
    from vllmrt.transfer.connection import Link, Pool

_SCRAP = 2048
_CHUNK = 64 << 10


class Reply(NamedTuple):
    """An answer whose body is still to come.

    Attributes:
        link: the connection; http.client takes its socket away when the answer is the last one.
        sock: that socket.
        answer: status and headers.
    """

    link: Link
    sock: socket.socket
    answer: http.client.HTTPResponse

    def drop(self) -> None:
        """Close the connection."""
        self.answer.close()
        self.link.connection.close()

    def shut(self) -> None:
        """End what waits for the connection, and leave its descriptor to the thread that waits."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def discard(self, pool: Pool) -> None:
        """Read the little that a redirect says, so that its connection can be used again."""
        answer = self.answer
        small = answer.length is not None and answer.length <= _SCRAP and not answer.will_close
        try:
            if small:
                answer.read()
        except (OSError, http.client.HTTPException):
            small = False
        if small:
            pool.give(self.link)
        else:
            self.drop()


class HttpRange:
    """The bytes of one range (`vllmrt.types.ReadableRange`).

    Args:
        url: where they come from, after redirects. May hold a signature.
        reply: the answer, checked.
        size: bytes of the range; what comes beyond them is not read.
        pool: gets the connection back when all of them were.
    """

    def __init__(self, url: str, reply: Reply, size: int, pool: Pool) -> None:
        self.url = url
        self._reply = reply
        self._left = size
        self._pool = pool
        self._mutex = threading.Lock()
        self._reading = False
        self._closed = False
        self._buffered: int | None = None

    def __repr__(self) -> str:
        """Leave the URL's query out: it may be a signature."""
        return f"HttpRange({shown(self.url)})"

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer` from its start, and return the number of bytes; 0 at the end of the range only.

        Raises:
            TransientSourceError: the connection broke or was closed, or nothing came in time.
        """
        if not self._left or not len(buffer):
            return 0
        with self._mutex:
            if self._closed:
                raise self._broken("closed")
            self._reading = True
        count = 0
        try:
            count = self._receive(buffer[: self._left])
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(words(error) if isinstance(error, OSError) else "it speaks no HTTP") from None
        finally:
            self._left -= count
            self._pause(keep=count > 0)
        if not count:
            raise self._broken("the connection ended")
        return count

    def close(self) -> None:
        """Give up the connection; safe to call twice, and ends a `readinto` of another thread."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            if self._reading:
                # The reader closes it: a descriptor that is closed under a reader may be another's when it reads.
                self._reply.shut()
                return
        self._reply.drop()

    def _receive(self, buffer: memoryview) -> int:
        answer = self._reply.answer
        if answer.chunked:
            # readinto() of http.client would wait until the buffer is full.
            piece = answer.read1(min(len(buffer), _CHUNK))
            buffer[: len(piece)] = piece
            return len(piece)
        if self._buffered is None:
            self._buffered = len(answer.fp.peek(1))
        if self._buffered:
            # What came with the headers; asked for no more than that, the reader does not read ahead again.
            count: int = answer.fp.readinto(buffer[: self._buffered])
            self._buffered -= count
            return count
        return self._reply.sock.recv_into(buffer)

    def _pause(self, *, keep: bool) -> None:
        with self._mutex:
            self._reading = False
            closed = self._closed
            self._closed = ended = closed or not keep or not self._left
        if not ended:
            return
        answer = self._reply.answer
        if closed or self._left or self._buffered or answer.chunked or answer.will_close:
            self._reply.drop()
        else:
            answer.close()
            self._pool.give(self._reply.link)

    def _broken(self, why: str) -> TransientSourceError:
        return TransientSourceError(f"{shown(self.url)}: {why}, {self._left:,} bytes early")
