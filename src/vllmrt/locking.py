"""A lock file that cannot be turned against its user.

The lock spares work; correctness never rests on it, because flock lies on some network file systems.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vllmrt.errors import ConfigError, LockTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
_SIGNATURE, _LONGEST_NOTE = 2048, 200
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What NFS without lockd, Lustre without ``-o flock`` and other file systems answer (flock(2))."""


class NoLocks(OSError):
    """The file system of the lock has none."""


class Holder(NamedTuple):
    """Who holds a lock, as it says itself.

    Attributes:
        host: the name of its machine.
        pid: its process there.
        since: seconds since the epoch.
        note: how far it is.
    """

    host: str
    pid: int
    since: float
    note: str = ""

    def __str__(self) -> str:
        """Return it as the subject of a sentence."""
        try:
            since = time.strftime("%H:%M:%S", time.localtime(self.since))
        except (OverflowError, ValueError, OSError):
            since = "?"
        note = f" ({ascii(self.note)[1:-1]})" if self.note else ""
        return f"process {self.pid} on {self.host!a}, since {since}{note}"


_NOBODY = Holder("", 0, 0.0)


@contextmanager
def hold(path: Path, *, timeout: float, waiting: Callable[[Holder | None], None]) -> Iterator[Callable[[str], None]]:
    """Hold the lock at `path` for the length of the block; the file stays.

    The value is a function that notes how far the holder is. It keeps waiters waiting: their time-out counts from the
    last note, so that a long download does not end those who wait for it.

    Args:
        path: the lock file; its directory is made.
        timeout: seconds to wait for another holder that notes nothing.
        waiting: called if there is one, and again whenever it has noted something.

    Raises:
        LockTimeout: another process held it all that time.
        NoLocks: the file system has no locks.
        ConfigError: what lies at `path` is a symbolic link, or no regular file.
        OSError: the directory cannot be written.
    """
    descriptor = _acquire(path, timeout, waiting)
    try:
        holder = Holder(os.uname().nodename, os.getpid(), time.time())
        _sign(descriptor, holder)
        yield lambda note: _sign(descriptor, holder._replace(note=note[:_LONGEST_NOTE]))
    finally:
        os.close(descriptor)


def taken_away(path: str) -> LockTimeout:
    """Return the error that says what only a second process in the same staging directory can have done."""
    return LockTimeout(
        f"another process has taken {path} away while it was fetched",
        hint="the locks of this file system do not hold; run it again",
    )


def _acquire(path: Path, timeout: float, waiting: Callable[[Holder | None], None]) -> int:
    deadline, pause = time.monotonic() + timeout, _FIRST_PAUSE
    told: Holder | None = _NOBODY
    while True:
        descriptor = _open(path)
        try:
            if _try(descriptor) and _is_current(descriptor, path):
                return descriptor
            holder = _holder(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() >= deadline:
            raise LockTimeout(
                f"{path} is held by {holder or 'another process'}; waited {timeout:g} s",
                hint="wait for it, stop it, or raise VLLM_RESOLVE_LOCK_TIMEOUT",
                pid=holder.pid if holder and holder.host == os.uname().nodename else None,
            )
        if told != holder:
            waiting(holder)
            deadline, told = time.monotonic() + timeout, holder
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, _FLAGS, 0o600)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise _unsafe(path) from None
        raise
    status = os.fstat(descriptor)
    # a second name: somebody linked a file of ours here, to have it overwritten
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise _unsafe(path)
    return descriptor


def _unsafe(path: Path) -> ConfigError:
    return ConfigError(f"lock file {path} is not a regular file", hint="see what it is, then remove it")


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise NoLocks(error.errno, error.strerror) from None
        raise
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    """Tell whether the file that was locked still has its name: users are told to remove stale locks."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _sign(descriptor: int, holder: Holder) -> None:
    # padded and in one write: a waiter reads the old text or the new one
    os.pwrite(descriptor, msgspec.json.encode(holder).ljust(_SIGNATURE), 0)


def _holder(descriptor: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(descriptor, _SIGNATURE, 0), type=Holder)
    except (msgspec.MsgspecError, ValueError, OSError):
        return None
