"""Digests of files whose bytes arrive out of order, taken while they arrive."""

from __future__ import annotations

import hashlib
import os
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from vllmrt.transfer.ranges import Interval, merge
from vllmrt.types import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vllmrt.types import RemoteFile

_BLOCK = 256 << 10
"""Bytes of a read: what has just been read is hashed while it is in the cache."""
_HASHES = frozenset({"sha256", "git-sha1", "md5", "sha1", "sha512"})
_CRCS = {"crc32c": 8, "crc64nvme": 16}
"""Hexadecimal digits of the checksums that object stores take themselves, at fifty times the speed of a SHA-256."""


class _Hash(Protocol):
    def update(self, data: memoryview | bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Crc:
    """A checksum that looks like a hash."""

    def __init__(self, function: Callable[[memoryview | bytes, int], int], digits: int) -> None:
        self._function = function
        self._digits = digits
        self._value = 0

    def update(self, data: memoryview | bytes, /) -> None:
        self._value = self._function(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:0{self._digits}x}"


def is_known(algorithm: str) -> bool:
    """Tell whether a digest can be checked here; for any other the bytes are hashed with SHA-256 into the manifest.

    ``crc32c`` and ``crc64nvme`` are known where awscrt is installed, as it is with vllmrt-source-r2.
    """
    return algorithm in _HASHES or (algorithm in _CRCS and _checksums() is not None)


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
        self._stopped = False

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
        while not self._stopped and self._reachable() > self._position and self._hashing.acquire(blocking=False):
            try:
                self._read_back(self._reachable())
            finally:
                self._hashing.release()

    def stop(self) -> None:
        """Read nothing back any more; when this returns, the descriptor may be closed."""
        self._stopped = True
        with self._hashing:
            pass

    def digest(self) -> Digest:
        """Return the digest of a complete file."""
        return Digest(self._algorithm, value=self._hash.hexdigest())

    def _reachable(self) -> int:
        with self._mutex:
            return next((stop for start, stop in self._arrived if start <= self._position < stop), self._position)

    def _read_back(self, stop: int) -> None:
        buffer = memoryview(bytearray(_BLOCK))
        while self._position < stop and not self._stopped:
            count = os.preadv(self._descriptor, [buffer[: stop - self._position]], self._position)
            if not count:
                raise OSError(f"{self._file.path} became shorter while it was read")
            self._hash.update(buffer[:count])
            self._position += count


@cache
def _checksums() -> Any:
    try:
        from awscrt import checksums  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    return checksums


def _new(file: RemoteFile) -> tuple[str, _Hash]:
    algorithm = file.digest.algorithm if file.digest and is_known(file.digest.algorithm) else "sha256"
    if algorithm in _CRCS:
        return algorithm, _Crc(getattr(_checksums(), algorithm), _CRCS[algorithm])
    if algorithm == "git-sha1":
        # a blob's name in git: the hash of a header and the content
        return algorithm, hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return algorithm, hashlib.new(algorithm, usedforsecurity=False)
