"""A file that is being written: reserved, written at offsets, hashed as it fills."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from vllmrt.errors import ConfigError, NoSpace, VllmrtError
from vllmrt.locking import taken_away
from vllmrt.transfer import blocks
from vllmrt.transfer.hashing import FileHash, is_known

if TYPE_CHECKING:
    from pathlib import Path

    from vllmrt.transfer.journal import Journal
    from vllmrt.transfer.ranges import Interval
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
        self.path = path
        self._journal = journal
        self._mutex = threading.Lock()
        self._descriptor: int | None = None
        self.inode = 0
        """Of the file that was written and proven; 0 before it is opened."""
        self._hash: FileHash | None = None
        self._durable: list[Interval] = []
        self._left = False

    @property
    def complete(self) -> bool:
        """Whether every byte is here and hashed."""
        return self._hash is not None and self._hash.complete

    def here(self) -> list[Interval]:
        """Return what of the file need not be fetched.

        What the journal says is forgotten where the file is gone, or another one lies in its place: that of which it
        speaks had its full size from the beginning. So it is where nothing tells whether the source has the same bytes
        as in an earlier run.
        """
        done = self._journal.done(self.file)
        if done and not (self._is_identified() and self._has_its_size()):
            self._journal.forget(self.file)
            return []
        return done

    def write(self, start: int, data: memoryview) -> None:
        """Write and hash bytes.

        Raises:
            NoSpace: the disk is full.
            LockTimeout: another process took the file away.
            ConfigError: the file cannot be written.
        """
        descriptor, running = self._opened()
        position = start
        try:
            while position < start + len(data):
                position += os.pwrite(descriptor, data[position - start :], position)
        except OSError as error:
            raise self._in_words(error) from None
        running.feed(start, data)

    def arrived(self, start: int, stop: int) -> None:
        """Note in the journal that these bytes are here, and hash whatever can be."""
        descriptor, running = self._opened()
        if start < stop:
            self._require_name()
            blocks.write_back(descriptor, start, stop)
            self._journal.record(self.file, start, stop)
            running.arrived(start, stop)
        else:
            running.catch_up()

    def digest(self) -> Digest:
        """Return the digest of the complete file, in the algorithm of its source's digest where we know that."""
        if self._hash is None or not self._hash.complete:
            raise RuntimeError(self.file.path)
        return self._hash.digest()

    def matches(self) -> bool:
        """Tell whether the bytes are those that the source published, as far as it says."""
        digest = self.digest()
        claimed = self.file.digest
        return claimed is None or claimed.algorithm != digest.algorithm or claimed.value.lower() == digest.value

    def restart(self) -> None:
        """Throw away what is here; what another process may have published of it stays as it is."""
        with self._mutex:
            if self._left:
                return
            self._journal.forget(self.file)
            self._close()
            self.path.unlink(missing_ok=True)
            self._hash = None
            self._durable = []

    def sync(self) -> None:
        """Put what the journal has of the file on the disk, and note there that it is.

        Workers go on meanwhile: a slow disk takes its time.

        Raises:
            OSError: the disk does not take it, or the file is gone; nothing is noted.
        """
        with self._mutex:
            done = self._journal.done(self.file)
            if self._left or done == self._durable:
                return
            descriptor = self._another()
        try:
            os.fdatasync(descriptor)
            with self._mutex:
                if os.path.samestat(os.fstat(descriptor), self.path.lstat()):  # it was not begun anew meanwhile
                    self._journal.synced(self.file, done)
                    self._durable = done
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the file; it is opened again where that is needed."""
        with self._mutex:
            self._close()

    def leave(self) -> None:
        """Close the file for good: a thread that was given up changes nothing of it any more."""
        with self._mutex:
            self._left = True
            if self._hash is not None:
                self._hash.stop()
            self._close()

    def _another(self) -> int:
        """Return a descriptor of the file for ourselves."""
        if self._descriptor is not None:
            return os.dup(self._descriptor)
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _opened(self) -> tuple[int, FileHash]:
        with self._mutex:
            if self._left:
                raise RuntimeError(self.file.path)
            if self._descriptor is None:
                try:
                    self._descriptor = self._begin()
                except OSError as error:
                    raise self._in_words(error) from None
                self._hash = FileHash(self.file, self._descriptor, self._journal.done(self.file))
            if self._hash is None:
                raise RuntimeError(self.file.path)
            return self._descriptor, self._hash

    def _require_name(self) -> None:
        """Stop where another process took the file: what it publishes is not to be written to, nor to be noted."""
        with self._mutex:
            try:
                ours = self._descriptor is None or self.path.lstat().st_ino == self.inode
            except FileNotFoundError:
                ours = False
        if not ours:
            raise taken_away(self.file.path)

    def _is_identified(self) -> bool:
        return bool(self.file.version) or (self.file.digest is not None and is_known(self.file.digest.algorithm))

    def _has_its_size(self) -> bool:
        try:
            return self.path.lstat().st_size == self.file.size
        except FileNotFoundError:
            return False

    def _begin(self) -> int:
        descriptor = os.open(self.path, _FLAGS, 0o644)
        try:
            self._reserve(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _reserve(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if status.st_size != self.file.size and self._journal.done(self.file):
            raise taken_away(self.file.path)  # it was here when the ranges were planned
        self.inode = status.st_ino
        blocks.reserve(descriptor, self.file.size)

    def _in_words(self, error: OSError) -> VllmrtError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            hint = f"free at least {self.file.size:,} bytes and run it again; what was fetched is kept"
            return NoSpace(f"the disk is full: {error.strerror}", hint=hint)
        if error.errno == errno.ENOENT:
            return taken_away(self.file.path)
        return ConfigError(
            f"{self.file.path} cannot be written in the store: {error.strerror}",
            hint="see whether its disk is healthy, or name another store with --models-dir or VLLM_MODELS_DIR",
        )
