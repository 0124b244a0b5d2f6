"""On which file system a path lies."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.procfs import PROC

if TYPE_CHECKING:
    from pathlib import Path

_OF_THE_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "afs", "9p", "pvfs2"),
    *("gfs2", "ocfs2", "wekafs", "virtiofs"),
}
_LOCAL_FUSE = {"fuse.fuse-overlayfs", "fuseblk"}


class Mount(NamedTuple):
    """A file system.

    Attributes:
        kind: its type, such as ``ext4``; None where it is not known.
        options: those that matter: ``ro``, ``noexec``.
    """

    kind: str | None
    options: tuple[str, ...]

    @property
    def is_remote(self) -> bool:
        """Whether other machines may have it mounted too."""
        kind = self.kind or ""
        return kind in _OF_THE_NETWORK or (kind.startswith("fuse") and kind not in _LOCAL_FUSE)


def mount_of(path: Path, root: Path = PROC) -> Mount:
    """Return the file system of a path, or of the nearest directory above it that is there.

    Args:
        path: need not exist.
        root: the process table that says what is mounted (proc(5), ``/proc/<pid>/mountinfo``).

    Raises:
        OSError: the file system does not answer.
    """
    path = existing(path)
    flags = os.statvfs(path).f_flag
    options = ((os.ST_RDONLY, "ro"), (os.ST_NOEXEC, "noexec"))
    return Mount(_kind(path, root), tuple(name for flag, name in options if flags & flag))


def existing(path: Path) -> Path:
    """Return a path, or the nearest directory above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _kind(path: Path, root: Path) -> str | None:
    try:
        lines = (root / "self" / "mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best, kind = -1, None
    for line in lines:
        before, _, after = line.partition(" - ")
        point = _unescaped(before.split()[4])
        inside = real == point or real.startswith(f"{point.rstrip('/')}/")
        if inside and len(point) >= best:  # of two at one place the later one is on top
            best, kind = len(point), after.split()[0]
    return kind


def _unescaped(text: str) -> str:
    for code, char in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, char)
    return text
