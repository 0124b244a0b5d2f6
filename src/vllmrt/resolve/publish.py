"""A staged model takes the place of the published one in a single step."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from vllmrt.errors import ConfigError, IntegrityError, LockTimeout
from vllmrt.locking import taken_away
from vllmrt.paths import is_ours
from vllmrt.resolve import disk, recovery
from vllmrt.resolve import manifest as manifests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from vllmrt.resolve.manifest import FileState, Manifest

T = TypeVar("T")
_TRIES = 20
_PATIENCE = 5.0


def publish(
    files: Path,
    target: Path,
    manifest: Manifest,
    *,
    inodes: Mapping[str, int] | None = None,
    accept: Callable[[Path], bool] = lambda _: True,
) -> Manifest | None:
    """Put a staged model in the place of `target`; a kill at any instruction leaves the old one or the new one.

    First the files get a name that is never given again. What `accept` sees below it was there all the time, or else
    the name is gone: whatever other processes do, on a file system whose locks do not hold.

    Args:
        files: ``files/`` of a staging directory; the name is gone afterwards.
        target: where it goes, as `Store.target` returns it.
        manifest: what was proven: exactly the files that are staged, with their sizes. Times are filled in here.
        inodes: of a path the inode that was written and proven. With it, two processes that publish the same model
            at once, on a file system whose locks do not hold, cannot publish half of each other's work.
        accept: asked about the directory before it is published; it raises FileNotFoundError where that is gone.

    Returns:
        the manifest as it was written; that of another process which published the same bytes in the meantime; None
        where the model was not accepted, which is staged as before.

    Raises:
        IntegrityError: what is staged is not what the manifest says; nothing was published.
        ConfigError: `target` is somebody else's, or the store cannot be written.
        NoSpace: the disk is full.
        LockTimeout: another process took the staged files away and did not publish them, or has taken `target` in the
            meantime; then the files are staged as before.
    """
    staging, nonce = files.parent, os.urandom(6).hex()
    claimed, sealed = staging / f"{recovery.CLAIM}{nonce}", staging / f"{recovery.SEALED}{nonce}"
    with disk.writing(target.parent):
        try:
            _refuse_foreign(target, manifest.identity)
            disk.sync_tree(files)
            files.rename(claimed)
            proven = _compare(claimed, manifest, inodes)
            if not accept(claimed):
                return None
            sealing = _seal(claimed, proven, nonce)
            claimed.rename(sealed)
            final = _put(sealed, target, sealing)
            for directory in (target.parent, staging):
                disk.sync_path(directory)
        except FileNotFoundError:
            return _of_another(target, manifest)
        finally:
            recovery.settle(staging, target.parent)
    with suppress(OSError):
        staging.rmdir()
    return final


def _compare(claimed: Path, manifest: Manifest, inodes: Mapping[str, int] | None) -> Manifest:
    """Compare what is staged with what was proven, and open it to other users; return the manifest with its times."""
    umask = disk.umask()
    found = dict(_walk(claimed, 0o644 & ~umask, 0o755 & ~umask))
    states = {path: _final(path, state, found.pop(path, None), inodes) for path, state in manifest.files.items()}
    if found:
        raise IntegrityError(f"{min(found)!a} is staged, but it is no file of the model", hint="run it again")
    return msgspec.structs.replace(manifest, files=states)


def _seal(claimed: Path, manifest: Manifest, nonce: str) -> Manifest:
    """Write the manifest, last of all."""
    final = msgspec.structs.replace(manifest, publication=nonce)
    manifests.write(claimed / manifests.NAME, final, mode=0o644 & ~disk.umask(), parents=False)
    for directory, _, _ in os.walk(claimed):
        disk.sync_path(directory)
    return final


def _final(path: str, state: FileState, status: os.stat_result | None, inodes: Mapping[str, int] | None) -> FileState:
    fault = (
        "is missing"
        if status is None
        else "is no regular file"
        if not stat.S_ISREG(status.st_mode)
        else f"has {status.st_size:,} bytes instead of {state.size:,}"
        if status.st_size != state.size
        else "was replaced after it was proven"
        if inodes and inodes.get(path, status.st_ino) != status.st_ino
        else None
    )
    if status is None or fault:
        raise IntegrityError(f"{path!a} {fault} in staging", hint="run it again")
    return msgspec.structs.replace(state, mtime_ns=status.st_mtime_ns)


def _walk(root: Path, file_mode: int, directory_mode: int) -> Iterator[tuple[str, os.stat_result]]:
    """Set the modes below `root`, and yield each path with its final state; what a kill left of ours is removed."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        directory = os.path.join(root, prefix)  # noqa: PTH118 - a model may have 100,000 files
        disk.set_mode(directory, directory_mode)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
                elif is_ours(entry.name):
                    os.unlink(entry.path)  # noqa: PTH108 - as above
                else:
                    disk.set_mode(entry.path, file_mode)
                    yield f"{prefix}{entry.name}", os.lstat(entry.path)


