"""``vllmrt preflight``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from vllmrt import gpu
from vllmrt.cli import Status
from vllmrt.cli.options import Run, command
from vllmrt.errors import ConfigError, PreflightError
from vllmrt.events import Event, human_size
from vllmrt.gpu.report import refuse, tell
from vllmrt.host import PluginHost
from vllmrt.preflight.decision import PortAction
from vllmrt.preflight.lock import locked
from vllmrt.preflight.port import check, inspect, reclaim
from vllmrt.preflight.refusals import command as shown
from vllmrt.preflight.refusals import facts

if TYPE_CHECKING:
    from vllmrt.preflight.decision import PortState
    from vllmrt.preflight.orphans import Orphan
    from vllmrt.preflight.proxy import Proxy

app = typer.Typer(add_completion=False)
_NO_GPUS: dict[str, Any] = {"gpus": [], "gpu_check_source": "skipped"}


@app.command(epilog="What follows -- is started when the checks have passed, and stopped with vllmrt.")
@command("host", "port", "plugins", "preflight", takes_extra=True, json_setting="preflight_json")
def preflight(run: Run) -> None:
    """Make sure that the port is free and the GPUs are fit; stop a stale vLLM that is in the way.

    Only vLLM is ever stopped. Exit codes: 2 the port is held by something else, 3 by another user, 4 by what cannot be
    seen, 5 it could not be freed, 1 anything else.
    """
    settings = run.layers.settings
    if run.extra and run.json:
        raise ConfigError("VLLM_PREFLIGHT_JSON and --json go without a command", hint="leave out one of them")
    if run.extra:
        from vllmrt.preflight.proxy import find_command

        find_command(run.extra)
    proxy = None
    with locked(settings):
        answer = _check(run)
        if run.extra and not settings.dry_run:
            proxy = _start(run)
    if run.json:
        run.print_json({"ok": True, **answer})
    if proxy is not None:
        raise Status(proxy.wait())


def _check(run: Run) -> dict[str, Any]:
    """Do everything but the command; return the contract's JSON object."""
    host = PluginHost(run.layers.settings)
    answer = _free_port(run, host)
    answer |= _orphans(run, host)
    try:
        answer |= _gpus(run, host)
    except PreflightError as error:
        error.facts = answer | error.facts
        raise
    return answer | {"dry_run": run.layers.settings.dry_run}


def _gpus(run: Run, host: PluginHost) -> dict[str, Any]:
    """Look at the GPUs, after the port was freed: what held it held them too."""
    found = gpu.check(run.layers.settings, host)
    tell(found, run.emit)
    # in a dry run, what is to be stopped still holds its memory
    later = {"gpu-memory"} if run.layers.settings.dry_run else ()
    refuse(found, later=later)
    return found.as_json()


def _free_port(run: Run, host: PluginHost) -> dict[str, Any]:
    settings = run.layers.settings
    state = inspect(settings, host)
    try:
        action = check(state, settings)
        if action is PortAction.NOOP:
            run.emit(Event("preflight.port", "port", f"{state.address} is free", "good", facts(state, "noop")))
            return facts(state, "noop")
        if settings.dry_run:
            return _told(run, state, "would_stop", [])
        stopped = reclaim(state, settings, host)
    except PreflightError as error:
        error.facts |= _NO_GPUS
        raise
    return _told(run, state, "stopped", list(stopped.roots))


def _told(run: Run, state: PortState, action: str, reclaimed: list[int]) -> dict[str, Any]:
    told = facts(state, action) | {"reclaimed_roots": reclaimed}
    what = " and ".join(f"process {root.pid} ({shown(root, 80)})" for root in state.roots)
    text = f"would be reclaimed from {what}" if action == "would_stop" else f"reclaimed from {what}"
    run.emit(Event("preflight.port", "port", f"{state.address} {text}", "good", told))
    return told | {"pids": [root.pid for root in state.roots], "cmdlines": [shown(root) for root in state.roots]}


def _orphans(run: Run, host: PluginHost) -> dict[str, Any]:
    from vllmrt.preflight.orphans import find_orphans, reap

    settings = run.layers.settings
    found = find_orphans(settings)
    reaped: tuple[int, ...] = ()
    if settings.reap_orphans and not settings.dry_run:
        stopped = reap(found, settings, host)
        reaped = tuple(pid for pid in stopped.roots if pid not in stopped.alive)
    for orphan in found:
        _show(run, orphan, reaped=orphan.process.pid in reaped)
    return {"orphans": [_facts(orphan) for orphan in found], "reaped_orphans": list(reaped)}


def _show(run: Run, orphan: Orphan, *, reaped: bool) -> None:
    one = f"{orphan.process.title} · process {orphan.process.pid} of uid {orphan.process.uid}"
    size = f"{human_size(orphan.resident)} · {_age(orphan.age)}"
    left = "stopped" if reaped else "has no launcher any more; --reap-orphans stops your own"
    text = f"{one} · {size} · {left}"
    run.emit(Event("preflight.orphan", "orphan", text, "good" if reaped else "warning", _facts(orphan)))


def _facts(orphan: Orphan) -> dict[str, Any]:
    process = orphan.process
    own = {"pid": process.pid, "uid": process.uid, "title": shown(process), "processes": orphan.processes}
    return own | {"resident": orphan.resident, "age": round(orphan.age, 1)}


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} old"
    return f"{seconds:.0f} s old"


def _start(run: Run) -> Proxy | None:
    """Start the command; return when it listens, so that the lock can be given up, or not at all."""
    from vllmrt.preflight.proxy import Proxy, become

    settings = run.layers.settings
    run.emit(Event("preflight.command", "command", " ".join(map(ascii, run.extra)), data={"argv": list(run.extra)}))
    if not settings.preflight_proxy_child:
        become(run.extra)
    proxy = Proxy(run.extra, settings)
    status = proxy.wait_until_bound()
    if status is not None:
        raise Status(status)
    text = f"the command listens on {settings.host}:{settings.port}"
    run.emit(Event("preflight.bound", "port", text, "good"))
    return proxy
