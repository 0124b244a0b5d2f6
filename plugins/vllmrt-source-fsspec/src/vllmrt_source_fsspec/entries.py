"""What backends say of a file, each in words of its own, as values of ours."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vllmrt.types import Digest, RemoteFile

if TYPE_CHECKING:
    from collections.abc import Mapping

_IDENTIFY = ("generation", "ETag", "etag", "blob_id", "md5Hash", "crc32c", "hex", "sha")
_TIMES = ("mtime", "modified", "LastModified", "last_modified", "updated", "modify", "modificationTime", "created")
# An ETag is left out: whether it is the MD5 depends on how the object was stored, which listings do not tell.
_DIGESTS = (("md5", "md5Hash", 16), ("md5", "content_md5", 16), ("crc32c", "crc32c", 4))


def files(found: Mapping[str, Mapping[str, Any]], root: str) -> tuple[RemoteFile, ...]:
    """Return the files of a listing, in the order of their names.

    Backends also give what merely begins with the same letters, and what some tools store to mark a directory.

    Args:
        found: what `find` with details returns.
        root: the path that was listed, without a slash behind it.
    """
    below = f"{root}/" if root else ""
    return tuple(
        RemoteFile(name.removeprefix(below), size=entry["size"], version=version(entry), digest=digest(entry))
        for name, entry in sorted(found.items())
        if entry.get("type") == "file" and name.startswith(below) and not (name.endswith("/") and not entry["size"])
    )


def version(entry: Mapping[str, Any]) -> str:
    """Return what changes whenever the content does, as well as the backend knows; empty where it does not."""
    for key in _IDENTIFY:
        if entry.get(key):
            # adlfs before 2026.5.0 has quotes about the ETag of one file, and none in a listing
            return str(entry[key]).removeprefix("W/").strip('"')
    for key in _TIMES:
        if entry.get(key):
            return f"{_seconds(entry[key])}-{entry['size']}"
    return ""


def digest(entry: Mapping[str, Any]) -> Digest | None:
    """Return the digest of the whole content, where the backend has one."""
    flat = {**entry, **(entry.get("content_settings") or {})}  # Azure has it one level down
    sha256 = flat.get("sha256") or (flat.get("lfs") or {}).get("sha256")
    if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256):
        return Digest("sha256", value=sha256)
    for algorithm, key, length in _DIGESTS:
        raw = _raw(flat.get(key))
        if len(raw) == length:
            return Digest(algorithm, value=raw.hex())
    return None


def package(driver: str, words: str, missing: str | None) -> str:
    """Return the distribution that brings a driver.

    Args:
        driver: the class that fsspec wants, such as ``gcsfs.GCSFileSystem``.
        words: what fsspec says when it is missing.
        missing: the module that could not be imported.
    """
    module = driver.partition(".")[0]
    if module and module != "fsspec":
        return module
    quoted = re.search(r'"([a-z0-9_-]+)"', words)
    return quoted[1] if quoted else missing or "its driver"


def _seconds(time: object) -> str:
    seconds = time.timestamp() if isinstance(time, datetime) else time
    return f"{seconds:.6f}" if isinstance(seconds, (int, float)) else str(seconds)


def _raw(value: object) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        return b""
