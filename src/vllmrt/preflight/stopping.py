"""Ends trees of processes, and nothing else.

Every signal goes through a descriptor of the very process (pidfd_open(2)). A number may be given to another process at
any time, so a process is opened first, and its start time is compared after that.
"""

from __future__ import annotations

import os
import select
import time
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals, pidfd_send_signal
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vllmrt.preflight.trees import descendants

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Sequence

    from vllmrt.procfs import Stat
    from vllmrt.types import ProcessInfo

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.04
_BETWEEN_LOOKS = 0.25
_AFTER_KILL = 5.0
"""Seconds that the kernel has to take the memory of what was killed."""
_AFTER_DEATH = 0.25
_LOOKS, _FREEZES = 2, 20


class Stopped(NamedTuple):
    """What was ended.

    Attributes:
        roots: the processes that the trees began at.
        signalled: every process that was signalled.
        killed: those that SIGTERM was not enough for.
        alive: those that outlived SIGKILL, or may not be signalled.
    """

    roots: tuple[int, ...] = ()
    signalled: tuple[int, ...] = ()
    killed: tuple[int, ...] = ()
    alive: tuple[int, ...] = ()


class Table(Protocol):
    """What is asked of the process table."""

    def stat(self, pid: int) -> Stat | None:
        """Return one process."""

    def table(self, skip: Container[int] = ()) -> dict[int, Stat]:
        """Return all of them, without those in `skip`."""


class Pidfds:
    """The kernel's side of it."""

    def open(self, pid: int) -> int:
        """Return a descriptor of the process that has this number now."""
        return os.pidfd_open(pid)

    def send(self, descriptor: int, number: Signals) -> None:
        """Signal the process of a descriptor."""
        pidfd_send_signal(descriptor, number)

    def ended(self, descriptors: Collection[int], seconds: float) -> set[int]:
        """Wait until one of the processes has ended, and return the descriptors of all that have."""
        poller = select.poll()
        for descriptor in descriptors:
            poller.register(descriptor, select.POLLIN)
        return {descriptor for descriptor, _ in poller.poll(seconds * 1000)}

    def close(self, descriptor: int) -> None:
        """Let go of a process."""
        os.close(descriptor)


class Stopper:
    """Ends some trees of processes.

    Args:
        proc: the process table.
        kernel: sends the signals.
        clock: seconds that only go forward.
    """

    def __init__(self, proc: Table, kernel: Pidfds | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc
        self._kernel = kernel or Pidfds()
        self._clock = clock
        self._open: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self._refused: set[int] = set()
        self._strangers: set[int] = set()
        self._scanned = 0.0
        self.result = Stopped()

    def stop(self, roots: Sequence[ProcessInfo], seconds: float, done: Callable[[], bool] = lambda: True) -> None:
        """SIGTERM to all of the trees, children first; SIGKILL to what is left after `seconds`.

        Returns when all have ended and `done` is true, or when waiting any longer is of no use; see `result`.

        Args:
            roots: the topmost processes; what has their number, but another start time, is left alone.
            seconds: between SIGTERM and SIGKILL.
            done: what the trees are stopped for.
        """
        self._strangers.clear()  # of an earlier call: these roots may have been among them
        for root in roots:
            self._adopt(root.pid, root.start_ticks)
        self.result = self.result._replace(roots=(*self.result.roots, *self._open))
        try:
            for _ in range(_LOOKS):
                self._send(self._grow(), SIGTERM)
            self._wait(seconds, done, SIGTERM)
            if self._open:
                try:
                    self._freeze()
                finally:  # whatever interrupts us, nothing stays frozen
                    self._send(list(self._open), SIGKILL)
                self._wait(_AFTER_KILL, done, SIGKILL)
            self.result = self.result._replace(alive=tuple(self._open))
        finally:
            for descriptor in self._open.values():
                self._kernel.close(descriptor)
            self._open.clear()

    def _wait(self, seconds: float, done: Callable[[], bool], number: Signals) -> None:
        """Wait for the end of all, and signal the children that are born meanwhile."""
        deadline, pause = self._clock() + seconds, _FIRST_PAUSE
        while self._open and (left := deadline - self._clock()) > 0:
            self._reap(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
            if self._clock() - self._scanned > _BETWEEN_LOOKS:
                self._send(self._grow(), number)
        # a process closes its sockets before it ends: whoever listens now is another one
        deadline = self._clock() + _AFTER_DEATH
        while not self._open and not done() and self._clock() < deadline:
            time.sleep(_FIRST_PAUSE)

    def _freeze(self) -> None:
        """SIGSTOP to all that is left, so that no child escapes by being born just before its parent is killed."""
        born = list(self._open)
        self._strangers.clear()  # their numbers may have been given to children of ours
        for _ in range(_FREEZES):
            self._send(born, SIGSTOP)
            born = self._grow()
            if not born:
                return

    def _send(self, pids: Sequence[int], number: Signals) -> None:
        sent = [pid for pid in pids if self._signal(pid, number)]
        if number is SIGTERM:  # what was suspended, by Ctrl-Z perhaps, cannot end before it goes on
            for pid in sent:
                self._signal(pid, SIGCONT)
        new = [pid for pid in sent if pid not in self.result.signalled]
        self.result = self.result._replace(signalled=(*self.result.signalled, *new))
        if number is SIGKILL:
            self.result = self.result._replace(killed=(*self.result.killed, *sent))

    def _signal(self, pid: int, number: Signals) -> bool:
        try:
            self._kernel.send(self._open[pid], number)
        except ProcessLookupError:
            return False
        except PermissionError:  # of another user: it is reported among those that are left
            self._refused.add(pid)
            return False
        return True

    def _grow(self) -> list[int]:
        """Take in the descendants that are not in yet; return what was not signalled yet, children first."""
        table = self._proc.table(self._strangers)
        self._scanned = self._clock()
        known = [pid for pid in self._open if pid in table and table[pid].start_ticks == self._starts[pid]]
        found = [pid for pid in descendants(table, known) if table[pid].alive]
        for pid in reversed(found):
            if pid not in self._open:
                self._adopt(pid, table[pid].start_ticks)
        # what descends from another than us never gets in: among thousands, a further look is not to read them again
        first = (pid for pid, stat in table.items() if stat.ppid == 0 or stat.ppid in self._strangers)
        self._strangers.update(set(descendants(table, first)).difference(found))
        signalled = self._refused.union(self.result.signalled)
        return [pid for pid in found if pid in self._open and pid not in signalled]

    def _adopt(self, pid: int, start_ticks: int) -> bool:
        """Open a process, and keep it if it is still the one that is meant."""
        try:
            descriptor = self._kernel.open(pid)
        except ProcessLookupError:
            return False
        stat = self._proc.stat(pid)
        if stat is None or stat.start_ticks != start_ticks or not stat.alive:
            self._kernel.close(descriptor)
            return False
        self._open[pid], self._starts[pid] = descriptor, start_ticks
        return True

    def _reap(self, seconds: float) -> None:
        """Let go of what has ended; wait for it a little."""
        ended = self._kernel.ended(self._open.values(), seconds)
        for pid in [pid for pid, descriptor in self._open.items() if descriptor in ended]:
            self._kernel.close(self._open.pop(pid))
