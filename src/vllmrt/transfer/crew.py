"""The workers of a transfer: how many there are, and which of them stall.

On a small machine more connections only get into each other's way: with two processors, eight connections to a fast
server over TLS bring 650 MB/s, two bring 1,000. So there is one for each processor at first, and the others join where
the processors wait for the network.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from vllmrt.transfer.worker import Worker

if TYPE_CHECKING:
    from vllmrt.transfer.worker import Dispatcher

FEWEST = 2
WAITING = 0.25
"""Below this share of the processors a transfer waits for the network, and more connections make it faster."""
_GOODBYE = 0.5


class Load:
    """The share of the processors that this process uses."""

    def __init__(self) -> None:
        self.processors = len(os.sched_getaffinity(0))
        self._then, self._used = time.monotonic(), time.process_time()

    def share(self) -> float:
        """Return what was used since the last call, between 0 and 1."""
        now, used = time.monotonic(), time.process_time()
        spent, passed = used - self._used, now - self._then
        self._then, self._used = now, used
        return spent / (passed * self.processors) if passed else 0.0


class Crew:
    """The workers of one transfer; not for use by several threads.

    Args:
        dispatcher: gives them their work.
        most: how many there may be.
        stall: seconds without a byte, or without an answer, after which one is given up.
    """

    def __init__(self, dispatcher: Dispatcher, *, most: int, stall: float) -> None:
        self.workers: list[Worker] = []
        self._dispatcher = dispatcher
        self._most = most
        self._stall = stall
        self._load = Load()

    @property
    def received(self) -> int:
        """Bytes of the ranges that they are fetching."""
        return sum(worker.received for worker in self.workers)

    def begin(self, ranges: int) -> None:
        """Start the first of them, but no more than there are ranges."""
        self._employ(min(max(FEWEST, self._load.processors), ranges))

    def grow(self, ranges: int) -> None:
        """Start the others, where the processors have time for them and as many ranges wait."""
        if self._load.share() < WAITING:
            self._employ(len(self.workers) + ranges)

    def replace_stalled(self) -> list[Worker]:
        """Give up those that stall, start others in their place, and return them."""
        now = time.monotonic()
        stalled = [one for one in self.workers if one.task is not None and now - one.seen > self._stall]
        for worker in stalled:
            worker.abandon()
            self.workers.remove(worker)
            self._start()
        return stalled

    def dismiss(self) -> None:
        """Give all up, and wait a moment for them."""
        deadline = time.monotonic() + _GOODBYE
        for worker in self.workers:
            worker.abandon()
        for thread in (thread for worker in self.workers for thread in (worker, worker.closing)):
            if thread is not None and thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _employ(self, count: int) -> None:
        while len(self.workers) < min(count, self._most):
            self._start()

    def _start(self) -> None:
        self.workers.append(worker := Worker(self._dispatcher))
        worker.start()
