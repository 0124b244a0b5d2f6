"""``vllmrt down``."""

from __future__ import annotations

import typer

from vllmrt.background.control import stop
from vllmrt.cli.options import Run, command
from vllmrt.events import Event
from vllmrt.host import PluginHost

app = typer.Typer(add_completion=False)


@app.command()
@command("--port", "--cache-dir", "--stop-timeout")
def down(run: Run) -> None:
    """Stop the server that vllmrt up --detach started on the port, with all its processes; again does no harm."""
    settings = run.layers.settings
    server, stopped = stop(settings, PluginHost(settings))
    facts = {"port": settings.port, "was": server.pid if server else None, **stopped._asdict()}
    if server is None:
        text = f"nothing was started in the background on port {settings.port}"
    elif not stopped.signalled:
        text = f"process {server.pid} had ended already; nothing was left of it"
    else:
        killed = f", {len(stopped.killed)} of them by SIGKILL" if stopped.killed else ""
        text = f"process {server.pid} was stopped, {len(stopped.signalled)} processes in all{killed}"
    run.emit(Event("background.stopped", "server", text, "good" if server else "info", facts))
    if run.json:
        run.print_json({"ok": True, **facts})
