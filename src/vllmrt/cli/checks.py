"""A preflight from the command line, and the command behind it; without typer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vllmrt.cli import Status
from vllmrt.errors import ConfigError
from vllmrt.events import Event
from vllmrt.host import PluginHost
from vllmrt.preflight.decision import address
from vllmrt.preflight.run import Preflight

if TYPE_CHECKING:
    from vllmrt.cli.reporting import Run
    from vllmrt.preflight.proxy import Proxy


def check_and_start(run: Run) -> int:
    """Make the checks, start the command that is in `Run.extra`, and return the exit status of both.

    Raises:
        ConfigError: JSON and a command are both wanted, or there is no such command.
        VllmrtError: as `vllmrt.preflight.run.Preflight.cleared`.
    """
    settings = run.layers.settings
    run = run._replace(json=run.json or settings.preflight_json)
    if run.extra and run.json:
        raise ConfigError("VLLM_PREFLIGHT_JSON and --json go without a command", hint="leave out one of them")
    if run.extra:
        from vllmrt.preflight.proxy import find_command

        find_command(run.extra)
    proxy = None
    checks = Preflight(settings, PluginHost(settings), run.emit, alone=_alone(run))
    with checks.cleared() as answer:
        if run.extra and not settings.dry_run:
            proxy = _start(run)
    if run.json:
        run.print_json({"ok": True, **answer})
    return proxy.wait() if proxy else 0


def _alone(run: Run) -> bool:
    """Tell whether the GPUs here have to be enough; what a later vllm-serve is given behind -- cannot be known."""
    if run.layers.settings.gpus == 1:
        return False
    from vllmrt.serve.nodes import in_cluster, stands_alone

    return not in_cluster(os.environ) and stands_alone(run.layers.settings, os.environ, run.extra)


def _start(run: Run) -> Proxy:
    """Start the command; return when it listens, so that the lock can be given up, or not at all."""
    from shlex import join

    from vllmrt.masking import redact_argv
    from vllmrt.preflight.proxy import Proxy, become

    settings, shown = run.layers.settings, redact_argv(run.extra)
    run.emit(Event("preflight.command", "command", join(shown), data={"argv": shown}))
    if not settings.preflight_proxy_child:
        become(run.extra)
    proxy = Proxy(run.extra, settings)
    status = proxy.wait_until_bound()
    if status is not None:
        raise Status(status)
    text = f"the command listens on {address(settings.host, settings.port)}"
    run.emit(Event("preflight.bound", "port", text, "good"))
    return proxy
