"""Tables and launches, as commands show them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from vllmrt.events import Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vllmrt.cli.options import Run
    from vllmrt.serve.launch import LaunchPlan


def show_launch(run: Run, plan: LaunchPlan, facts: Mapping[str, object], *, print_cmd: bool) -> None:
    """Say what is launched, and launch it unless this is a dry run."""
    from vllmrt.serve.argv import format_command
    from vllmrt.serve.launch import check, launch

    for warning in plan.warnings:
        run.emit(Event("serve.warning", "serve", warning, "warning"))
    dry = run.layers.settings.dry_run
    shown = format_command(plan.argv)
    if print_cmd:
        sys.stderr.write(shown + "\n")
    else:
        run.emit(Event("serve.command", "serve", shown, data={"argv": plan.argv, "dry_run": dry}))
    if not dry:
        check(plan)
    if run.json:
        run.print_json({"ok": True, **facts, "argv": plan.argv, "dry_run": dry})
    if dry:
        return
    launch(plan)


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
