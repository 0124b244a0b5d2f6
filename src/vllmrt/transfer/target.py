"""A file that is being written: reserved, written at offsets, hashed as it fills."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from typing import TYPE_CHECKING

from vllmrt.errors import NoSpace
from vllmrt.transfer.hashing import FileHash

if TYPE_CHECKING:
    from pathlib import Path

    from vllmrt.transfer.journal import Journal
    from vllmrt.types import Digest, RemoteFile

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Target:
    """One file in staging; opened when it is first needed, so that a model may have more files than a process may.

    Args:
        file: what it is to become.
        path: where it is written; its directory exists.
        journal: what of it is here.
    """

    def __init__(self, file: RemoteFile, path: Path, journal: Journal) -> None:
        self.file = file
        self._path = path
        self._journal = journal
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self._hash: FileHash | None = None

    @property
    def complete(self) -> bool:
        """Whether every byte is here and hashed."""
        return self._hash is not None and self._hash.complete

    def write(self, start: int, data: memoryview) -> None:
        """Write and hash bytes.

        Raises:
            NoSpace: the disk is full.
            OSError: the file cannot be written.
        """
        descriptor, running = self._opened()
        position = start
        try:
            while position < start + len(data):
                position += os.pwrite(descriptor, data[position - start :], position)
        except OSError as error:
            raise _in_words(error, self.file.size) from None
        running.feed(start, data)

    def arrived(self, start: int, stop: int) -> None:
        """Note in the journal that these bytes are here, and hash whatever can be."""
        _, running = self._opened()
        if start < stop:
            self._journal.record(self.file, start, stop)
            running.arrived(start, stop)
        else:
            running.catch_up()

    def digest(self) -> Digest:
        """Return the digest of the complete file, in the algorithm of its source's digest where we know that."""
        if self._hash is None:
            raise RuntimeError(self.file.path)
        return self._hash.digest()

    def matches(self) -> bool:
        """Tell whether the bytes are those that the source published, as far as it says."""
        digest = self.digest()
        claimed = self.file.digest
        return claimed is None or claimed.algorithm != digest.algorithm or claimed.value.lower() == digest.value

    def restart(self) -> None:
        """Throw away what is here."""
        descriptor, _ = self._opened()
        self._journal.forget(self.file)
        self._hash = FileHash(self.file, descriptor)

    def sync(self) -> None:
        """Put the bytes on the disk, if any were written."""
        with self._mutex:
            if self._descriptor is not None:
                os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file; it is opened again where that is needed."""
        with self._mutex:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _opened(self) -> tuple[int, FileHash]:
        with self._mutex:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, _FLAGS, 0o644)
                self._reserve(self._descriptor)
                self._hash = FileHash(self.file, self._descriptor, self._journal.done(self.file))
            if self._hash is None:
                raise RuntimeError(self.file.path)
            return self._descriptor, self._hash

    def _reserve(self, descriptor: int) -> None:
        """Take the space now: running out is known before the first byte, and extents are not interleaved."""
        size = self.file.size
        if os.fstat(descriptor).st_size != size and self._journal.done(self.file):
            # not the file that the journal speaks of: that one had its full size from the beginning
            self._journal.forget(self.file)
        # not posix_fallocate: where the file system cannot, libc would write every block
        libc = ctypes.CDLL(None, use_errno=True)
        if size and libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
            code = ctypes.get_errno()
            if code in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise _in_words(OSError(code, os.strerror(code)), size)
        os.ftruncate(descriptor, size)


def _in_words(error: OSError, wanted: int) -> Exception:
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return error
    return NoSpace(
        f"the disk is full: {error.strerror}",
        hint=f"free at least {wanted:,} bytes and run it again; what was fetched is kept",
    )
