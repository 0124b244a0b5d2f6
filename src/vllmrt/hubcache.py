"""The Hugging Face cache layout, read only: where the snapshots of a model lie.

``hub/models--org--name/refs/<ref>`` holds a commit, ``snapshots/<commit>/`` its files as links into ``blobs/``
(reference: hub-facts, "The cache layout").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt.errors import ConfigError
from vllmrt.paths import user_cache

if TYPE_CHECKING:
    from pathlib import Path

    from vllmrt.types import ModelRequest

_COMMIT_LENGTH = 64
_SEPARATORS = 2


def home(configured: Path | None) -> Path | None:
    """Return the home of the Hugging Face libraries: HF_HOME, or their default; None for a user without one."""
    if configured:
        return configured
    try:
        return user_cache().parent / "huggingface"
    except ConfigError:
        return None


def repository(hub: Path, request: ModelRequest) -> Path:
    """Return the directory that a cache at `hub` has for the model, whether or not it is there."""
    return hub / f"models--{request.org}--{request.name}"


def snapshots(repo: Path, revision: str | None) -> list[Path]:
    """Return the snapshots of a cached repository that answer the revision, best first.

    Args:
        repo: as `repository` returns it.
        revision: a commit or a ref; None for what ``refs/main`` says, then the others, the newest first.

    Raises:
        OSError: the cache is there and cannot be read.
    """
    if repo.name.count("--") != _SEPARATORS:
        return []  # models--a--b--c could be a--b/c or a/b--c; the Hub has neither
    there = _newest_first(repo / "snapshots")
    wanted = _commit(repo, revision or "main") or revision
    if revision is not None:
        return [path for path in there if path.name == wanted]
    return sorted(there, key=lambda path: path.name != wanted)


def _newest_first(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime_ns)


def _commit(repo: Path, ref: str) -> str | None:
    try:
        with (repo / "refs" / ref).open() as file:
            return file.read(_COMMIT_LENGTH + 1).strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError):
        return None
