"""What is known of a model's bytes, so that a warm start need not read them.

A published model carries its manifest as ``.vllmrt.json``; of a model that is used where it lies, which is never
modified, the manifest lies in the cache.
"""

from __future__ import annotations

import os
import stat
from binascii import crc32
from typing import TYPE_CHECKING

import msgspec

from vllmrt.identity import slug
from vllmrt.paths import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

NAME = ".vllmrt.json"
VERSION = 1
_SIZE_LIMIT = 64 << 20
_LONGEST_SLUG = 200


class FileState(msgspec.Struct, frozen=True, array_like=True):
    """A file as it was when it was proven.

    Attributes:
        size: bytes.
        mtime_ns: modification time, nanoseconds since the epoch.
        digest: ``algorithm:hex`` of the content, as it was computed here; empty where nobody has read it.
        version: what the source called these bytes (`vllmrt.types.RemoteFile`); empty for a model in place.
    """

    size: int
    mtime_ns: int
    digest: str = ""
    version: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model directory as it was when it passed validation.

    Attributes:
        identity: whose it is, ``org/name[@revision]``.
        source: the source that gave it.
        location: where that source had it; the directory itself for a model in place.
        revision: the immutable revision, where the source knows it.
        guards: the validators that it passed, each with its distribution and version, and the settings they obey.
        files: every file by its path below the directory.
        publication: tells one publication from every other (`vllmrt.resolve.publish`); empty for a model in place.
    """

    version: int = VERSION
    identity: str
    source: str
    location: str
    revision: str | None = None
    guards: tuple[str, ...] = ()
    files: dict[str, FileState] = {}
    publication: str = ""


def in_cache(cache: Path, identity: str, directory: Path) -> Path:
    """Return where the manifest of a model in place is kept: one for each identity and directory."""
    # A checksum will do: a manifest says itself what it is of, so two that share a name cost a second look only.
    checksum = crc32(f"{identity} {directory}".encode(errors="surrogateescape"))
    return cache / "manifests" / f"{slug(identity)[:_LONGEST_SLUG]}.{checksum:08x}.json"


def read(path: Path) -> Manifest | None:
    """Return the manifest at `path`, None where there is none that can be understood."""
    try:
        with open(path, "rb", opener=_opener) as file:
            found = msgspec.json.decode(file.read(_SIZE_LIMIT), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if found.version == VERSION else None


def of(directory: Path) -> Manifest | None:
    """Return the manifest of a directory that was published; None for any other, for a link, and for nothing."""
    return None if directory.is_symlink() else read(directory / NAME)


def write(path: Path, manifest: Manifest, *, mode: int = 0o600, parents: bool = True) -> None:
    """Write a manifest atomically; into a model without `parents`, see `vllmrt.paths.write_atomic`.

    Raises:
        OSError: it cannot be written.
    """
    write_atomic(path, msgspec.json.encode(manifest), mode=mode, parents=parents)


def unchanged(known: Manifest | None, now: Manifest) -> bool:
    """Tell whether a directory is as it was when `known` was written, by the sizes and times of its files.

    Args:
        known: what was noted when it passed validation; None where nothing was.
        now: the same directory today, with the validators that it would have to pass.
    """
    return (
        known is not None
        and (known.identity, known.guards) == (now.identity, now.guards)
        and known.files.keys() == now.files.keys()
        and all(
            (was.size, was.mtime_ns) == (now.files[path].size, now.files[path].mtime_ns)
            for path, was in known.files.items()
        )
    )


def states(directory: Path) -> dict[str, FileState]:
    """Return size and time of every file below `directory`, links followed, in the order of their paths.

    Raises:
        OSError: something vanished or cannot be read.
    """
    found: dict[str, FileState] = {}
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(os.path.join(directory, prefix)) as entries:  # noqa: PTH118 - once for each file of a warm start
            for entry in entries:
                if _is_no_model_file(entry, prefix):
                    continue
                status = entry.stat()
                if not stat.S_ISDIR(status.st_mode):
                    found[_key(prefix + entry.name)] = FileState(status.st_size, status.st_mtime_ns)
                elif (status.st_dev, status.st_ino) not in seen:  # a link may lead back to where it lies
                    seen.add((status.st_dev, status.st_ino))
                    pending.append(f"{prefix}{entry.name}/")
    return dict(sorted(found.items()))


def _is_no_model_file(entry: os.DirEntry[str], prefix: str) -> bool:
    if entry.name == "__pycache__":
        return entry.is_dir(follow_symlinks=False)
    return entry.name == NAME and not prefix and entry.is_file(follow_symlinks=False)


def _key(name: str) -> str:
    """Return a name as JSON can hold it; one that is not UTF-8 gets its odd bytes escaped."""
    return name if name.isprintable() else os.fsencode(name).decode(errors="backslashreplace")


def total_size(files: Mapping[str, FileState]) -> int:
    """Return the bytes of all files."""
    return sum(state.size for state in files.values())


def guards_of(validators: Iterable[tuple[str, str]], **settings: bool) -> tuple[str, ...]:
    """Return what a manifest notes of the validators: a name and an owner each, then the settings that bend them."""
    named = sorted(f"{name} ({owner})" for owner, name in validators)
    return (*named, *(f"{key}={value}" for key, value in sorted(settings.items())))


def _opener(path: str, flags: int) -> int:
    """Open a file, but not through a link, and without waiting for whoever writes into a FIFO."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
