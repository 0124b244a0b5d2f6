"""``vllmrt status``."""

from __future__ import annotations

import time

import msgspec
import typer

from vllmrt.background import state
from vllmrt.background.control import RUNNING, look
from vllmrt.cli.options import Run, command
from vllmrt.cli.output import show_table
from vllmrt.errors import ExitCode

app = typer.Typer(add_completion=False)


@app.command()
@command("--port", "--cache-dir")
def status(run: Run) -> None:
    """Say how the server is that vllmrt up --detach started on the port.

    Exit code 0: it is healthy, or starting. 1: it is unhealthy, has ended, or there is none.
    """
    settings = run.layers.settings
    seen = look(settings)
    server = msgspec.to_builtins(seen.server) if seen.server else {}
    ok = seen.state in RUNNING
    if run.json:
        code = {} if ok else {"code": int(ExitCode.GENERAL)}
        others = state.others(settings)
        run.print_json({"ok": ok, **code, "port": settings.port, "state": seen.state, **server, "other_ports": others})
    elif seen.server is None:
        run.print(f"nothing was started in the background on port {settings.port}; {state.hint(settings)}")
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen.server.since))
        columns = ("port", "state", "model", "process", "since", "log")
        cells = (str(settings.port), seen.state, seen.server.model, str(seen.server.pid), since, seen.server.log)
        show_table(run.out, columns, [cells])
    if not ok:
        raise SystemExit(ExitCode.GENERAL)
