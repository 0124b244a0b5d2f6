"""Runs a function in a child process that may hang or crash: a driver does both.

The child is a fork without exec: it has the settings, the host and pluggy already, and so is there after 5 ms, where a
new interpreter that imports them takes 150, more than all the rest of a warm start. What makes a fork dangerous is
locks that another thread held; the worst that they can do here is to use up the child's time. Nothing that the parent
has open stays open in it, so that a child that cannot be killed holds no lock and no port.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import warnings
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, NoReturn

from vllmrt.types import Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGEST = 1 << 20
"""Bytes of an answer; eight GPUs take about 4 kB."""
_END = b"\n"
_SLICE = 60.0
_GRACE = 0.5
"""Seconds that a killed child has to end; one in uninterruptible sleep does not."""
_MOST_FILES = 1 << 20
"""What the kernel allows one process (proc(5), fs/nr_open, as it is by default)."""
_STOPS = (signal.SIGINT, signal.SIGTERM)


def run(call: Callable[[], bytes], seconds: float) -> bytes | Skip:
    """Run `call` in a child process and return the line that it returns.

    Args:
        call: returns the answer, without a line end. What it prints is lost.
        seconds: how long it may take; then the child, and all that it started, are killed.

    Returns:
        The answer, or why there is none.
    """
    reader, writer = os.pipe()
    try:
        with _forked(call, writer, seconds) as pid:
            answer = _read(reader, monotonic() + seconds)
        whole = answer is not None and answer.endswith(_END)
        status = _status(pid, _GRACE / 20 if whole else _GRACE)
        if answer is None:
            hint = "'dmesg | grep NVRM' may say why; VLLMRT_GPU_PROBE_TIMEOUT gives it longer"
            return Skip(f"no answer in {seconds:g} s, as when a driver hangs", hint=hint)
        if len(answer) > LARGEST:
            return Skip(f"an answer of more than {LARGEST >> 20} MiB")
        return answer if whole else Skip(_how_it_ended(status), hint="'dmesg | tail' may say why")
    except OSError as error:
        return Skip(f"no child process can be made: {error.strerror}")
    finally:
        os.close(reader)


@contextmanager
def _forked(call: Callable[[], bytes], writer: int, seconds: float) -> Iterator[int]:
    """Run `call` in a child, which writes to `writer`; at the end it is killed."""
    pid = 0
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # else Ctrl-C might run the parent's code in the child
    try:
        try:
            with warnings.catch_warnings():  # Python 3.12 warns of threads, see above
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                _child(call, writer, seconds)
        finally:
            os.close(writer)
        with suppress(OSError):
            os.setpgid(pid, pid)  # the child does so too: whoever comes first
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if pid:
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


def _child(call: Callable[[], bytes], writer: int, seconds: float) -> NoReturn:
    try:
        os.setpgid(0, 0)
        for number in (*_STOPS, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE)  # should the parent be killed
        _isolate(writer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        answer = memoryview(call() + _END)
        while answer:
            answer = answer[os.write(writer, answer) :]
        os._exit(0)
    finally:
        os._exit(1)


def _isolate(writer: int) -> None:
    """Let go of everything that is open, and leave no core file: the process has secrets in its memory."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as the process lives
    os.closerange(3, writer)
    os.closerange(writer + 1, _MOST_FILES)
    with suppress(OSError, ValueError):  # 1 also keeps a core from a handler in a pipe: core(5)
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _read(reader: int, deadline: float) -> bytes | None:
    """Read to the end of the line, or of the file, or a little more than `LARGEST`; None when time is up."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    answer = b""
    while (left := deadline - monotonic()) > 0:
        if not poll.poll(min(left, _SLICE) * 1000):
            continue
        chunk = os.read(reader, 1 << 16)
        answer += chunk
        if not chunk or chunk.endswith(_END) or len(answer) > LARGEST:
            return answer
    return None


def _how_it_ended(status: int | None) -> str:
    if status is None or not os.WIFSIGNALED(status):
        return "it ended without an answer"
    return f"it was killed by {signal.Signals(os.WTERMSIG(status)).name}"


def _status(pid: int, seconds: float) -> int | None:
    """Return how a child ended, None if it has not in this time; then init, or the engine's parent, reaps it."""
    deadline, pause = monotonic() + seconds, 0.001
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if monotonic() >= deadline:
            return None
        sleep(pause)
        pause = min(pause * 2, 0.05)
