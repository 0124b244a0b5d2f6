"""``vllmrt plan``."""

from __future__ import annotations

import os

import typer

from vllmrt import pipeline
from vllmrt.cli.options import Run, command
from vllmrt.events import Event, human_size

app = typer.Typer(add_completion=False)
_SECRET = "********"  # noqa: S105 - what stands in its place


@app.command(epilog="Arguments after -- are those that vllmrt up would be given.")
@command("model", "transfer", "stores", "server", "engine", "logging", "plugins", "up", takes_extra=True)
def plan(run: Run) -> None:
    """Ask every source for a model, and say what vllmrt up would fetch and launch; nothing is moved.

    Files are counted by the listing alone: the models in place are not validated.
    """
    told = pipeline.plan(run.layers, run.emit, os.environ, run.extra)
    environ = {name: _shown(name, value) for name, value in told.added.items()}
    if run.json:
        run.print_json(
            {
                "ok": told.path is not None,
                "model": told.request.identity,
                "preflight": told.port,
                "offers": [offer._asdict() for offer in told.offers],
                "path": told.path,
                "free": told.free,
                "argv": told.argv,
                "environment": environ,
                "removed": told.removed,
            }
        )
    else:
        _show(run, told, environ)
    if told.path is None:
        raise SystemExit(10)


def _show(run: Run, told: pipeline.Told, environ: dict[str, str]) -> None:
    for offer in told.offers:
        run.emit(Event("plan.offer", offer.source, str(offer), "good" if offer.path == told.path else "info"))
    if told.path is None:
        return
    free = f"; {human_size(told.free)} are free there" if told.free is not None else ""
    run.emit(Event("plan.path", "served", f"from {told.path}{free}"))
    run.emit(Event("plan.environment", "environ", " ".join(f"{name}={value}" for name, value in environ.items())))
    if told.removed:
        run.emit(Event("plan.environment", "removed", " ".join(told.removed)))
    run.emit(Event("plan.command", "serve", told.command))


def _shown(name: str, value: str) -> str:
    return _SECRET if any(word in name for word in ("KEY", "TOKEN", "SECRET")) else value
