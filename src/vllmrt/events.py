"""What happens in a run, as values, and the three ways to show it: on a terminal, as plain lines, as NDJSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.progress import Progress

    Emit = Callable[["Event"], None]

LABEL_WIDTH = 9
PROGRESS = "transfer.progress"
PROGRESS_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""
_STYLES = {"info": "", "good": "green", "warning": "yellow", "error": "red"}
Level = Literal["info", "good", "warning", "error"]


class Event(NamedTuple):
    """One thing that happened.

    Attributes:
        name: for programs, such as ``resolve.attempt``; documented in docs/reference/events.md.
        label: the first column: a stage or a source.
        text: the rest of the line, for people; no secrets. Without one only programs are told.
        level: how much it matters.
        data: the same facts for programs.
    """

    name: str
    label: str
    text: str
    level: Level = "info"
    data: Mapping[str, Any] = {}


def renderer(log_format: str | None = None, stream: TextIO | None = None) -> Emit:
    """Return the function that shows events.

    Args:
        log_format: ``json`` or ``text``; None and ``text`` colour the lines on a terminal.
        stream: where they go, standard error where it is None.
    """
    out = stream or sys.stderr
    if log_format == "json":
        return lambda event: _write(out, as_json(event))
    return _Terminal(out) if out.isatty() else _Lines(out)


def as_line(event: Event) -> str:
    """Return an event as a plain line, its continuation lines aligned with the text."""
    text = printable(event.text).replace("\n", "\n" + " " * (LABEL_WIDTH + 1))
    return f"{_label(event):<{LABEL_WIDTH}} {text}"


def _label(event: Event) -> str:
    return printable(event.label).replace("\n", "\\n")


def printable(text: str) -> str:
    """Return `text` with everything escaped that could steer a terminal; line ends stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def as_json(event: Event, at: float | None = None) -> str:
    """Return an event as one line of JSON, schema version 1.

    Args:
        event: what happened.
        at: when, in seconds since the epoch; None is now.
    """
    from time import time

    fixed = {
        "v": 1,
        "time": round(time() if at is None else at, 3),
        "event": event.name,
        "level": event.level,
        "text": event.text,
    }
    return to_json({**fixed, **event.data})


def to_json(value: object) -> str:
    """Return JSON on one line, paths and the like as text; also for names that are not UTF-8."""
    import json

    return json.dumps(value, default=str)


def human_size(size: float) -> str:
    """Return bytes as people read them, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(size, 1) < 1000:  # noqa: PLR2004 - decimal units
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _write(out: TextIO, line: str) -> None:
    out.write(line + "\n")
    out.flush()


class _Lines:
    """Plain lines; of a transfer's progress one every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown = 0.0

    def __call__(self, event: Event) -> None:
        from time import monotonic

        if not event.text:
            return
        if event.name == PROGRESS:
            if monotonic() - self._shown < PROGRESS_EVERY:
                return
            self._shown = monotonic()
        _write(self._out, as_line(event))


class _Terminal:
    """Aligned, coloured rows; a transfer's progress is one bar that stays in its place."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=out, highlight=False)
        self._bar: Progress | None = None

    def __call__(self, event: Event) -> None:
        if event.name == PROGRESS:
            self._move(event)
        if event.name == PROGRESS or not event.text:
            return
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._row(event)

    def _row(self, event: Event) -> None:
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        row.add_column(min_width=LABEL_WIDTH, no_wrap=True)
        row.add_column(overflow="fold")
        label, text = _label(event), printable(event.text)
        row.add_row(Text(label, style="bold"), Text(text, style=_STYLES[event.level]))
        self._console.print(Padding(row, (0, 0, 0, 2)))

    def _move(self, event: Event) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bar is None:
            columns = (
                TextColumn(" " * (LABEL_WIDTH + 2)),
                BarColumn(),
                TextColumn("{task.fields[text]}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("", total=None, text="")
            self._bar.start()
        received, total = event.data["received"], event.data["total"]
        self._bar.update(self._bar.task_ids[0], completed=received, total=total, text=printable(event.text))
