"""What of a published model need not be fetched again: its unchanged files get a second name in staging.

Such a file must never be written to, for it is the published one as well. So a part that has a name elsewhere, left
there by an earlier run, is taken out before anything is fetched.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vllmrt.paths import is_ours, safe_join
from vllmrt.resolve import disk, recovery

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from vllmrt.resolve.manifest import FileState, Manifest
    from vllmrt.resolve.store import Published
    from vllmrt.types import RemoteFile


class Reuse(NamedTuple):
    """How a listing divides.

    Attributes:
        reused: files that are here already, as the manifest of the new version is to have them.
        wanted: files to fetch.
        identical: True when the published model is what the listing says, file by file.
    """

    reused: dict[str, FileState]
    wanted: tuple[RemoteFile, ...]
    identical: bool


def divide(known: Manifest | None, listing: Sequence[RemoteFile], *, source: str, location: str) -> Reuse:
    """Divide a listing by what the manifest of the published model says; the disk is not looked at.

    Args:
        known: the manifest; None where nothing is published.
        listing: what the source has now.
        source: its name.
        location: where it has it. A version says something only to the store that gave it.
    """
    same_store = known is not None and (known.source, known.location) == (source, location)
    files = known.files if known else {}
    reused = {
        file.path: msgspec.structs.replace(files[file.path], version=file.version)
        for file in listing
        if file.path in files and _is_same(files[file.path], file, same_store=same_store)
    }
    wanted = tuple(file for file in listing if file.path not in reused)
    return Reuse(reused, wanted, identical=not wanted and reused.keys() == files.keys())


def reuse(published: Published | None, plan: Reuse, staging: Path) -> None:
    """Put what need not be fetched into staging, and take out what does not belong there.

    Args:
        published: the old version; None where there is none.
        plan: of a listing whose names `vllmrt.paths.check_listing` has checked.
        staging: the staging directory.

    Raises:
        SourceError: a name that is not plainly that of a file.
        NoSpace: a file had to be copied, and the disk is full.
        ConfigError: the store cannot be written.
    """
    files = staging / recovery.FILES
    with disk.writing(staging.parent.parent):
        _clear(staging, plan)
        for path in plan.reused:
            if published:
                _take_over(published.path / path, safe_join(files, path), staging)
        for file in plan.wanted:
            safe_join(files, file.path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)


def plan_reuse(
    published: Published | None,
    listing: Sequence[RemoteFile],
    *,
    source: str,
    location: str,
    note: Callable[[str], None] = lambda _: None,
) -> Reuse:
    """Divide a listing, and look at the disk: a file that holds other bytes by now is not reused. Nothing is written.

    Args:
        published: the old version; None where there is none.
        listing: what the source has now.
        source: as of `divide`.
        location: as of `divide`.
        note: told in words which file is read.
    """
    plan = divide(published.manifest if published else None, listing, source=source, location=location)
    if published is None:
        return plan
    now = {path: _as_it_is(published.path, path, state, note) for path, state in plan.reused.items()}
    reused = {path: state for path, state in now.items() if state}
    wanted = tuple(file for file in listing if file.path not in reused)
    return Reuse(reused, wanted, identical=plan.identical and not wanted)


def narrow(plan: Reuse, listing: Sequence[RemoteFile], published: Published | None) -> Reuse:
    """Return the plan of a part of a listing; no file is looked at again.

    Args:
        plan: of the whole listing.
        listing: the part.
        published: what the plan was made with.
    """
    reused = {file.path: plan.reused[file.path] for file in listing if file.path in plan.reused}
    wanted = tuple(file for file in listing if file.path not in reused)
    known = published.manifest.files.keys() if published else set()
    return Reuse(reused, wanted, identical=not wanted and reused.keys() == known)


def _is_same(state: FileState, file: RemoteFile, *, same_store: bool) -> bool:
    if state.size != file.size:
        return False
    digest = file.digest
    if digest is not None and state.digest.startswith(f"{digest.algorithm}:"):
        return state.digest == f"{digest.algorithm}:{digest.value.lower()}"
    return same_store and bool(file.version) and state.version == file.version


def _as_it_is(directory: Path, path: str, state: FileState, note: Callable[[str], None]) -> FileState | None:
    """Return a file with the time that it has now, None where it is not what was proven.

    A file with another time is read: it was copied or touched, or, where locks lie, another process was still writing
    the same bytes when it was published. Reading costs less than fetching.
    """
    try:
        status = (directory / path).lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size != state.size:
        return None
    if status.st_mtime_ns == state.mtime_ns:
        return state
    from vllmrt.resolve.inventory import fault

    if not state.digest:
        return None
    note(f"checking {path}")
    if fault(directory, path, state):
        return None
    return msgspec.structs.replace(state, mtime_ns=status.st_mtime_ns)


def _clear(staging: Path, plan: Reuse) -> None:
    """Take out of staging what is not in the listing, what is no plain file, and what may not be written to."""
    parts = {file.path: recovery.part(staging, file) for file in plan.wanted}
    placed = _clear_files(staging / recovery.FILES, plan.reused.keys(), parts)
    kept = {part.name: 2 if path in placed else 1 for path, part in parts.items()}
    with os.scandir(staging / recovery.PARTS) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != kept.get(entry.name):
                disk.remove(staging / recovery.PARTS / entry.name)


def _clear_files(files: Path, reused: AbstractSet[str], parts: Mapping[str, Path]) -> set[str]:
    """Leave in ``files/`` only what is reused, and second names of parts; return the latter."""
    placed = set()
    for parent, directories, names in os.walk(files, topdown=False):
        prefix = os.path.relpath(parent, files) + "/" if parent != str(files) else ""
        for name in [*names, *(name for name in directories if os.path.islink(os.path.join(parent, name)))]:  # noqa: PTH114, PTH118 - a model may have 100,000 files
            path, relative = os.path.join(parent, name), prefix + name  # noqa: PTH118 - as above
            status = os.lstat(path)
            if relative in parts and _is_same_file(status, parts[relative]):
                placed.add(relative)
            elif relative not in reused or not stat.S_ISREG(status.st_mode) or is_ours(name):
                os.unlink(path)  # noqa: PTH108 - as above
        if prefix:
            with suppress(OSError):  # what still holds something stays
                os.rmdir(parent)  # noqa: PTH106 - as above
    return placed


def _is_same_file(status: os.stat_result, part: Path) -> bool:
    try:
        return os.path.samestat(status, part.lstat())
    except OSError:
        return False


def _take_over(old: Path, new: Path, staging: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = old.stat()
    with suppress(FileNotFoundError):
        there = new.lstat()
        copied = (there.st_nlink, there.st_size, there.st_mtime_ns) == (1, status.st_size, status.st_mtime_ns)
        if os.path.samestat(there, status) or copied:
            return
        new.unlink()
    if not disk.link(old, new):
        _copy(old, new, staging)


def _copy(old: Path, new: Path, staging: Path) -> None:
    """Copy a file so that a kill leaves nothing of it, or all."""
    from shutil import copy2

    part = staging / f"{recovery.TRASH}{os.urandom(6).hex()}"
    try:
        copy2(old, part, follow_symlinks=False)
        part.rename(new)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
