"""``vllmrt up``."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from vllmrt import pipeline
from vllmrt.cli.options import Run, command
from vllmrt.cli.output import notified, recorded, show_launch
from vllmrt.errors import UsageError

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Arguments after -- go to vllm serve as they are; one that collides with a flag of ours is dropped."
)
@command(
    "model",
    "transfer",
    "stores",
    "server",
    "engine",
    "logging",
    "plugins",
    "up",
    "metrics",
    "preflight",
    takes_extra=True,
)
def up(
    run: Run,
    *,
    print_cmd: Annotated[bool, typer.Option("--print-cmd", help="Print the bare command line, then launch.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Start it in the background; status, logs and down look after it.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="With --detach: wait until it has made its first token, or failed.")
    ] = False,
) -> None:
    """Find a model, prove that it is whole, and become vllm serve.

    The port and the GPUs are looked at first. A stale vLLM on the port goes on serving until the new model is ready,
    and is stopped then. The sources are asked in order; the first one that has the model whole wins. What is served is
    the directory that was checked. Ctrl-C and SIGTERM reach vLLM, because vllmrt turns into it.
    """
    if wait and not detach:
        raise UsageError("--wait goes with --detach: without it vllmrt turns into the server, and nobody waits")
    with recorded(notified(run), port=str(run.layers.settings.port)) as noted:
        ready = pipeline.up(run.layers, noted.emit, os.environ, run.extra)
        if detach and not run.layers.settings.dry_run:
            from vllmrt.cli.detached import launch_detached

            launch_detached(noted, ready, _facts(ready), print_cmd=print_cmd, wait=wait)
        else:
            show_launch(noted, ready.plan, _facts(ready), print_cmd=print_cmd, clearing=ready.clearing)


def _facts(ready: pipeline.Ready) -> dict[str, Any]:
    resolved = ready.resolved
    return {
        "model": resolved.request.identity,
        "source": resolved.source,
        "path": resolved.path,
        "revision": resolved.manifest.revision,
        "attempts": [attempt._asdict() for attempt in resolved.attempts],
    }
