"""One connection at a time: a thread that fetches one range after the other."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vllmrt.errors import TransientSourceError

if TYPE_CHECKING:
    from vllmrt.transfer.ranges import Range
    from vllmrt.transfer.target import Target
    from vllmrt.types import ReadableRange, RemoteFile

BLOCK = 512 << 10
"""Bytes of a read: larger blocks cost memory, smaller ones system calls and waits for the interpreter's lock."""


class Task(NamedTuple):
    """A range to fetch.

    Attributes:
        part: which.
        failures: in a row, without a byte.
        not_before: on the monotonic clock, seconds.
    """

    part: Range
    failures: int = 0
    not_before: float = 0.0


class Dispatcher(Protocol):
    """What a worker asks for work, and tells what came of it."""

    def open(self, file: RemoteFile, start: int, stop: int, /) -> ReadableRange:
        """Open a range."""

    def take(self, worker: Worker) -> Task | None:
        """Give the next range, or None at the end."""

    def target(self, file: RemoteFile) -> Target:
        """Return where a file is written."""

    def finished(self, worker: Worker) -> None:
        """Hear that all of the range is here."""

    def failed(self, worker: Worker, error: BaseException) -> None:
        """Hear that it is not."""


class Worker(threading.Thread):
    """One connection at a time. What is given up (`abandoned`) may hang for ever, but writes nothing any more."""

    def __init__(self, engine: Dispatcher) -> None:
        super().__init__(name="vllmrt transfer", daemon=True)
        self.engine = engine
        self.mutex = threading.Lock()
        self.abandoned = False
        self.task: Task | None = None
        self.position = 0
        self.seen = time.monotonic()
        self.handle: ReadableRange | None = None
        self.received = 0
        self.closing: threading.Thread | None = None

    def run(self) -> None:
        """Fetch ranges until there are none."""
        buffer = memoryview(bytearray(BLOCK))
        while not self.abandoned and (task := self.engine.take(self)) is not None:
            try:
                self.fetch(task.part, buffer)
            except BaseException as error:  # noqa: BLE001 - a source may raise anything; the engine sorts it
                self.engine.failed(self, error)
            else:
                self.engine.finished(self)

    def fetch(self, part: Range, buffer: memoryview) -> None:
        """Fetch one range; `position` says how far it came."""
        if part.start == part.stop:
            return
        target = self.engine.target(part.file)
        self.handle = handle = self.engine.open(part.file, part.start, part.stop)
        try:
            while self.position < part.stop and not self.abandoned:
                count = handle.readinto(buffer[: part.stop - self.position])
                if not count:
                    raise TransientSourceError(f"{part.file.path} ended at byte {self.position:,} of {part.stop:,}")
                self.seen = math.inf  # a slow disk is no stall
                with self.mutex:
                    if self.abandoned:
                        return
                    target.write(self.position, buffer[:count])
                    self.position += count
                    self.seen = time.monotonic()
                self.received += count
        finally:
            self.handle = None
            handle.close()

    def abandon(self) -> None:
        """Give the worker up; whatever it still receives is dropped."""
        with self.mutex:
            self.abandoned = True
        if self.handle is not None:
            # in a thread: a source's close() may wait for the very connection that is given up
            self.closing = threading.Thread(target=_close, args=(self.handle,), name="vllmrt close", daemon=True)
            self.closing.start()


def _close(handle: ReadableRange) -> None:
    with suppress(Exception):  # nobody waits for what it says
        handle.close()
