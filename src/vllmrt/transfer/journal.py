"""Which ranges are already here, so that a run after a kill fetches only what was in flight.

One line of JSON for each finished range, appended after its bytes were written. Bytes in the page cache survive the
death of a process but not that of the machine, so a line notes the boot it was written in, and whether its bytes had
been synced: of another boot, or another machine, only those count. A line that was cut by the kill is passed over.
"""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from vllmrt.transfer.ranges import Interval, merge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllmrt.types import RemoteFile

NAME = "journal.jsonl"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_Key = tuple[str, str]


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """An interval of one version of a file that is here; an empty one says that nothing of the file is."""

    path: str
    version: str
    start: int = 0
    stop: int = 0
    boot: str = ""
    synced: bool = False


class Journal:
    """The journal of one staging directory; a context manager. All methods may be called from any thread.

    Args:
        staging: the directory; it exists.
    """

    def __init__(self, staging: Path) -> None:
        self._boot = _boot()
        self._mutex = threading.Lock()
        self._done: dict[_Key, list[Interval]] = {}
        for line in _lines(staging / NAME):
            self._replay(line)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor: int | None = os.open(staging / NAME, flags, 0o600)

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; what a thread that was given up still says is not noted."""
        with self._mutex:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def done(self, file: RemoteFile) -> list[Interval]:
        """Return the intervals of this version of a file that are here."""
        with self._mutex:
            return list(self._done.get((file.path, file.version), ()))

    def record(self, file: RemoteFile, start: int, stop: int) -> None:
        """Note that the bytes from `start` to `stop` have been written."""
        self._append(_Line(file.path, file.version, start, stop, self._boot))

    def forget(self, file: RemoteFile) -> None:
        """Note that nothing of a file can be trusted."""
        self._append(_Line(file.path, file.version))

    def synced(self, file: RemoteFile, intervals: Iterable[Interval]) -> None:
        """Note that these intervals, which `done` gave before the file was synced, are on the disk."""
        for start, stop in intervals:
            self._append(_Line(file.path, file.version, start, stop, self._boot, synced=True))

    def _append(self, line: _Line) -> None:
        with self._mutex:
            if self._descriptor is None:  # its number may be another file's by now
                return
            # One write with O_APPEND: lines of two processes do not mix. The newline in front ends a line that was cut.
            os.write(self._descriptor, b"\n" + msgspec.json.encode(line) + b"\n")
            self._replay(line)

    def _replay(self, line: _Line) -> None:
        key = (line.path, line.version)
        if line.start == line.stop:
            self._done.pop(key, None)
        elif line.synced or line.boot == self._boot:
            self._done[key] = merge([*self._done.get(key, ()), (line.start, line.stop)])


def _lines(path: Path) -> list[_Line]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    decode = msgspec.json.Decoder(_Line).decode
    lines = []
    for text in content.splitlines():
        try:
            lines.append(decode(text))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
    return lines


def _boot() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return secrets.token_hex()  # what is not synced counts in this run alone
