"""``vllmrt smoke``."""

from __future__ import annotations

from typing import Annotated

import typer

from vllmrt.cli.options import Run, command
from vllmrt.cli.output import show_table
from vllmrt.errors import ExitCode

app = typer.Typer(add_completion=False)


@app.command()
@command("server")
def smoke(
    run: Run,
    url: Annotated[str | None, typer.Option("--url", help="The server; default http://HOST:PORT.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for each check.")] = 30.0,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait first until the server is healthy.")] = 0.0,
) -> None:
    """Ask a running server what its clients will ask: health, models, completion, chat, streaming, metrics."""
    from vllmrt.serve.client import url_of
    from vllmrt.serve.smoke import run_checks, wait_healthy

    settings = run.layers.settings
    base = url or url_of(settings.host, settings.port)
    if wait:
        wait_healthy(base, seconds=wait)
    checks = run_checks(base, settings.api_key, timeout=timeout)
    ok = all(check.ok for check in checks)
    if run.json:
        run.print_json({"ok": ok, "url": base, "checks": [check._asdict() for check in checks]})
    else:
        show_table(
            run.out,
            ("check", "result", "seconds", "detail"),
            [[check.name, "ok" if check.ok else "FAILED", f"{check.seconds:.2f}", check.detail] for check in checks],
        )
    if not ok:
        raise SystemExit(ExitCode.GENERAL)
