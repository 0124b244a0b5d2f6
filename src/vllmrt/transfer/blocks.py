"""What a file that is being written asks of the file system beyond what Python offers."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WORTHWHILE = 1 << 20
"""Bytes; for less, a call costs more than it gains."""
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2)."""


def reserve(descriptor: int, size: int) -> None:
    """Give a file its size, and its blocks where the file system can: running out is known before the first byte.

    Not posix_fallocate, for which libc writes every block where the file system cannot reserve them.

    Raises:
        OSError: there is not enough space, or the file cannot be written.
    """
    if size >= WORTHWHILE and _libc().fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        code = ctypes.get_errno()
        if code in _FULL:
            raise OSError(code, os.strerror(code))
    os.ftruncate(descriptor, size)


def write_back(descriptor: int, start: int, stop: int) -> None:
    """Begin to put bytes on the disk while others are still fetched, so that little is left to sync at the end.

    A hint: it promises nothing, and is passed over where the system does not know it.
    """
    if stop - start >= WORTHWHILE and (function := getattr(_libc(), "sync_file_range", None)) is not None:
        function(descriptor, ctypes.c_int64(start), ctypes.c_int64(stop - start), ctypes.c_uint(_WRITE))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
