"""Several workers fetch ranges of many files at once; what fails is tried again, what stalls is given up."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.errors import ChangedError, IntegrityError, SourceError, TransientSourceError, VllmrtError
from vllmrt.transfer.answers import LONGEST_PAUSE
from vllmrt.transfer.crew import Crew
from vllmrt.transfer.ranges import Range, plan
from vllmrt.transfer.worker import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vllmrt.transfer.target import Target
    from vllmrt.transfer.worker import Worker
    from vllmrt.types import ReadableRange, RemoteFile

ATTEMPTS = 5
"""Failures in a row without a byte, after which a range is given up (DESIGN.md §8)."""
STALL = 20.0
"""Seconds without a byte, or without an answer, after which a connection is given up."""
_FIRST_PAUSE = 0.2
_TICK = 0.1
_SYNC_EVERY = 30.0


class Progress(NamedTuple):
    """How far a transfer is.

    Attributes:
        received: bytes that came over the wire in this run.
        verified: files that are complete and proven.
        retries: connections that were given up or refused.
        trouble: why the last of them was.
    """

    received: int
    verified: int
    retries: int
    trouble: str = ""


class Engine:
    """One transfer.

    Args:
        opener: opens the bytes ``start`` to ``stop`` of a file; called from several threads.
        targets: the files, in the order in which they are finished best.
        connections: how many workers at most.
        stall: seconds, see `STALL`.
    """

    def __init__(
        self,
        opener: Callable[[RemoteFile, int, int], ReadableRange],
        targets: Iterable[Target],
        *,
        connections: int,
        stall: float = STALL,
    ) -> None:
        self.open = opener
        self._targets = {target.file.path: target for target in targets}
        self._connections = connections
        self._stall = stall
        self._crew = Crew(self, most=connections, stall=stall)
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._in_flight = 0
        self._verified: set[str] = set()
        self._mismatched: set[str] = set()
        self._retries = 0
        self._trouble = ""
        self._gone = 0
        self._error: BaseException | None = None
        self._syncing: threading.Thread | None = None
        self._stopped = False

    def run(self, ranges: Sequence[Range], report: Callable[[Progress], None]) -> None:
        """Fetch the ranges, and prove every file.

        Args:
            ranges: what is missing, in order.
            report: told ten times a second how far it is.

        Raises:
            SourceError: a range could not be had.
            IntegrityError: bytes differ from the digest, twice.
            NoSpace: the disk is full.
            KeyboardInterrupt: as it came; the journal is intact.
        """
        self._tasks.extend(map(Task, ranges))
        fetched = {part.file.path for part in ranges}
        # What is here already is proven as well, by a range of no bytes.
        rest = (target.file for path, target in self._targets.items() if path not in fetched)
        self._tasks.extend(Task(Range(file, file.size, file.size)) for file in rest)
        try:
            self._crew.begin(len(self._tasks))
            self._watch(report)
        finally:
            self._leave()
        if self._error is not None:
            raise self._error

    def target(self, file: RemoteFile) -> Target:
        """Return the file in staging that a file is written to."""
        return self._targets[file.path]

    def take(self, worker: Worker) -> Task | None:
        """Give a worker its next range; None when there is nothing left to do."""
        with self._changed:
            while not self._stopped:
                task = self._ready()
                if task is not None:
                    worker.task, worker.position, worker.seen = task, task.part.start, time.monotonic()
                    self._in_flight += 1
                    return task
                if not self._tasks and not self._in_flight:
                    return None
                self._changed.wait(_TICK)
        return None

    def finished(self, worker: Worker) -> None:
        """Note that a worker has all of its range."""
        task = self._release(worker)
        if task is not None:
            try:
                self._settle(task.part.file, task.part.start, worker.position)
            except BaseException as error:  # noqa: BLE001 - reported by the thread that waits
                self._fail(error)
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def failed(self, worker: Worker, error: BaseException) -> None:
        """Sort what a worker's range came to: tried again, or the end of the transfer."""
        task = self._release(worker)
        if task is None:
            return
        try:
            self._settle(task.part.file, task.part.start, worker.position)
            self._try_again(task, worker.position, error)
        except BaseException as final:  # noqa: BLE001 - as above
            self._fail(final)
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def _ready(self) -> Task | None:
        now = time.monotonic()
        for _ in range(len(self._tasks)):
            task = self._tasks.popleft()
            if task.not_before <= now:
                return task
            self._tasks.append(task)
        return None

    def _release(self, worker: Worker) -> Task | None:
        """Take a worker's task from it; None when the watch has taken it before."""
        with self._changed:
            task, worker.task = worker.task, None
            self._gone += worker.received
            worker.received = 0
        return task

    def _settle(self, file: RemoteFile, start: int, stop: int) -> None:
        """Note the bytes that came, and prove the file if they were the last."""
        target = self._targets[file.path]
        target.arrived(start, stop)
        self._prove(target)

    def _try_again(self, task: Task, position: int, error: BaseException) -> None:
        part = task.part
        if _is_final(error):
            raise error
        failures = 1 if position > part.start else task.failures + 1
        if failures >= ATTEMPTS:
            raise SourceError(f"{part.file.path}: gave up after {failures} failures without a byte: {error}") from error
        pause = getattr(error, "retry_after", None) or _FIRST_PAUSE * 2 ** (failures - 1)
        with self._changed:
            self._retries += 1
            self._trouble = str(error)
            rest = Range(part.file, position, part.stop)
            self._tasks.appendleft(Task(rest, failures, time.monotonic() + min(pause, LONGEST_PAUSE)))
            self._changed.notify_all()

    def _prove(self, target: Target) -> None:
        path = target.file.path
        with self._changed:
            if not target.complete or path in self._verified:
                return
            self._verified.add(path)
        if target.matches():
            target.close()
            return
        with self._changed:
            self._verified.discard(path)
            if path in self._mismatched:
                raise IntegrityError(
                    f"{path} differs from the digest that its source publishes, also when it is fetched again",
                    hint="something between here and the source changes bytes; try another source",
                )
            # What is left of an earlier run may have rotted on the disk: once more, from the beginning.
            self._mismatched.add(path)
            target.restart()
            again = plan([target.file], {}, connections=self._connections) or [Range(target.file, 0, 0)]
            self._tasks.extend(map(Task, again))
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._stopped = True
            self._changed.notify_all()

    def _watch(self, report: Callable[[Progress], None]) -> None:
        """Wait for the workers; add some, give up those that stall, report, and sync now and then."""
        synced = time.monotonic()
        while not self._ended():
            self._crew.grow(len(self._tasks))
            for worker in self._crew.replace_stalled():
                self.failed(worker, TransientSourceError(f"no byte in {self._stall:g} s"))
            report(self.progress())
            if time.monotonic() - synced > _SYNC_EVERY and not (self._syncing and self._syncing.is_alive()):
                synced = time.monotonic()
                self._syncing = threading.Thread(target=self._sync, name="vllmrt sync", daemon=True)
                self._syncing.start()
        report(self.progress())

    def _ended(self) -> bool:
        """Wait a moment for the end; tell whether it came."""
        with self._changed:  # without it, a range that is just being taken is neither waiting nor in flight
            return self._changed.wait_for(self._over, _TICK)

    def _over(self) -> bool:
        return self._stopped or not (self._tasks or self._in_flight)

    def progress(self) -> Progress:
        """Return how far the transfer is."""
        return Progress(self._gone + self._crew.received, len(self._verified), self._retries, self._trouble)

    def _sync(self) -> None:
        for target in self._targets.values():
            if self._stopped:
                return
            with suppress(OSError):  # then it is not noted either, and whoever writes hears of it
                target.sync()

    def _leave(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._crew.dismiss()
        for worker in self._crew.workers:
            if (task := self._release(worker)) is not None:
                with suppress(OSError, VllmrtError):  # what ended it matters more
                    self._targets[task.part.file.path].arrived(task.part.start, worker.position)


def _is_final(error: BaseException) -> bool:
    """A source or the store says so, or it is no failure of a connection at all."""
    if isinstance(error, TransientSourceError):
        return isinstance(error, ChangedError)
    return isinstance(error, (VllmrtError, MemoryError)) or not isinstance(error, Exception)
