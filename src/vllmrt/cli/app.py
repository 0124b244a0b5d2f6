"""The root command: finds its subcommands by name and imports only the one that is run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vllmrt.cli import Status
from vllmrt.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence


COMMANDS = (
    *("up", "status", "logs", "down", "plan", "preflight", "resolve", "serve", "smoke", "doctor", "render", "monitor"),
    *("models", "plugins", "config"),
)
"""Each is a module of this package with an ``app``."""

_CLICK_USAGE = 2


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are named."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is click's
        """Return the commands in the order of a user's first day."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - as above
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(f"vllmrt.cli.{cmd_name}").app)
        command.name = cmd_name
        return command


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


def _version(value: bool) -> None:  # noqa: FBT001 - typer calls it so
    if value:
        from importlib.metadata import version

        typer.echo(f"vllmrt {version('vllmrt')}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,  # noqa: FBT002
) -> None:
    """Get a model onto this machine, prove that it is whole, and hand over to vllm serve."""


def run(argv: Sequence[str]) -> int:
    """Run one command line; what follows ``--`` is for the engine.

    Returns:
        the exit status; what click calls 2 is 64 here, since 2 means something else (DESIGN.md §6).
    """
    ours, extra = list(argv), None
    if "--" in argv:
        cut = list(argv).index("--")
        ours, extra = list(argv[:cut]), tuple(argv[cut + 1 :])
    try:
        typer.main.get_command(app).main(args=ours, prog_name="vllmrt", obj=extra)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if code != _CLICK_USAGE or isinstance(leaving, Status):
            return code
        if "--json" in ours:
            typer.echo('{"ok": false, "code": 64, "class": "UsageError", "error": "see stderr", "hint": null}')
        return ExitCode.USAGE
    return ExitCode.OK
