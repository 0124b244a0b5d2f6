"""What a kill leaves in the middle of a publication, and how it is brought into order.

A staging directory holds while a model is fetched:

* ``parts/``: what is fetched, one file for each version of a path. So two processes that fetch different versions,
  where the locks of a file system do not hold, never write into the same file.
* ``files/``: the model as it comes together, of second names for the parts and for what is published already;
* the journal.

And for moments more:

* ``claim.<nonce>/``: the files, taken by one process that validates and publishes them;
* ``sealed.<nonce>/``: the same with their manifest; after the exchange, the old model. Which of the two it is, the
  manifest tells: that of the new one bears the nonce.
* ``backup.<n>.<name>/``: the old model, where the file system cannot exchange.
* ``trash.<nonce>/``: what is being removed. Nothing is ever restored from it.

So whatever a kill leaves can be told apart, and `settle` brings it into order.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING

from vllmrt.errors import LockTimeout
from vllmrt.resolve import disk, manifest
from vllmrt.transfer.journal import NAME as JOURNAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from vllmrt.resolve.store import Store
    from vllmrt.types import RemoteFile

FILES, PARTS = "files", "parts"
CLAIM, SEALED, BACKUP, TRASH = "claim.", "sealed.", "backup.", "trash."
_OWNER = "see who owns its files"
_BACKUP_NAME = re.compile(r"backup\.(\d+)\.(.+)", re.DOTALL)


def recover(store: Store, *, held: str | None = None) -> None:
    """Bring into order what a kill has left anywhere in a store.

    Args:
        store: the store. What cannot be written is left as it is.
        held: the identity whose lock the caller holds; what belongs to the lock of any other process is left alone.
    """
    from vllmrt import locking

    for staging in store.stagings():
        if not is_unsettled(staging):
            continue
        lock = store.lock_of(staging)
        with suppress(LockTimeout, OSError):
            if held is not None and lock == store.lock_path(held):
                settle(staging, store.root)
            else:
                with locking.hold(lock, timeout=0, waiting=lambda _: None):
                    settle(staging, store.root)


def settle(staging: Path, models: Path) -> None:
    """Bring one staging directory into order, whatever moment it was left in.

    The newest backup is restored where its model is missing, claimed files that were not published become ``files/``
    again, and everything that is superseded is removed. What cannot be removed is left for ``vllmrt models gc``.

    Args:
        staging: the directory; its lock is held.
        models: where its models are published.

    Raises:
        OSError: a model that is missing cannot be restored.
    """
    names = sorted(entries(staging))
    for _, name, backup in sorted(backups(names), reverse=True):
        if os.path.lexists(models / name):
            discard(staging / backup, staging)
        else:
            disk.move(staging / backup, models / name)
    for name in names:
        if name.startswith((CLAIM, SEALED)):
            _settle_claim(staging / name)
        elif name.startswith(TRASH):
            disk.remove(staging / name)
    if not (staging / FILES).is_dir():
        # they are published by now, or gone
        (staging / JOURNAL).unlink(missing_ok=True)  # first: it must not speak of parts that are made anew
        discard(staging / PARTS, staging)


def part(staging: Path, file: RemoteFile) -> Path:
    """Return where a version of a file is fetched to, whether or not anything is there."""
    key = "\0".join((file.path, file.version, str(file.size)))
    return staging / PARTS / sha256(key.encode(errors="surrogatepass")).hexdigest()


def discard(path: Path, staging: Path) -> str | None:
    """Remove a directory; killed in the middle, it leaves nothing that could be taken for a whole one.

    Args:
        path: what to remove; a link is removed, not followed.
        staging: a directory of the same file system that `settle` looks into.

    Returns:
        what to do about what is left of it; None where nothing is.
    """
    trash = staging / f"{TRASH}{os.urandom(6).hex()}"
    try:
        path.rename(trash)
    except OSError as error:
        remedy = disk.VOLUME if error.errno == errno.EXDEV else _OWNER
        return remedy if os.path.lexists(path) else None
    return None if disk.remove(trash) else _OWNER


def is_unpublished(claimed: Path) -> bool:
    """Tell whether what a process claimed is still the new model, and not yet the old one."""
    known = manifest.of(claimed)
    return claimed.name.startswith(CLAIM) or (known is not None and f"{SEALED}{known.publication}" == claimed.name)


def model_of(backup: Path) -> str:
    """Return the name of the model that a backup was made of."""
    return next(backups([backup.name]))[1]


def _settle_claim(claimed: Path) -> None:
    if is_unpublished(claimed):
        with suppress(OSError):  # another process has begun anew
            claimed.rename(claimed.with_name(FILES))
            return
    discard(claimed, claimed.parent)


def entries(staging: Path) -> list[str]:
    """Return the names in a staging directory; none where there is no such directory."""
    try:
        return os.listdir(staging)
    except FileNotFoundError:
        return []


def backups(names: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the backups among the names of a staging directory: number, name of the model, name of the backup."""
    for match in filter(None, map(_BACKUP_NAME.fullmatch, names)):
        yield int(match[1]), match[2], match[0]


def is_unsettled(staging: Path) -> bool:
    """Tell whether `settle` would find anything to do."""
    names = entries(staging)
    left = (CLAIM, SEALED, BACKUP, TRASH)
    return any(name.startswith(left) for name in names) or (FILES not in names and (JOURNAL in names or PARTS in names))
