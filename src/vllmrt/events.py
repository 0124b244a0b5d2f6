"""What happens in a run, as values, and the three ways to show it: on a terminal, as plain lines, as NDJSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Emit = Callable[["Event"], None]

LABEL_WIDTH = 9
Level = Literal["info", "good", "warning", "error"]


class Event(NamedTuple):
    """One thing that happened.

    Attributes:
        name: for programs, such as ``resolve.attempt``; documented in docs/reference/events.md.
        label: the first column: a stage or a source.
        text: the rest of the line, for people; no secrets.
        level: how much it matters.
        data: the same facts for programs.
    """

    name: str
    label: str
    text: str
    level: Level = "info"
    data: Mapping[str, object] = {}


def renderer(log_format: str | None = None, stream: TextIO | None = None) -> Emit:
    """Return the function that shows events.

    Args:
        log_format: ``json`` or ``text``; None and ``text`` colour the lines on a terminal.
        stream: where they go, standard error where it is None.
    """
    out = stream or sys.stderr
    if log_format == "json":
        return lambda event: _write(out, as_json(event))
    if out.isatty():
        return _on_terminal(out)
    return lambda event: _write(out, as_line(event))


def as_line(event: Event) -> str:
    """Return an event as a plain line, its continuation lines aligned with the text."""
    text = event.text.replace("\n", "\n" + " " * (LABEL_WIDTH + 1))
    return f"{event.label:<{LABEL_WIDTH}} {text}"


def as_json(event: Event) -> str:
    """Return an event as one line of JSON, schema version 1."""
    from time import time

    import msgspec

    fixed = {"v": 1, "time": round(time(), 3), "event": event.name, "level": event.level, "text": event.text}
    return msgspec.json.encode({**fixed, **event.data}, enc_hook=str).decode()


def human_size(size: float) -> str:
    """Return bytes as people read them, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004 - decimal units
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _write(out: TextIO, line: str) -> None:
    out.write(line + "\n")
    out.flush()


def _on_terminal(out: TextIO) -> Emit:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, highlight=False)
    styles = {"info": "", "good": "green", "warning": "yellow", "error": "red"}

    def show(event: Event) -> None:
        row = Table.grid(padding=(0, 1))
        row.add_column(width=LABEL_WIDTH)
        row.add_column(overflow="fold")
        row.add_row(Text(event.label, style="bold"), Text(event.text, style=styles[event.level]))
        console.print(Padding(row, (0, 0, 0, 2)))

    return show
