"""``vllmrt logs``."""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import TYPE_CHECKING, Annotated

import typer

from vllmrt.background import state
from vllmrt.background.control import runs
from vllmrt.background.logs import follow as followed
from vllmrt.background.logs import last_lines
from vllmrt.cli.options import Run, command
from vllmrt.cli.reporting import interrupted
from vllmrt.errors import ConfigError, UsageError
from vllmrt.events import printable

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(add_completion=False)


@app.command()
@command("--port", "--cache-dir")
def logs(
    run: Run,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the server ends, or Ctrl-C.")] = False,
) -> None:
    """Print what the server that vllmrt up --detach started on the port has said; the last one, if it has ended."""
    settings = run.layers.settings
    path = state.log_path(settings)
    if not path.exists():
        raise ConfigError(f"there is no log of a server on port {settings.port}", hint=state.hint(settings))
    if run.json:
        if follow:
            raise UsageError("--json prints one object, and --follow has no end")
        run.print_json({"ok": True, "port": settings.port, "log": path, "lines": last_lines(path)})
        return
    write = _writer(run)
    try:
        for piece in followed(path, lambda: follow and runs(settings)):
            write(piece)
    except KeyboardInterrupt as interrupt:
        raise interrupted(interrupt) from None


def _writer(run: Run) -> Callable[[bytes], None]:
    """Return what writes a piece: as it is, but to a terminal nothing that could steer it."""
    decoder = getincrementaldecoder("utf-8")("replace")

    def pass_on(piece: bytes) -> None:
        run.out.buffer.write(piece)
        run.out.flush()

    def show(piece: bytes) -> None:
        text = decoder.decode(piece).replace("\r\n", "\n").replace("\r", "\n")
        run.out.write(printable(text.expandtabs()))
        run.out.flush()

    return show if run.out.isatty() else pass_on
