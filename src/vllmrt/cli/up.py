"""``vllmrt up``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from vllmrt import pipeline
from vllmrt.cli.options import Run, command
from vllmrt.cli.output import show_launch

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Arguments after -- go to vllm serve as they are; one that collides with a flag of ours is dropped."
)
@command("model", "transfer", "stores", "server", "engine", "logging", "plugins", "dry_run", takes_extra=True)
def up(
    run: Run,
    *,
    print_cmd: Annotated[bool, typer.Option("--print-cmd", help="Print the bare command line, then launch.")] = False,
) -> None:
    """Find a model, prove that it is whole, and become vllm serve.

    The sources are asked in order; the first one that has the model whole wins. What is served is the directory that
    was checked. Ctrl-C and SIGTERM reach vLLM, because vllmrt turns into it.
    """
    resolved, plan = pipeline.up(run.layers, run.emit, os.environ, run.extra)
    facts = {
        "model": resolved.request.identity,
        "source": resolved.source,
        "path": resolved.path,
        "revision": resolved.manifest.revision,
        "attempts": [attempt._asdict() for attempt in resolved.attempts],
    }
    show_launch(run, plan, facts, print_cmd=print_cmd)
