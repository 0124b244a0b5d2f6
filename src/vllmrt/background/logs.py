"""Reads the log of a server while it is written."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from vllmrt.background.state import READING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

_BLOCK = 1 << 16
_TAIL, _LINES = 1 << 14, 20
_PAUSE = 0.25


def last_lines(path: Path) -> list[str]:
    """Return the last lines of a log; none where it cannot be read."""
    try:
        with _open(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL).decode(errors="replace").splitlines()[-_LINES:]
    except OSError:
        return []


def follow(path: Path, goes_on: Callable[[], bool]) -> Iterator[bytes]:
    """Yield a log piece by piece, until `goes_on` says no and all has been read.

    A log that is truncated is read from its beginning, and so is one that takes its place.

    Args:
        path: the log.
        goes_on: whether anybody may still write; asked before each look.

    Raises:
        OSError: it cannot be read.
    """
    file = _open(path)
    try:
        while True:
            more = goes_on()
            while piece := file.read(_BLOCK):
                yield piece
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)
            elif _is_another(path, file.fileno()):
                file.close()
                file = _open(path)
            elif not more:
                return
            else:
                time.sleep(_PAUSE)
    finally:
        file.close()


def _open(path: Path) -> BinaryIO:
    """Open a log, but nothing that somebody has put in its place to have it shown."""
    return os.fdopen(os.open(path, READING), "rb")


def _is_another(path: Path, descriptor: int) -> bool:
    try:
        return not os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
