"""``vllmrt up --detach``: the last step, where vllmrt stays what it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from vllmrt.background.control import start
from vllmrt.cli.output import show_command, show_warnings, watch
from vllmrt.cli.reporting import interrupted
from vllmrt.events import Event
from vllmrt.host import PluginHost
from vllmrt.masking import Masker
from vllmrt.serve.launch import check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllmrt.background.control import Started
    from vllmrt.cli.options import Run
    from vllmrt.pipeline import Ready


def launch_detached(run: Run, ready: Ready, facts: Mapping[str, Any], *, print_cmd: bool, wait: bool) -> None:
    """Start the server in the background, and say so; with `wait` only when it is ready."""
    settings = run.layers.settings
    masker = Masker(os.environ, settings)
    show_warnings(run, ready.plan)
    check(ready.plan)
    with ready.clearing as told:
        show_command(run, ready.plan, print_cmd=print_cmd)
        started = start(ready.plan, facts["model"], settings, PluginHost(settings), masker)
    server = started.server
    if started.replaced.roots:
        text = f"the one before, process {started.replaced.roots[0]}, was stopped"
        run.emit(Event("background.replaced", "server", text, "good", started.replaced._asdict()))
    text = f"process {server.pid} runs in the background; its output goes to {server.log}"
    run.emit(Event("background.started", "server", text, "good", msgspec.to_builtins(server)))
    watch(run, server.pid, server.model)
    if wait:
        _wait(run, started, masker)
    if run.json:
        more: dict[str, Any] = {"preflight": told} if told else {}
        run.print_json({"ok": True, **facts, **more, "dry_run": False, **msgspec.to_builtins(server), "ready": wait})


def _wait(run: Run, started: Started, masker: Masker) -> None:
    from vllmrt.background.readiness import wait

    try:
        ready = wait(started, run.layers.settings, masker)
    except KeyboardInterrupt as interrupt:
        run.emit(Event("background.left", "server", "it goes on in the background; vllmrt down stops it", "warning"))
        raise interrupted(interrupt) from None
    run.emit(Event("background.ready", "server", ready, "good", {"url": started.server.url}))
