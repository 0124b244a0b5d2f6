"""How busy this process keeps the processors: on a small machine more connections only get into each other's way.

Measured on two processors: eight connections to a fast server over TLS bring 650 MB/s, two bring 1,000.
"""

from __future__ import annotations

import os
import time

FEW = 0.25
"""Below this share of the processors a transfer waits for the network, and more connections make it faster."""


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
