"""Tables and launches, as commands show them."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from vllmrt.cli.reporting import interrupted
from vllmrt.events import Event

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from vllmrt.cli.reporting import Run
    from vllmrt.serve.launch import LaunchPlan

NOTIFY = "NOTIFY_SOCKET"
"""Where a service manager wants to be told of the start, if one does: sd_notify(3)."""


def notified(run: Run) -> Run:
    """Return a run whose events the service manager is told of, where there is one."""
    if not os.environ.get(NOTIFY):
        return run
    from vllmrt.background.notify import telling

    return run._replace(emit=telling(run.emit, os.environ[NOTIFY]))


@contextmanager
def recorded(run: Run, **labels: str) -> Iterator[Run]:
    """Write what the block has cost into the metrics file, if there is one, however the block ends.

    Args:
        run: of the command.
        labels: of all metrics, besides the model.
    """
    settings = run.layers.settings
    if settings.metrics_file is None or settings.dry_run:
        yield run
        return
    from vllmrt.identity import DEFAULT_MODEL
    from vllmrt.monitoring.textfile import Recorder

    model = settings.model_id or "/".join(filter(None, (settings.model_org, settings.model))) or DEFAULT_MODEL
    recorder = Recorder(run.emit, settings.metrics_file, {"model": model, **labels})
    try:
        yield run._replace(emit=recorder, settle=recorder.succeed)
    except BaseException as error:
        recorder.fail(interrupted(error) if isinstance(error, KeyboardInterrupt) else error)
        raise
    recorder.succeed()


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

    show_warnings(run, plan)
    dry = run.layers.settings.dry_run
    if not dry:
        check(plan)
    with clearing or nullcontext({}) as told:
        show_command(run, plan, print_cmd=print_cmd)
        if run.json:
            preflight = {"preflight": told} if told else {}
            run.print_json({"ok": True, **facts, **preflight, "argv": _shown(run, plan), "dry_run": dry})
        if not dry:
            run.settle()
            watch(run, os.getpid(), str(facts.get("model", "the model")))
            launch(plan)


def watch(run: Run, pid: int, name: str) -> None:
    """Have the service manager told when the server is ready, if there is one: as the server, we cannot."""
    if os.environ.get(NOTIFY):
        from vllmrt.background.notify import watch
        from vllmrt.serve.client import url_of

        settings = run.layers.settings
        watch(os.environ[NOTIFY], pid, url_of(settings.host, settings.port), name)


def show_warnings(run: Run, plan: LaunchPlan) -> None:
    """Say what the user should know of a launch."""
    for warning in plan.warnings:
        run.emit(Event("serve.warning", "serve", warning, "warning"))


def show_command(run: Run, plan: LaunchPlan, *, print_cmd: bool) -> None:
    """Say what is launched: bare and as it is, or as an event, which may be kept and has no secrets."""
    from vllmrt.serve.argv import format_command

    if print_cmd:
        sys.stderr.write(format_command(plan.argv) + "\n")
    else:
        shown = _shown(run, plan)
        data = {"argv": shown, "dry_run": run.layers.settings.dry_run}
        run.emit(Event("serve.command", "serve", format_command(shown), data=data))


def _shown(run: Run, plan: LaunchPlan) -> list[str]:
    """Return a command line without secrets: only what the user has added to it can hold one."""
    if not run.extra:
        return plan.argv
    from vllmrt.masking import redact_argv

    return redact_argv(plan.argv)


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
