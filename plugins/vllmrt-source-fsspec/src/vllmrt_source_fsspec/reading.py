"""Bytes of a range, in pieces: a backend without a stream of its own answers one request per piece."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from vllmrt.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable

SMALLEST, LARGEST = 256 << 10, 4 << 20
"""Bytes of a piece: large enough that a round trip is a small part of it, small enough for eight of them in memory."""
_FIRST = 1 << 20
_SLOW = 2.0


class Opened(Protocol):
    """A file from which pieces can be had."""

    def piece(self, start: int, stop: int) -> bytes | memoryview:
        """Return the bytes `start` to `stop`, or fewer."""

    def close(self) -> None:
        """Give it up."""


class Calls:
    """A file of an asynchronous backend: one call per piece, from any thread, with a time-out."""

    def __init__(self, store: Any, path: str, timeout: float) -> None:
        self._store = store
        self._path = path
        self._timeout = timeout

    def piece(self, start: int, stop: int) -> bytes:
        """Ask for the piece."""
        data: bytes = self._store.cat_file(self._path, start=start, end=stop, timeout=self._timeout)
        return data

    def close(self) -> None:
        """Nothing is open between two calls."""


class Handle:
    """A file of a blocking backend, opened for one thread."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def piece(self, start: int, stop: int) -> bytes:
        """Read the piece."""
        if hasattr(self._handle, "readv"):
            # SFTP moves 32 KiB at a time; paramiko asks for all of them before it waits for the first.
            return b"".join(self._handle.readv([(start, stop - start)]))
        self._handle.seek(start)
        data: bytes = self._handle.read(stop - start)
        return data

    def close(self) -> None:
        """Close it."""
        self._handle.close()


class Range:
    """The bytes of one range.

    Args:
        opened: where they come from.
        start: the first byte.
        stop: the byte after the last.
        unchanged: called before the last piece is given away; raises where the file is another by then.
    """

    def __init__(self, opened: Opened, start: int, stop: int, unchanged: Callable[[], None]) -> None:
        self._opened = opened
        self._position, self._stop = start, stop
        self._unchanged = unchanged
        self._rest = memoryview(b"")
        self._size = _FIRST

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer from what is left of a piece, or from the next one."""
        if not self._rest and self._position < self._stop:
            self._rest = self._next()
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """Give up the file."""
        self._opened.close()

    def _next(self) -> memoryview:
        wanted = min(self._size, self._stop - self._position)
        began = time.monotonic()
        data = memoryview(self._opened.piece(self._position, self._position + wanted))
        if len(data) > wanted:
            raise SourceError("the store sends more than was asked for")
        took = time.monotonic() - began
        self._size = max(SMALLEST, self._size // 2) if took > _SLOW else min(LARGEST, self._size * 2)
        self._position += len(data)
        if self._position == self._stop:
            self._unchanged()
        return data
