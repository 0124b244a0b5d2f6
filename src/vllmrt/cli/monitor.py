"""``vllmrt monitor``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from vllmrt.cli.options import Run, command
from vllmrt.cli.reporting import interrupted
from vllmrt.events import Event

if TYPE_CHECKING:
    from vllmrt.monitoring.running import Program

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def monitor() -> None:
    """Watch a server with Prometheus and Grafana."""


@app.command()
@command("--host", "--port", "--cache-dir", "monitor")
def up(run: Run) -> None:
    """Start a Prometheus that watches the server, and a Grafana with its dashboard if one is installed.

    They listen on 127.0.0.1, keep their data in the cache directory, and end with vllmrt: Ctrl-C.
    """
    from vllmrt.monitoring import running

    settings = run.layers.settings
    programs = running.prepare(settings, os.environ)
    urls = {program.name.lower(): program.url for program in programs}
    if "grafana" not in urls:
        text = "no grafana on PATH, so there is no dashboard; vllmrt render grafana prints it for one elsewhere"
        run.emit(Event("monitor.without", "grafana", text, "warning"))
    waiting = set(urls)

    def ready(program: Program) -> None:
        label = program.name.lower()
        run.emit(
            Event("monitor.ready", label, f"{program.name} answers at {program.url}", "good", {"url": program.url})
        )
        waiting.remove(label)
        if run.json and not waiting:
            run.print_json({"ok": True, "prometheus": urls["prometheus"], "grafana": urls.get("grafana")})

    try:
        running.run(programs, ready)
    except KeyboardInterrupt as interrupt:
        run.emit(Event("monitor.stopped", "stopped", f"{' and '.join(one.name for one in programs)} ended"))
        raise interrupted(interrupt) from None
