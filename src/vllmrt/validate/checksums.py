"""Every file that ``sha256sums.txt`` lists has the digest that it states."""

from __future__ import annotations

import errno
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from vllmrt.validate.reading import Fault, error, opened, printable, read, warning

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from threading import Event

    from vllmrt.settings import Settings
    from vllmrt.types import Finding
    from vllmrt.validate.reading import File
    from vllmrt.validate.tree import Survey

LIST = "sha256sums.txt"
# What sha256sum(1) writes; a name with a backslash or newline, which it would escape, is not accepted.
_LINE = re.compile(rb"(?P<digest>[0-9A-Fa-f]{64}) [ *](?P<name>[^\0\\]+)")
_THREADS = 8
_NAMED = 3


def check(survey: Survey, settings: Settings) -> Iterator[Finding]:
    """Yield what does not match; nothing where there is no list."""
    listing = survey.files.get(LIST)
    if listing is None:
        return
    try:
        lines = read(listing).splitlines()
    except Fault as fault:
        yield fault.finding
        return
    expected: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if problem := _add(line, expected):
            yield error("checksum-malformed", LIST, f"line {number:,}: {problem}")
    if not expected:
        yield error("checksum-malformed", LIST, "lists no file")
    yield from _missing(survey, expected, settings)
    yield from _mismatches([(survey.files[name], expected[name]) for name in expected if name in survey.files])


def _add(line: bytes, expected: dict[str, str]) -> str | None:
    """Note what a line says; the value is what is wrong with it."""
    if not line.strip() or line.startswith(b"#"):
        return None
    match = _LINE.fullmatch(line)
    if match is None:
        return "is not a digest, two blanks and a name"
    name = os.fsdecode(match["name"])
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    if {"", ".", ".."}.intersection(name.split("/")):
        return f'"{printable(name)}" is no path inside the model'
    digest = match["digest"].decode().lower()
    if expected.setdefault(name, digest) != digest:
        return f"{printable(name)} has another digest than before"
    return None


def _missing(survey: Survey, expected: dict[str, str], settings: Settings) -> Iterator[Finding]:
    """Yield an error for each that is not here, but a warning for what is left out of a listing like this one."""
    absent = [name for name in expected if not survey.has(name)]
    left_out = _left_out(survey, expected, settings) if absent else set()
    for name in absent:
        if name not in left_out:
            yield error("checksum-missing", name, f"is listed in {LIST}, but is missing")
    if rest := [printable(name) for name in absent if name in left_out]:
        more = f" and {len(rest) - _NAMED:,} more" if rest[_NAMED:] else ""
        yield warning("checksum-unused", LIST, f"lists files that are not here: {', '.join(rest[:_NAMED])}{more}")


def _left_out(survey: Survey, expected: Collection[str], settings: Settings) -> set[str]:
    """Return what a fetch of the listed files would have left at the source."""
    from vllmrt.types import RemoteFile
    from vllmrt.validate.selection import SAFETENSORS_INDEX, select

    weight_map = next((index.shards for index in survey.indexes.usable if index.file == SAFETENSORS_INDEX), None)
    files = [RemoteFile(name, size=0, version="") for name in {*expected, *survey.files}]
    chosen = select(files, weight_map=weight_map, include=settings.include, exclude=settings.exclude)
    return {file.path for file in chosen.left_out}


def _mismatches(files: list[tuple[File, str]]) -> Iterator[Finding]:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    stop = Event()
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            yield from filter(None, pool.map(partial(_compare, stop), files))
        finally:
            stop.set()


class _Stream:
    """A file whose reading ends when `stop` is set: Ctrl-C must not wait for the last of forty gigabytes."""

    def __init__(self, descriptor: int, stop: Event) -> None:
        self._descriptor = descriptor
        self._stop = stop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray, /) -> int:
        if self._stop.is_set():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        return os.readv(self._descriptor, [buffer])


def _compare(stop: Event, pair: tuple[File, str]) -> Finding | None:
    file, expected = pair
    try:
        with opened(file) as (descriptor, _):
            from hashlib import file_digest

            digest = file_digest(_Stream(descriptor, stop), "sha256").hexdigest()
    except Fault as fault:
        return fault.finding
    if digest == expected:
        return None
    return error("checksum-mismatch", file.name, f"has sha256 {digest}, {LIST} says {expected}")
