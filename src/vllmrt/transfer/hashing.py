"""Digests of files whose bytes arrive out of order, taken while they arrive."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING, Protocol

from vllmrt.transfer.ranges import Interval, merge
from vllmrt.types import Digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllmrt.types import RemoteFile

_BLOCK = 256 << 10
"""Bytes of a read: what has just been read is hashed while it is in the cache."""
ALGORITHMS = frozenset({"sha256", "git-sha1", "md5", "sha1", "sha512"})
"""What is checked of a source's digest; for any other the bytes are hashed with SHA-256 into the manifest."""


class _Hash(Protocol):
    def update(self, data: memoryview | bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class FileHash:
    """The digest of one file; all methods may be called from any thread.

    Bytes that arrive where the hash stands are hashed from the receive buffer; others are read back once the gap before
    them has closed, from the page cache as a rule.

    Args:
        file: the file, with the digest that its source claims.
        descriptor: the file being written, for reading back.
        done: intervals that were here before.
    """

    def __init__(self, file: RemoteFile, descriptor: int, done: Iterable[Interval] = ()) -> None:
        self._file = file
        self._descriptor = descriptor
        self._algorithm, self._hash = _new(file)
        self._position = 0
        self._arrived: list[Interval] = list(done)
        self._mutex = threading.Lock()
        self._hashing = threading.Lock()

    @property
    def complete(self) -> bool:
        """Whether every byte has been hashed."""
        return self._position == self._file.size

    def feed(self, start: int, data: memoryview) -> None:
        """Hash bytes that were just written, if the hash stands at `start`; else leave them to `arrived`."""
        if self._position == start and self._hashing.acquire(blocking=False):
            try:
                if self._position == start:
                    self._hash.update(data)
                    self._position = start + len(data)
            finally:
                self._hashing.release()

    def arrived(self, start: int, stop: int) -> None:
        """Note that these bytes are written, and read back what can be hashed now."""
        with self._mutex:
            self._arrived = merge([*self._arrived, (start, stop)])
        self.catch_up()

    def catch_up(self) -> None:
        """Hash everything that lies without a gap behind what was hashed."""
        while self._reachable() > self._position and self._hashing.acquire(blocking=False):
            try:
                self._read_back(self._reachable())
            finally:
                self._hashing.release()

    def digest(self) -> Digest:
        """Return the digest of a complete file."""
        return Digest(self._algorithm, value=self._hash.hexdigest())

    def _reachable(self) -> int:
        with self._mutex:
            return next((stop for start, stop in self._arrived if start <= self._position < stop), self._position)

    def _read_back(self, stop: int) -> None:
        buffer = memoryview(bytearray(_BLOCK))
        while self._position < stop:
            count = os.preadv(self._descriptor, [buffer[: stop - self._position]], self._position)
            if not count:
                raise OSError(f"{self._file.path} became shorter while it was read")
            self._hash.update(buffer[:count])
            self._position += count


def _new(file: RemoteFile) -> tuple[str, _Hash]:
    algorithm = file.digest.algorithm if file.digest and file.digest.algorithm in ALGORITHMS else "sha256"
    if algorithm == "git-sha1":
        # a blob's name in git: the hash of a header and the content
        return algorithm, hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return algorithm, hashlib.new(algorithm, usedforsecurity=False)
