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
@command("model", "transfer", "stores", "server", "engine", "logging", "plugins", "up", "preflight", takes_extra=True)
def up(
    run: Run,
    *,
    print_cmd: Annotated[bool, typer.Option("--print-cmd", help="Print the bare command line, then launch.")] = False,
) -> None:
    """Find a model, prove that it is whole, and become vllm serve.

    The port and the GPUs are looked at first. A stale vLLM on the port goes on serving until the new model is ready,
    and is stopped then. The sources are asked in order; the first one that has the model whole wins. What is served is
    the directory that was checked. Ctrl-C and SIGTERM reach vLLM, because vllmrt turns into it.
    """
    ready = pipeline.up(run.layers, run.emit, os.environ, run.extra)
    resolved = ready.resolved
    facts = {
        "model": resolved.request.identity,
        "source": resolved.source,
        "path": resolved.path,
        "revision": resolved.manifest.revision,
        "attempts": [attempt._asdict() for attempt in resolved.attempts],
    }
    show_launch(run, ready.plan, facts, print_cmd=print_cmd, clearing=ready.clearing)
