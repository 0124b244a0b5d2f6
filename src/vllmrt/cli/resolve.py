"""``vllmrt resolve``."""

from __future__ import annotations

import typer

from vllmrt import pipeline
from vllmrt.cli.options import Run, command
from vllmrt.cli.output import recorded
from vllmrt.resolve import envfile

app = typer.Typer(add_completion=False)


@app.command()
@command("model", "transfer", "stores", "plugins", "metrics", "--dry-run")
def resolve(run: Run) -> None:
    """Find a model, prove that it is whole, and write the env file that serve reads.

    The directory of the model is printed on stdout.
    """
    with recorded(run) as noted:
        resolved = pipeline.resolve(noted.layers, noted.emit)
    if not run.json:
        run.print(resolved.path)
        return
    settings = run.layers.settings
    run.print_json(
        {
            "ok": True,
            "model": resolved.request.identity,
            "source": resolved.source,
            "path": resolved.path,
            "revision": resolved.manifest.revision,
            "files": len(resolved.manifest.files),
            "bytes": sum(state.size for state in resolved.manifest.files.values()),
            "env_file": None if settings.dry_run else envfile.path_for(settings, resolved.request),
            "attempts": [attempt._asdict() for attempt in resolved.attempts],
        }
    )