def _put(sealed: Path, target: Path, final: Manifest) -> Manifest:
    for _ in range(_TRIES - 1):
        try:
            return _put_once(sealed, target, final)
        except OSError as error:
            # `target` came or went since it was looked at
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT} or not os.path.lexists(sealed):
                raise
            time.sleep(0.01)
    return _put_once(sealed, target, final)


def _put_once(sealed: Path, target: Path, final: Manifest) -> Manifest:
    """Put the model there, unless another process just published the same; return the manifest that is there then."""
    try:
        known = _refuse_foreign(target, final.identity)
    except ConfigError as error:  # it was not there at first, so there is another target
        raise LockTimeout(error.message, hint="run it again") from None
    if known is None:
        disk.move(sealed, target)
    elif _is_same(known, final) and manifests.unchanged(
        known, msgspec.structs.replace(final, files=manifests.states(target))
    ):
        recovery.discard(sealed, sealed.parent)
        return known
    else:
        _exchange(sealed, target)
    return final


def _refuse_foreign(target: Path, identity: str) -> Manifest | None:
    """Return the manifest of what is to be replaced; None where there is nothing."""
    if not os.path.lexists(target):
        return None
    known = manifests.of(target)
    if known is None or known.identity != identity:
        whose = known.identity if known else "somebody else: it has no manifest"
        raise ConfigError(f"{target} is not replaced: it belongs to {whose}", hint="move it away, and run it again")
    return known


def _is_same(one: Manifest, other: Manifest) -> bool:
    """Tell whether two manifests are of the same bytes."""
    return one.identity == other.identity and _bytes_of(one) == _bytes_of(other)


def _bytes_of(manifest: Manifest) -> dict[str, tuple[int, str]]:
    return {path: (state.size, state.digest) for path, state in manifest.files.items()}


def _exchange(sealed: Path, target: Path) -> None:
    try:
        disk.renameat2(sealed, target, disk.EXCHANGE)
    except OSError as error:
        if error.errno not in disk.UNSUPPORTED:
            raise
        _exchange_by_backup(sealed, target)


def _exchange_by_backup(sealed: Path, target: Path) -> None:
    """Do it in two steps. Between them the model is missing, until `recovery.settle` finds the backup."""
    newest = max((number for number, _, _ in recovery.backups(os.listdir(sealed.parent))), default=0)
    backup = sealed.with_name(f"{recovery.BACKUP}{newest + 1}.{target.name}")
    target.rename(backup)
    disk.sync_path(sealed.parent)
    disk.move(sealed, target)


def _of_another(target: Path, manifest: Manifest) -> Manifest:
    """Return what another process has published instead of us, which is as good if it is the same."""

    def same() -> Manifest | None:
        known = manifests.of(target)
        return known if known and _is_same(known, manifest) else None

    known = wait_for_another(same)
    if known is None:
        raise taken_away(target.name)
    return known


def wait_for_another(published: Callable[[], T | None]) -> T | None:
    """Wait a few seconds for what another process is about to publish.

    Args:
        published: returns it as soon as it is there, before that None.

    Returns:
        it, or None where nothing comes.
    """
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        found = published()
        if found is not None:
            return found
        time.sleep(0.05)
    return None
