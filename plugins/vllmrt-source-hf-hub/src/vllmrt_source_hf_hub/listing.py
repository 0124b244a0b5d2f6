"""The answers of the API, taken apart. They come from the network: every type is checked, no name is believed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from vllmrt.errors import SourceError
from vllmrt.types import Digest, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Revision(NamedTuple):
    """What the revision call says: the immutable commit, and whether files are open to some only."""

    commit: str
    gated: bool


def revision(answer: Any) -> Revision:
    """Read the answer of ``/api/models/{id}/revision/{rev}``.

    Raises:
        SourceError: it names no commit.
    """
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _SHA1.fullmatch(commit):
        raise _strange("the answer to the revision names no commit")
    return Revision(commit, gated=bool(answer.get("gated")))


def files(entries: Iterable[Any]) -> tuple[RemoteFile, ...]:
    """Read the entries of the tree call; what is no file is left out, names are passed on as they are.

    Raises:
        SourceError: an entry is not of the form that the Hub gives it, or a path comes twice.
    """
    found: dict[str, RemoteFile] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise _strange("the list of files has an entry that is no object")
        if entry.get("type") != "file":
            continue
        file = _file(entry)
        if file.path in found:
            raise _strange(f"the list of files has {_shown(file.path)} twice")
        found[file.path] = file
    return tuple(found.values())


def _file(entry: dict[str, Any]) -> RemoteFile:
    """``lfs.oid`` is the content's sha256, ``oid`` of a plain file its git blob id (reference: hub-facts)."""
    path, lfs = entry.get("path"), entry.get("lfs")
    if not isinstance(path, str) or not path:
        raise _strange("the list of files has an entry without a path")
    if lfs is not None and not isinstance(lfs, dict):
        raise _strange(f"{_shown(path)} has an lfs field that is no object")
    stored = entry if lfs is None else lfs
    size, oid = stored.get("size"), stored.get("oid")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise _strange(f"{_shown(path)} has no size")
    if not isinstance(oid, str):
        raise _strange(f"{_shown(path)} has no id")
    if lfs is None and _SHA1.fullmatch(oid):
        return RemoteFile(path, size=size, version=oid, digest=Digest("git-sha1", value=oid))
    if lfs is not None and _SHA256.fullmatch(oid):
        return RemoteFile(path, size=size, version=oid, digest=Digest("sha256", value=oid))
    raise _strange(f"{_shown(path)} has an id that is no digest")


def _shown(path: str) -> str:
    return ascii(path if len(path) <= 80 else f"{path[:77]}...")  # noqa: PLR2004 - what fits on a line


def _strange(what: str) -> SourceError:
    return SourceError(what, hint="HF_ENDPOINT has to be the Hugging Face Hub or a mirror that speaks its API")
