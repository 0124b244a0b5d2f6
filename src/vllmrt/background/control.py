"""Starts a server in the background, looks at it, and stops it."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, NamedTuple

from vllmrt.background import state
from vllmrt.background.state import Server
from vllmrt.errors import PortStillBound
from vllmrt.preflight.orphans import find_orphans, reap
from vllmrt.preflight.stopping import Stopped, Stopper
from vllmrt.procfs import ProcFs
from vllmrt.serve.client import Failed, Refused, ask, parse_url, url_of
from vllmrt.serve.launch import refusal

if TYPE_CHECKING:
    from vllmrt.host import PluginHost
    from vllmrt.masking import Masker
    from vllmrt.preflight.orphans import Orphan
    from vllmrt.serve.launch import LaunchPlan
    from vllmrt.settings import Settings

RUNNING = ("starting", "healthy")
_HEALTH_TIMEOUT = 5.0
_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Started(NamedTuple):
    """A server that was started.

    Attributes:
        process: it, as long as we are its parent.
        server: what is kept of it.
        log: where its output goes.
        replaced: what was stopped for it.
    """

    process: subprocess.Popen[bytes]
    server: Server
    log: Path
    replaced: Stopped


class Look(NamedTuple):
    """What is seen of a port.

    Attributes:
        state: ``none`` (nothing was started there), ``ended``, ``starting`` (it does not listen yet), ``healthy``,
            or ``unhealthy``.
        server: what is kept of it.
    """

    state: str
    server: Server | None = None


def start(plan: LaunchPlan, model: str, settings: Settings, host: PluginHost, masker: Masker) -> Started:
    """Start a server that outlives us; one that was started on the port before, and still runs, is stopped first.

    Args:
        plan: of its launch.
        model: its identity.
        settings: its address, and where it is kept.
        host: the process classifiers.
        masker: takes the secrets out of what is kept.

    Raises:
        ServeRefused: it cannot be executed.
        PortStillBound: the one before cannot be stopped.
        LockTimeout: somebody else starts or stops one there.
    """
    with state.held(settings):
        replaced = _stop(settings, host)
        path = state.log_path(settings)
        log = _open_log(path)
        try:
            process = subprocess.Popen(
                plan.argv, env=plan.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        except OSError as error:
            raise refusal(Path(plan.argv[0]), error) from None
        finally:
            os.close(log)
        try:
            server = _kept(process, plan, model, settings, masker)
        except BaseException:
            # of what is not kept nobody would know
            os.killpg(process.pid, SIGKILL)
            process.wait()
            raise
    return Started(process, server, path, replaced)


def _kept(process: subprocess.Popen[bytes], plan: LaunchPlan, model: str, settings: Settings, masker: Masker) -> Server:
    # a process that has ended already has a start time too, until its parent, which we are, asks how
    begun = ProcFs().stat(process.pid)
    server = Server(
        pid=process.pid,
        start_ticks=begun.start_ticks if begun else 0,
        boot=state.boot_id(),
        model=masker.text(model),
        url=url_of(settings.host, settings.port),
        argv=tuple(masker.argv(plan.argv)),
        log=os.fsencode(state.log_path(settings)).decode(errors="backslashreplace"),
        since=time.time(),
    )
    state.save(settings, server)
    return server


def runs(settings: Settings) -> bool:
    """Tell whether a server runs on the port; it is asked nothing, so that its log has nothing of it.

    Raises:
        ConfigError: what is kept of it cannot be used.
        LockTimeout: somebody else takes too long to start or stop one there.
    """
    if _is_there(settings):
        return True
    with state.held(settings):  # whoever stopped it may be starting the next one
        return _is_there(settings)


def _is_there(settings: Settings) -> bool:
    server = state.load(settings)
    return server is not None and state.is_running(server, ProcFs())


def look(settings: Settings) -> Look:
    """Say how the server on the port is; nothing but its ``/health`` is asked.

    Raises:
        ConfigError: what is kept of it cannot be used.
    """
    server = state.load(settings)
    if server is None:
        return Look("none")
    if not state.is_running(server, ProcFs()):
        return Look("ended", server)
    try:
        reply = ask(parse_url(server.url), "/health", key=None, body=None, seconds=_HEALTH_TIMEOUT)
    except Refused:
        return Look("starting", server)
    except Failed:
        return Look("unhealthy", server)
    return Look("healthy" if reply.status == 200 else "unhealthy", server)  # noqa: PLR2004 - HTTP


def stop(settings: Settings, host: PluginHost) -> tuple[Server | None, Stopped]:
    """Stop the server on the port with all its processes, also with those that have lost it.

    Returns:
        what was kept of it, None where that was nothing; and what was stopped.

    Raises:
        PortStillBound: some of it outlived SIGKILL, or is another user's.
        LockTimeout: somebody else starts or stops one there.
        ConfigError: what is kept of it cannot be used.
    """
    server = state.load(settings)
    if server is None:
        return None, Stopped()
    with state.held(settings):
        return server, _stop(settings, host)


def _stop(settings: Settings, host: PluginHost) -> Stopped:
    server, proc = state.load(settings), ProcFs()
    if server is None:
        return Stopped()
    stopper = Stopper(proc)
    info = proc.info(server.pid) if state.is_running(server, proc) else None
    if info is not None and info.start_ticks == server.start_ticks:
        stopper.stop([info], settings.stop_timeout)
    stopped = stopper.result
    left = _left_behind(server, settings, proc)
    if left:
        also = reap(left, settings, host, proc)
        stopped = Stopped(*(ours + theirs for ours, theirs in zip(stopped, also, strict=True)))
    if stopped.alive:
        raise PortStillBound(
            f"of the server on port {settings.port}, processes {', '.join(map(str, stopped.alive))} cannot be stopped",
            hint="they hang in the kernel, or are another user's: look at them with ps, stop them as that user",
            facts={"port": settings.port, "alive": list(stopped.alive)},
        )
    state.forget(settings)
    return stopped


def _left_behind(server: Server, settings: Settings, proc: ProcFs) -> list[Orphan]:
    """Return its engines that have lost it; a number is not given again while a process group has it."""
    if server.boot != state.boot_id():
        return []
    own = []
    for orphan in find_orphans(settings, proc):
        now = proc.stat(orphan.process.pid)
        if now and now.pgrp == server.pid and orphan.process.start_ticks >= server.start_ticks:
            own.append(orphan)
    return own


def _open_log(path: Path) -> int:
    """Open a new log; appending, so that whoever truncates it while the server writes gets no hole."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileNotFoundError):
        path.replace(path.with_name(f"{path.name}.1"))
    return os.open(path, _LOG_FLAGS, 0o600)
