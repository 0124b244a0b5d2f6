"""``vllmrt preflight``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vllmrt.cli import Status
from vllmrt.cli.options import Run, command
from vllmrt.errors import ConfigError
from vllmrt.events import Event
from vllmrt.host import PluginHost
from vllmrt.preflight.run import Preflight

if TYPE_CHECKING:
    from vllmrt.preflight.proxy import Proxy

app = typer.Typer(add_completion=False)


@app.command(epilog="What follows -- is started when the checks have passed, and stopped with vllmrt.")
@command("--host", "--port", "plugins", "preflight", takes_extra=True, json_setting="preflight_json")
def preflight(run: Run) -> None:
    """Make sure that the port is free and the GPUs are fit; stop a stale vLLM that is in the way.

    Only vLLM is ever stopped. Exit codes: 2 the port is held by something else, 3 by another user, 4 by what cannot be
    seen, 5 it could not be freed, 1 anything else.
    """
    settings = run.layers.settings
    if run.extra and run.json:
        raise ConfigError("VLLM_PREFLIGHT_JSON and --json go without a command", hint="leave out one of them")
    if run.extra:
        from vllmrt.preflight.proxy import find_command

        find_command(run.extra)
    proxy = None
    checks = Preflight(settings, PluginHost(settings), run.emit)
    with checks.cleared() as answer:
        if run.extra and not settings.dry_run:
            proxy = _start(run)
    if run.json:
        run.print_json({"ok": True, **answer})
    if proxy is not None:
        raise Status(proxy.wait())


def _start(run: Run) -> Proxy | None:
    """Start the command; return when it listens, so that the lock can be given up, or not at all."""
    from vllmrt.preflight.proxy import Proxy, become

    settings = run.layers.settings
    run.emit(Event("preflight.command", "command", " ".join(map(ascii, run.extra)), data={"argv": list(run.extra)}))
    if not settings.preflight_proxy_child:
        become(run.extra)
    proxy = Proxy(run.extra, settings)
    status = proxy.wait_until_bound()
    if status is not None:
        raise Status(status)
    text = f"the command listens on {settings.host}:{settings.port}"
    run.emit(Event("preflight.bound", "port", text, "good"))
    return proxy
