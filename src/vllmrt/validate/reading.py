"""Reads the files of a survey without trust: bounded, never outside, never blocking, every failure a finding."""

from __future__ import annotations

import codecs
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vllmrt.types import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT_LIMIT = 1 << 27
_CHUNK = 1 << 20
# The path was resolved by the walk: a link there now is a race, and a FIFO must not block the run.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class File(NamedTuple):
    """A regular file of the model that lies inside.

    Attributes:
        name: path below the model's directory, POSIX.
        real: absolute path, free of links.
        size: bytes, at the time of the walk.
    """

    name: str
    real: str
    size: int


class Fault(Exception):
    """What makes a file unusable; carries the finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


class _Object(msgspec.Struct):
    """Any JSON object: what it holds is skipped, which checks the syntax and builds nothing."""


def printable(text: str) -> str:
    """Return `text` for a terminal and for JSON: undecodable bytes and control characters are escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def error(code: str, file: str | None, message: str) -> Finding:
    """Return a finding that rejects the model."""
    return Finding(Severity.ERROR, message=message, code=code, file=file if file is None else printable(file))


def warning(code: str, file: str | None, message: str) -> Finding:
    """Return a finding that is only shown."""
    return Finding(Severity.WARNING, message=message, code=code, file=file if file is None else printable(file))


def unreadable(name: str | None, failure: OSError) -> Finding:
    """Return the finding for a file or directory that the system does not let us read."""
    return error("unreadable", name, f"cannot be read: {failure.strerror or failure}")


@contextmanager
def opened(file: File) -> Iterator[tuple[int, int]]:
    """Open a file for reading; the value is its descriptor and its size in bytes now.

    Raises:
        Fault: ``unreadable``, also for an `OSError` in the body of the ``with``.
    """
    try:
        descriptor = os.open(file.real, _FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Fault(error("unreadable", file.name, "stopped being a regular file"))
            yield descriptor, status.st_size
        finally:
            os.close(descriptor)
    except OSError as failure:
        raise Fault(unreadable(file.name, failure)) from None


def read(file: File, limit: int = TEXT_LIMIT) -> bytes:
    """Return the content of a file that is at most `limit` bytes long.

    Raises:
        Fault: ``empty-file``, ``file-too-large`` or ``unreadable``.
    """
    with opened(file) as (descriptor, size):
        if size == 0:
            raise Fault(empty(file))
        if size > limit:
            raise Fault(error("file-too-large", file.name, f"is {size:,} bytes long, at most {limit:,} make sense"))
        return read_range(descriptor, 0, size)


def read_range(descriptor: int, start: int, stop: int) -> bytes:
    """Return the bytes `start` to `stop` of an open file, fewer where it ends before."""
    pieces = []
    while start < stop and (piece := os.pread(descriptor, stop - start, start)):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def empty(file: File) -> Finding:
    """Return the finding for a file of no bytes."""
    return error("empty-file", file.name, "is empty")


def check_object(file: File, code: str) -> Iterator[Finding]:
    """Yield what keeps a file from being one JSON object; `code` is for content, see `read` for the others."""
    try:
        data = read(file)
    except Fault as fault:
        yield fault.finding
        return
    if problem := _not_an_object(data):
        yield error(code, file.name, problem)


def _not_an_object(data: bytes) -> str | None:
    try:
        _require_utf8(data)
        msgspec.json.decode(data, type=_Object)
    except msgspec.ValidationError as failure:
        return f"is not a JSON object: {failure}"
    except (ValueError, RecursionError) as failure:
        return None if _python_takes(data) else f"is not JSON: {printable(str(failure))}"
    return None


def _require_utf8(data: bytes) -> None:
    decode = codecs.getincrementaldecoder("utf-8")().decode
    for start in range(0, len(data), _CHUNK):
        decode(data[start : start + _CHUNK])
    decode(b"", final=True)


def _python_takes(data: bytes) -> bool:
    """Whether transformers would read it: published configs hold ``Infinity``, which JSON does not know."""
    import json

    try:
        return isinstance(json.loads(data.decode()), dict)
    except (ValueError, RecursionError):
        return False
