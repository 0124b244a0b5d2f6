"""What the store asks of a file system beyond what Python offers."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vllmrt.errors import ConfigError, NoSpace
from vllmrt.locking import NoLocks, taken_away

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOREPLACE, EXCHANGE = 1, 2
"""Flags of renameat2(2)."""
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
"""What a file system, a kernel or a sandbox answers that does not know a call."""
VOLUME = "set VLLM_MODELS_DIR to a volume: what lies in a layer of an image can be neither replaced nor removed"
"""The remedy for EXDEV: overlayfs renames no directory of a lower layer (Documentation/filesystems/overlayfs.rst)."""
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
_AT_FDCWD = -100


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the system says to a write in the store into words for its user.

    Raises:
        NoSpace: the disk or a quota is full.
        LockTimeout: another process took away what was to be read or moved.
        ConfigError: the store cannot be written, lies in a layer of an image, or is on a file system without locks.
    """
    try:
        yield
    except NoLocks as error:
        raise ConfigError(
            f"the file system of the store {root} has no locks: {error.strerror}",
            hint="see that no other vllmrt runs, then remove the directory by hand",
        ) from error
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpace(f"the disk of the store {root} is full: {where}", hint="vllmrt models gc may help") from error
        if error.errno == errno.ENOENT:
            raise taken_away(str(error.filename or root)) from error
        if error.errno == errno.EXDEV:
            why = "one of them lies in a layer of an image, or on a disk of its own"
            raise ConfigError(f"{error.filename} cannot become {error.filename2}: {why}", hint=VOLUME) from error
        raise ConfigError(
            f"the store {root} cannot be written: {where}", hint="name another with --models-dir or VLLM_MODELS_DIR"
        ) from error


def move(source: Path, target: Path) -> None:
    """Rename, unless `target` exists."""
    try:
        renameat2(source, target, NOREPLACE)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        source.rename(target)  # which refuses a directory that holds anything


def link(old: Path, new: Path) -> bool:
    """Give a file a second name, and return True; False where the file system has none.

    Raises:
        LockTimeout: the name was given since the caller saw that it is free.
    """
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise taken_away(str(new)) from None
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True


def renameat2(source: Path, target: Path, flags: int) -> None:
    """Rename with flags, which Python does not offer (rename(2))."""
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(source), None, str(target))


def sync_tree(files: Path) -> None:
    """Put every staged byte on the disk: in one call for the whole file system, which thousands of files thank."""
    import ctypes

    descriptor = os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if function is not None and function(descriptor) == 0:
            return
    finally:
        os.close(descriptor)
    for directory, _, names in os.walk(files):
        for name in names:
            sync_path(os.path.join(directory, name))  # noqa: PTH118 - as above


def sync_path(path: Path | str) -> None:
    """Put one file or directory on the disk, where the file system knows how."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> bool:
    """Remove whatever is at `path`, links as such; return whether nothing is left."""
    from shutil import rmtree

    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
    else:
        rmtree(path, ignore_errors=True)
    return not os.path.lexists(path)


def set_mode(path: str, mode: int) -> None:
    """Set the mode of a file or directory that has another one; never through a link."""
    status = os.lstat(path)
    if stat.S_IMODE(status.st_mode) != mode and not stat.S_ISLNK(status.st_mode):
        with suppress(OSError):  # a file system without modes
            os.chmod(path, mode)  # noqa: PTH101 - as above


def umask() -> int:
    """Return the umask; os.umask() would have to change it for all threads."""
    try:
        with open("/proc/self/status") as file:  # noqa: PTH123 - no Path for a constant
            return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))
    except (OSError, StopIteration):
        return 0o022
