"""``vllmrt doctor``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from vllmrt.cli.options import Run, command
from vllmrt.errors import ExitCode
from vllmrt.events import Event, renderer

if TYPE_CHECKING:
    from vllmrt.doctor.page import Page
    from vllmrt.events import Emit

app = typer.Typer(add_completion=False)
_LABELS = {"environment": "environ"}


@app.command()
@command("model_sources", "models_dir", "stores", "server", "engine", "plugins", tolerant=True)
def doctor(run: Run) -> None:
    """Put everything that a ticket needs on one page: versions, settings, store, port, GPUs, plugins, problems.

    Nothing is written or stopped, no network is asked, and no secret is shown. Exit code 1: there are problems, each
    with its remedy. vllmrt plan looks at the sources.
    """
    from vllmrt.doctor import examine
    from vllmrt.doctor.page import Case

    page = examine(Case(run.layers, os.environ))
    if run.json:
        run.print_json(page.as_json())
    else:
        _show(page, renderer(run.log_format, run.out))
    if page.problems:
        raise SystemExit(ExitCode.GENERAL)


def _show(page: Page, emit: Emit) -> None:
    for name, section in page.sections.items():
        facts = {"section": name, "facts": section.facts}
        emit(Event("doctor.section", _LABELS.get(name, name), "\n".join(section.lines), data=facts))
        for note in section.notes:
            emit(Event("doctor.note", "note", note, "warning", {"section": name}))
    for name, problem in page.problems:
        facts = {"section": name, "code": problem.code, "remedy": problem.remedy}
        emit(Event("doctor.problem", "problem", problem.message, "error", facts))
        emit(Event("hint", "remedy", problem.remedy))
    count = len(page.problems)
    text = f"{count} problem{'s' if count > 1 else ''}" if count else "no problem was found"
    emit(Event("doctor.result", "result", text, "error" if count else "good", {"problems": count}))
