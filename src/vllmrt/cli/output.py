"""Tables and launches, as commands show them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from vllmrt.events import Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from vllmrt.cli.reporting import Run
    from vllmrt.serve.launch import LaunchPlan


def show_launch(
    run: Run,
    plan: LaunchPlan,
    facts: Mapping[str, object],
    *,
    print_cmd: bool,
    clearing: AbstractContextManager[dict[str, Any]] | None = None,
) -> None:
    """Say what is launched, and launch it unless this is a dry run.

    Args:
        run: of the command.
        plan: of the launch.
        facts: what its JSON object has besides.
        print_cmd: True to print the bare command line.
        clearing: entered when nothing else can be refused any more: what has to be stopped for the new server. Its
            value goes into the JSON object as ``preflight``.
    """
    from vllmrt.serve.launch import check, launch

    for warning in plan.warnings:
        run.emit(Event("serve.warning", "serve", warning, "warning"))
    dry = run.layers.settings.dry_run
    if not dry:
        check(plan)
    with clearing or nullcontext({}) as told:
        _show_command(run, plan, print_cmd=print_cmd)
        if run.json:
            preflight = {"preflight": told} if told else {}
            run.print_json({"ok": True, **facts, **preflight, "argv": plan.argv, "dry_run": dry})
        if not dry:
            launch(plan)


def _show_command(run: Run, plan: LaunchPlan, *, print_cmd: bool) -> None:
    from vllmrt.serve.argv import format_command

    shown = format_command(plan.argv)
    if print_cmd:
        sys.stderr.write(shown + "\n")
    else:
        data = {"argv": plan.argv, "dry_run": run.layers.settings.dry_run}
        run.emit(Event("serve.command", "serve", shown, data=data))


def show_table(out: TextIO, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: ruled on a terminal, else columns that line up and that awk can split."""
    if out.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))
        Console(file=out, highlight=False).print(table)
        return
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    for row in [columns, *rows]:
        out.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    out.flush()
