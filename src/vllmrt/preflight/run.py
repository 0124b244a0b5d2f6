"""The preflight as a whole: looks at the port, at orphans and at the GPUs, and frees them of what is stale."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllmrt import gpu
from vllmrt.errors import PreflightError
from vllmrt.events import Event, human_size
from vllmrt.gpu.report import refuse, tell
from vllmrt.preflight.decision import PortAction
from vllmrt.preflight.lock import locked
from vllmrt.preflight.port import check, inspect, reclaim
from vllmrt.preflight.refusals import command, facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllmrt.events import Emit
    from vllmrt.host import PluginHost
    from vllmrt.preflight.decision import PortState
    from vllmrt.preflight.orphans import Orphan
    from vllmrt.settings import Settings

_NO_GPUS: dict[str, Any] = {"gpus": [], "gpu_check_source": "skipped"}
_OF_STALE_SERVERS = ("gpu-memory", "gpu-utilization")
"""What may be wrong with a GPU only as long as the server runs that is going to be stopped."""
_STATUS = "gpu.status"
_LONGEST = 80


class Preflight:
    """The checks of one run. Their answers are the fields of the contract's JSON object.

    What was said once is not said again, so that a second look only tells what has changed.

    Args:
        settings: what is checked, and what may be stopped.
        host: the process classifiers and GPU probes.
        emit: told of everything that is found or done.
        alone: whether the GPUs of this machine have to be as many as the engine is told to use.
    """

    def __init__(self, settings: Settings, host: PluginHost, emit: Emit, *, alone: bool = False) -> None:
        self._settings = settings
        self._host = host
        self._emit = emit
        self._alone = alone
        self._said: set[str] = set()
        self._left: dict[str, Any] | None = None

    def inspect(self) -> dict[str, Any]:
        """Look, and stop nothing; memory and load of the GPUs are warned of only, since what holds them may be stale.

        Raises:
            PortForeign, PortOtherUser, PortUnattributable: the port is held by what may not be stopped.
            GpuUnhealthy: a GPU is missing or too hot, or there are too few.
        """
        return self._gpus(self._port(stop=False) | self._orphans(stop=False), later=_OF_STALE_SERVERS)

    def reclaim(self) -> dict[str, Any]:
        """Look again, stop what is stale, and check the GPUs in full. Hold the lock meanwhile: `cleared` does.

        Without an `inspect` before, a server is stopped first and the GPUs are looked at afterwards, as the contract of
        ``vllm-preflight`` has it. After one, a GPU that has become hot since then does not cost the server.

        Raises:
            PortForeign, PortOtherUser, PortUnattributable, PortStillBound, GpuUnhealthy: as their names say.
        """
        gpu.require(self._settings, self._host)
        if self._left is not None:
            held = self._port(stop=False)
            if held["port_action"] == "would_stop":
                self._gpus(held | self._left, later=_OF_STALE_SERVERS)
        return self._gpus(self._port(stop=True) | self._orphans(stop=self._settings.reap_orphans))

    @contextmanager
    def cleared(self) -> Iterator[dict[str, Any]]:
        """Do what the settings say, in a dry run nothing, and keep other preflights of the port away for the block.

        Raises:
            VllmrtError: as `inspect`, `reclaim` and `vllmrt.preflight.lock.locked`.
        """
        with locked(self._settings):
            yield self._dry_run() if self._settings.dry_run else self.reclaim()

    def _dry_run(self) -> dict[str, Any]:
        """Look as `inspect` does; where nothing would be stopped, it would give back no memory of the GPUs either."""
        answer = self._port(stop=False) | self._orphans(stop=False)
        to_reap = self._settings.reap_orphans and answer["orphans"]
        gives_back = answer["port_action"] == "would_stop" or to_reap
        return self._gpus(answer, later=_OF_STALE_SERVERS if gives_back else ())

    def outlook(self) -> dict[str, Any]:
        """Say what would be done about the port; what would be refused is in ``error`` and ``hint``, and not raised."""
        try:
            return self._port(stop=False)
        except PreflightError as error:
            self._say(Event("preflight.port", "port", error.message, "warning", error.facts))
            return error.facts | {"error": error.message, "hint": error.hint}

    def _port(self, *, stop: bool) -> dict[str, Any]:
        state = inspect(self._settings, self._host)
        try:
            if check(state, self._settings) is PortAction.NOOP:
                told = facts(state, "noop")
                self._say(Event("preflight.port", "port", f"{state.address} is free", "good", told))
                return told
            roots = reclaim(state, self._settings, self._host).roots if stop else ()
        except PreflightError as error:
            error.facts |= _NO_GPUS | {"dry_run": self._settings.dry_run}
            raise
        return self._held(state, roots, stopped=stop)

    def _held(self, state: PortState, roots: tuple[int, ...], *, stopped: bool) -> dict[str, Any]:
        told = facts(state, "stopped" if stopped else "would_stop") | {"reclaimed_roots": list(roots)}
        what = " and ".join(f"process {root.pid} ({command(root, _LONGEST)})" for root in state.roots)
        text = f"{state.address} {'was' if stopped else 'is to be'} reclaimed from {what}"
        self._say(Event("preflight.port", "port", text, "good", told))
        return told | {"pids": [root.pid for root in state.roots], "cmdlines": [command(root) for root in state.roots]}

    def _orphans(self, *, stop: bool) -> dict[str, Any]:
        from vllmrt.preflight.orphans import find_orphans, reap

        found = find_orphans(self._settings)
        reaped: tuple[int, ...] = ()
        if stop and found:
            stopped = reap(found, self._settings, self._host)
            reaped = tuple(pid for pid in stopped.roots if pid not in stopped.alive)
        for orphan in found:
            if orphan.process.pid in reaped or self._left is None:
                self._show(orphan, reaped=orphan.process.pid in reaped)
        self._left = {"orphans": [_facts(orphan) for orphan in found], "reaped_orphans": list(reaped)}
        return self._left

    def _show(self, orphan: Orphan, *, reaped: bool) -> None:
        one = f"{orphan.process.title} · process {orphan.process.pid} of uid {orphan.process.uid}"
        left = "stopped" if reaped else "has no launcher any more; --reap-orphans stops your own"
        if self._settings.reap_orphans and not reaped and orphan.process.uid == os.geteuid():
            left = "has no launcher any more, and is to be stopped"
        text = f"{one} · {human_size(orphan.resident)} · {_age(orphan.age)} · {left}"
        self._say(Event("preflight.orphan", "orphan", text, "good" if reaped else "warning", _facts(orphan)))

    def _gpus(self, answer: dict[str, Any], later: tuple[str, ...] = ()) -> dict[str, Any]:
        """Look at the GPUs after the port: what was stopped there held them too."""
        if answer["reclaimed_roots"] or answer["reaped_orphans"]:
            self._said.discard(_STATUS)
        answer = answer | {"dry_run": self._settings.dry_run}
        try:
            found = gpu.check(self._settings, self._host, alone=self._alone)
            tell(found, self._say, later=later)
            refuse(found, later=later)
        except PreflightError as error:
            error.facts = answer | error.facts
            raise
        return answer | found.as_json()

    def _say(self, event: Event) -> None:
        key = event.name if event.name == _STATUS else event.text
        if key not in self._said:
            self._said.add(key)
            self._emit(event)


def _facts(orphan: Orphan) -> dict[str, Any]:
    process = orphan.process
    own = {"pid": process.pid, "uid": process.uid, "title": command(process), "processes": orphan.processes}
    return own | {"resident": orphan.resident, "age": round(orphan.age, 1)}


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} old"
    return f"{seconds:.0f} s old"
