"""Starts a command and stays in front of it: until it listens, and until it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from vllmrt.errors import ConfigError, PortForeign, VllmrtError
from vllmrt.preflight.decision import address
from vllmrt.preflight.guardian import PASSED_ON, STOP
from vllmrt.preflight.listeners import listening, targets
from vllmrt.preflight.trees import descendants
from vllmrt.procfs import ProcFs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmrt.settings import Settings

_FIRST_PAUSE = 0.01
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def find_command(command: Sequence[str]) -> None:
    """Refuse a command that cannot be started, before anything is stopped for it.

    Raises:
        ConfigError: there is no such program.
    """
    if shutil.which(command[0]) is None:
        raise ConfigError(f"no program is called {command[0]!a}", hint="name one that is on PATH, or its path")


def become(command: Sequence[str]) -> NoReturn:
    """Become the command, with the same process id; our lock ends with us."""
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores these, and what is ignored stays so
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.execvp(command[0], list(command))  # noqa: S606 - no shell is what we want


class Proxy:
    """A command that was started, with its guardian between us and it.

    Signals are taken one by one from here on, never by handlers: none is lost, and none comes twice.

    Args:
        command: what to start; it gets our environment, input and output.
        settings: the port that it is to listen on, and how long it has.
    """

    def __init__(self, command: Sequence[str], settings: Settings) -> None:
        self._settings = settings
        self._proc = ProcFs()
        deaf = {number for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN}  # nohup
        self._signals = {*PASSED_ON, signal.SIGCHLD} - deaf
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {*self._signals, STOP})
        guardian = [sys.executable, "-P", "-m", "vllmrt.preflight.guardian"]
        given = [str(os.getpid()), str(settings.stop_timeout)]
        self._guardian = subprocess.Popen([*guardian, *given, *command], close_fds=False)

    def wait_until_bound(self) -> int | None:
        """Wait until the command's own tree listens.

        Returns:
            None when it does; the exit status where the command ended, or we were told to end.

        Raises:
            PortForeign: another process has taken the port. VllmrtError: nobody listens after
                `Settings.start_bind_timeout`. The command is stopped.
        """
        settings = self._settings
        wanted = targets(settings.host, settings.port)
        deadline, pause = time.monotonic() + settings.start_bind_timeout, _FIRST_PAUSE
        while (left := deadline - time.monotonic()) > 0:
            told = signal.sigtimedwait(self._signals, min(pause, left))
            pause = min(2 * pause, settings.start_bind_poll)
            if (status := self._ended()) is not None:
                return status
            if told and told.si_signo in _ENDING:
                self._stop()
                return 128 + told.si_signo
            if told:
                self._pass_on(told)
            inodes = {listener.inode for listener in listening(wanted, settings.port)}
            if inodes and self._owns(inodes):
                return None
        self._stop()
        raise VllmrtError(
            f"the command does not listen on {address(settings.host, settings.port)} after"
            f" {settings.start_bind_timeout:g} s",
            hint="raise VLLM_START_BIND_TIMEOUT: a large model takes minutes; or see that it listens on that port",
        )

    def wait(self) -> int:
        """Pass signals on until the command ends, and return its status."""
        while (status := self._ended()) is None:
            self._pass_on(signal.sigwaitinfo(self._signals))
        return status

    def _pass_on(self, told: signal.struct_siginfo) -> None:
        # a terminal has told the command itself, but of its own end it tells the leader of its session alone
        is_hangup = told.si_signo == signal.SIGHUP and os.getsid(0) == os.getpid()
        if told.si_signo != signal.SIGCHLD and (told.si_code <= 0 or is_hangup):
            self._guardian.send_signal(told.si_signo)

    def _ended(self) -> int | None:
        status = self._guardian.poll()
        return status if status is None or status >= 0 else 128 - status

    def _owns(self, inodes: set[int]) -> bool:
        others = strangers(inodes, self._guardian.pid, self._proc)
        if others:
            self._stop()
            pids = ", ".join(map(str, sorted(others)))
            raise PortForeign(
                f"port {self._settings.port} was bound meanwhile by process {pids}",
                hint="see who starts it",
                facts={"pids": sorted(others)},
            )
        return others is None

    def _stop(self) -> None:
        self._guardian.send_signal(STOP)
        self._guardian.wait()


def strangers(inodes: set[int], root: int, proc: ProcFs) -> set[int] | None:
    """Return who has sockets open outside the tree below `root`; None where somebody inside has one."""
    if proc.sockets(inodes, descendants(proc.table(), [root])).owners:
        return None
    owners = set().union(*proc.sockets(inodes).owners.values())
    # one of the tree may have been born since the first look, and another have ended
    table = proc.table() if owners else {}
    return owners.intersection(table).difference(descendants(table, [root]))
