"""The store: where models, staged files and locks lie (DESIGN.md §7)."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import ConfigError, NoSpace
from vllmrt.events import human_size
from vllmrt.identity import check_name, identity_hash, slug
from vllmrt.resolve import disk, manifest, recovery

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from vllmrt.resolve.manifest import Manifest
    from vllmrt.types import ModelRequest, RemoteFile

STAGING, LOCKS = ".staging", ".locks"
_TRASH = re.compile(r"trash\.[0-9a-f]{12}")
_STAGED = re.compile(r".+\.[0-9a-f]{12}")
_MAX_SLUG = 200


class Published(NamedTuple):
    """A model that was published here."""

    path: Path
    manifest: Manifest


class Store:
    """One store. Nothing is made before it is needed.

    Args:
        root: VLLM_MODELS_DIR.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def lock_path(self, identity: str) -> Path:
        """Return the lock file of an identity."""
        return self.root / LOCKS / f"{identity_hash(identity)}.lock"

    def lock_of(self, staging: Path) -> Path:
        """Return the lock file of the identity that a staging directory belongs to."""
        return self.root / LOCKS / f"{staging.name.rpartition('.')[2]}.lock"

    def staging_path(self, identity: str) -> Path:
        """Return where an identity is staged, whether or not anything is."""
        return self.root / STAGING / f"{slug(identity)[:_MAX_SLUG]}.{identity_hash(identity)}"

    def staging(self, identity: str) -> Path:
        """Make the staging directory of an identity, with ``files/`` and ``parts/``, and settle what a kill has left.

        The lock of the identity is held.

        Raises:
            ConfigError: the store cannot be written, or what lies there is no directory of ours.
            NoSpace: the disk is full.
        """
        staging = self.staging_path(identity)
        self.private()
        with disk.writing(self.root):
            self._make_private(staging)
            recovery.settle(staging, self.root)
            for name in (recovery.FILES, recovery.PARTS):
                self._make_private(staging / name)
        return staging

    def stagings(self) -> list[Path]:
        """Return every staging directory that is there; links are none.

        Raises:
            ConfigError: ``.staging`` leads elsewhere.
        """
        return [path for path in self._staged() if _STAGED.fullmatch(path.name) and not _TRASH.fullmatch(path.name)]

    def trashes(self) -> list[Path]:
        """Return what was being removed from the store when a kill came. Errors as of `stagings`."""
        return [path for path in self._staged() if _TRASH.fullmatch(path.name)]

    def private(self) -> Path:
        """Make the directory that holds all staging directories, open to nobody else. Errors as of `staging`."""
        with disk.writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._make_private(self.root / STAGING)
            # Publishing will write here; better to know before a byte has been fetched.
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise OSError(*_why_not(self.root), str(self.root))
        return self.root / STAGING

    def places(self, request: ModelRequest, directory_name: str | None = None) -> tuple[Path, Path]:
        """Return where a model may be published, the second only where the first belongs to another.

        Args:
            request: the model.
            directory_name: VLLM_MODEL; None for the last part of the id.

        Raises:
            ConfigError: the name is no safe path element.
        """
        name = directory_name or request.name
        check_name(name, "directory name")
        return self.root / name, self.root / f"{name}.{identity_hash(request.identity)}"

    def published(self, request: ModelRequest, directory_name: str | None = None) -> Published | None:
        """Return where the model is published; None where it is not. Arguments and errors as of `places`."""
        found = ((place, manifest.of(place)) for place in self.places(request, directory_name))
        return next(
            (Published(place, known) for place, known in found if known and known.identity == request.identity), None
        )

    def target(self, request: ModelRequest, directory_name: str | None = None) -> Path:
        """Return where to publish a model: where it is now, else where nothing is. Arguments as of `places`.

        Raises:
            ConfigError: as `places`, or every place belongs to another model or to the user.
        """
        published = self.published(request, directory_name)
        if published:
            return published.path
        places = self.places(request, directory_name)
        free = next((place for place in places if not os.path.lexists(place)), None)
        if free is None:
            raise ConfigError(
                f"neither {places[0]} nor {places[1].name} is replaced: they belong to another model, or to you",
                hint="move one of them away, or set VLLM_MODEL to another name",
            )
        return free

    def admit(self, staging: Path, wanted: Iterable[RemoteFile], *, headroom: int = 0) -> None:
        """Refuse a transfer that the disk cannot hold, before its first byte.

        Args:
            staging: the staging directory; it need not exist. What it has allocated counts.
            wanted: the files to fetch, in full.
            headroom: bytes that are to stay free.

        Raises:
            NoSpace: with what is missing.
        """
        free, needed = free_space(staging), unallocated(staging, wanted)
        if free is None or needed + headroom <= free:
            return
        spare = f" and {human_size(headroom)} to spare" if headroom else ""
        short = needed + headroom - free
        others = sum(allocated(other) for other in self.stagings() if other != staging)
        gc = f"; vllmrt models gc looks after {human_size(others)} that other downloads have left" if others else ""
        raise NoSpace(
            f"{human_size(needed)} are still to be fetched{spare}, and {human_size(free)} are free in {self.root}",
            hint=f"free at least {human_size(short)} ({short:,} bytes), or name another store with --models-dir{gc}",
        )

    def _staged(self) -> list[Path]:
        root = self.root / STAGING
        if root.is_symlink():
            raise _is_link(root)
        try:
            with os.scandir(root) as entries:
                return sorted(root / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []

    def _make_private(self, directory: Path) -> None:
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise _is_link(directory)
        # A network file system may map all users to one, whom the store then belongs to as well.
        if status.st_uid not in {os.geteuid(), self.root.stat().st_uid}:
            raise ConfigError(
                f"{directory} belongs to uid {status.st_uid}", hint="fetch models as one user; the others can read them"
            )
        disk.set_mode(str(directory), 0o700)


def _why_not(directory: Path) -> tuple[int, str]:
    code = errno.EROFS if os.statvfs(directory).f_flag & os.ST_RDONLY else errno.EACCES
    return code, os.strerror(code)


def _is_link(directory: Path) -> ConfigError:
    return ConfigError(
        f"{directory} is a link or a file, not a directory of ours", hint="see where it leads, then remove it"
    )


def free_space(path: Path) -> int | None:
    """Return the bytes that are free to us where `path` is, or will be; None where the file system does not say."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def unallocated(staging: Path, wanted: Iterable[RemoteFile]) -> int:
    """Return how many bytes of some files the disk has not yet set aside in a staging directory."""
    statuses = ((file, _regular(recovery.part(staging, file))) for file in wanted)
    return sum(max(0, file.size - (_blocks(status) if status else 0)) for file, status in statuses)


def allocated(directory: Path) -> int:
    """Return the bytes that removing a directory would free: files with another name elsewhere do not count."""
    found = {}
    names: Counter[tuple[int, int]] = Counter()
    for status in filter(None, map(_regular, _files(directory))):
        inode = status.st_dev, status.st_ino
        found[inode] = status
        names[inode] += 1
    return sum(_blocks(status) for inode, status in found.items() if status.st_nlink == names[inode])


def _files(directory: Path) -> Iterator[Path]:
    from pathlib import Path

    for parent, _, names in os.walk(directory):
        yield from (Path(parent, name) for name in names)


def _regular(path: Path) -> os.stat_result | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _blocks(status: os.stat_result) -> int:
    # units of 512 bytes, whatever the file system's blocks are (stat(2))
    return status.st_blocks * 512
