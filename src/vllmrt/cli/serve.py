"""``vllmrt serve``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from vllmrt import pipeline
from vllmrt.cli.options import Run, command
from vllmrt.cli.output import show_launch

app = typer.Typer(add_completion=False)


@app.command(epilog="Arguments after -- go to vllm serve as they are.")
@command("model", "server", "engine", "logging", "--dry-run", takes_extra=True)
def serve(
    run: Run,
    *,
    print_cmd: Annotated[bool, typer.Option("--print-cmd", help="Print the bare command line, then launch.")] = False,
) -> None:
    """Become vllm serve with the model that an earlier vllmrt resolve wrote into its env file."""
    record = pipeline.recorded(run.layers.settings, os.environ)
    plan = pipeline.serve(run.layers, record, os.environ, run.extra)
    show_launch(run, plan, {}, print_cmd=print_cmd)
