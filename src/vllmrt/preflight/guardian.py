"""Stands between vllmrt and the command that it starts, so that nothing of the command is left behind.

It is the parent of the command, and inherits whatever that leaves (PR_SET_CHILD_SUBREAPER). It passes signals on, and
ends with the command's status; then, or when vllmrt itself is killed (PR_SET_PDEATHSIG), it stops the rest of the tree.
Run as ``python -P -m vllmrt.preflight.guardian PARENT SECONDS COMMAND…``, with its signals blocked.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from vllmrt.preflight.stopping import Stopper
from vllmrt.procfs import ProcFs

if TYPE_CHECKING:
    from collections.abc import Sequence

STOP = signal.Signals(signal.SIGRTMIN)
"""What makes it stop the tree: vllmrt sends it, and the kernel does when vllmrt dies."""
PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""What a shell answers for a command that it cannot start."""
_ROUNDS = 10
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main(arguments: Sequence[str]) -> int:
    """Start a command, and return its exit status; 128+n where signal n ended it."""
    parent, seconds, *command = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(_PR_SET_PDEATHSIG, STOP)
    if os.getppid() != int(parent):
        return 128 + signal.SIGKILL

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    try:
        # inherited descriptors are the command's own business: sockets of systemd
        child = subprocess.Popen(command, preexec_fn=prepare, close_fds=False)  # noqa: PLW1509 - there are no threads
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    status = _watch(child.pid)
    _stop_the_rest(float(seconds))
    return status


def _watch(child: int) -> int:
    """Pass signals on until the command ends, or until it is to be stopped."""
    while True:
        told = signal.sigwaitinfo({*PASSED_ON, STOP, signal.SIGCHLD})
        if told.si_signo == STOP:
            return 128 + signal.SIGTERM
        if told.si_signo == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return status if status >= 0 else 128 - status
        elif told.si_code <= 0:  # a terminal has told the command itself
            with suppress(ProcessLookupError):
                os.kill(child, told.si_signo)


def _reap(child: int) -> int | None:
    """Bury whoever has ended, and return the command's status if it is among them."""
    status = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                status = os.waitstatus_to_exitcode(ended[1])
    return status


def _stop_the_rest(seconds: float) -> None:
    """Stop our children until there are none: whoever loses its parent meanwhile becomes one."""
    proc = ProcFs()
    for _ in range(_ROUNDS):
        children = [stat.pid for stat in proc.table().values() if stat.ppid == os.getpid()]
        roots = [info for info in map(proc.info, children) if info]
        if not roots:
            return
        Stopper(proc).stop(roots, seconds)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
