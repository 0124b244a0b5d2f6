"""``vllmrt preflight``."""

from __future__ import annotations

import typer

from vllmrt.cli import Status
from vllmrt.cli.checks import check_and_start
from vllmrt.cli.options import Run, command

app = typer.Typer(add_completion=False)


@app.command(
    epilog="COMMAND is started when the checks have passed, and stopped with vllmrt; -- may stand before it.",
    options_metavar="[OPTIONS] [COMMAND]...",
    context_settings={"allow_extra_args": True, "allow_interspersed_args": False},
)
@command("--host", "--port", "plugins", "preflight", takes_extra=True, json_setting="preflight_json")
def preflight(run: Run) -> None:
    """Make sure that the port is free and the GPUs are fit; stop a stale vLLM that is in the way.

    Only vLLM is ever stopped. Exit codes: 2 the port is held by something else, 3 by another user, 4 by what cannot be
    seen, 5 it could not be freed, 1 anything else.
    """
    raise Status(check_and_start(run))
