"""What is known of a model's bytes, so that a warm start need not read them.

A published model carries its manifest as ``.vllmrt.json``; of a model that is used where it lies, which is never
modified, the manifest lies in the cache.
"""

from __future__ import annotations

import os
from binascii import crc32
from typing import TYPE_CHECKING

import msgspec

from vllmrt.identity import slug
from vllmrt.paths import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

NAME = ".vllmrt.json"
_SIZE_LIMIT = 64 << 20


class FileState(msgspec.Struct, frozen=True, array_like=True):
    """A file as it was when it was proven.

    Attributes:
        size: bytes.
        mtime_ns: modification time, nanoseconds since the epoch.
    """

    size: int
    mtime_ns: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model directory as it was when it passed validation.

    Attributes:
        identity: whose it is, ``org/name[@revision]``.
        source: the source that gave it.
        location: where that source had it; the directory itself for a model in place.
        revision: the immutable revision, where the source knows it.
        guards: the validators that it passed, each with its distribution and version, and the settings they obey.
        files: every file by its path below the directory.
    """

    version: int = 1
    identity: str
    source: str
    location: str
    revision: str | None = None
    guards: tuple[str, ...] = ()
    files: dict[str, FileState] = {}


def in_cache(cache: Path, identity: str, directory: Path) -> Path:
    """Return where the manifest of a model in place is kept: one for each identity and directory."""
    # A checksum will do: a manifest says itself what it is of, so two that share a name cost a second look only.
    checksum = crc32(f"{identity} {directory}".encode(errors="surrogateescape"))
    return cache / "manifests" / f"{slug(identity)}.{checksum:08x}.json"


def read(path: Path) -> Manifest | None:
    """Return the manifest at `path`, None where there is none that can be understood."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_SIZE_LIMIT), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def write(path: Path, manifest: Manifest) -> None:
    """Write a manifest atomically.

    Raises:
        OSError: it cannot be written.
    """
    write_atomic(path, msgspec.json.encode(manifest))


def states(directory: Path) -> dict[str, FileState]:
    """Return size and time of every file below `directory`, links followed, in the order of their paths.

    Raises:
        OSError: something vanished or cannot be read.
    """
    found: dict[str, FileState] = {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(os.path.join(directory, prefix)) as entries:  # noqa: PTH118 - once for each file of a warm start
            for entry in entries:
                if entry.name in {"__pycache__", NAME}:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
                else:
                    status = entry.stat()
                    found[f"{prefix}{entry.name}"] = FileState(status.st_size, status.st_mtime_ns)
    return dict(sorted(found.items()))


def total_size(files: Mapping[str, FileState]) -> int:
    """Return the bytes of all files."""
    return sum(state.size for state in files.values())


def guards_of(validators: Iterable[tuple[str, str]], **settings: bool) -> tuple[str, ...]:
    """Return what a manifest notes of the validators: a name and an owner each, then the settings that bend them."""
    named = sorted(f"{name} ({owner})" for owner, name in validators)
    return (*named, *(f"{key}={value}" for key, value in sorted(settings.items())))
