"""What happened, as lines, as JSON and on a terminal; whatever it says comes from elsewhere and may be hostile."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

from vllmrt.events import LABEL_WIDTH, Event, as_json, as_line, human_size, renderer

HOSTILE = {
    "a title": "\x1b]0;owned\x07",
    "a colour": "\x1b[31mred",
    "clear": "\x1b[2J\x1b[H",
    "8-bit CSI": "\x9b31m",
    "backspaces": "good\x08\x08\x08\x08evil",
    "carriage return": "skipped: x\rchosen: y",
    "NUL": "a\0b",
    "right to left": "gpj.\u202eexe",
    "line separator": "a\u2028b",
    "surrogate": "a\udcffb",
    "DEL": "a\x7fb",
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def test_a_line_has_its_label_in_a_column() -> None:
    assert as_line(Event("x", "local", "skipped: no")) == "local".ljust(LABEL_WIDTH) + " skipped: no"


def test_a_long_label_is_kept() -> None:
    assert as_line(Event("x", "acme-share-of-paris", "text")) == "acme-share-of-paris text"


def test_further_lines_are_aligned() -> None:
    first, second = as_line(Event("x", "local", "one\ntwo")).split("\n")
    assert first.index("one") == second.index("two")
    assert second.strip() == "two"


def test_json_is_one_line_with_the_facts_beside_it() -> None:
    before = time.time()
    text = as_json(Event("resolve.attempt", "local", "a\nb", "warning", {"path": Path("/x"), "files": 2}))
    fact = json.loads(text)
    assert "\n" not in text
    assert abs(fact.pop("time") - before) < 10
    assert fact == {
        "v": 1,
        "event": "resolve.attempt",
        "level": "warning",
        "text": "a\nb",
        "path": "/x",
        "files": 2,
    }


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("where", ["label", "text"])
def test_a_line_cannot_steer_the_terminal(where: str, text: str) -> None:
    stream = io.StringIO()
    renderer(stream=stream)(Event("x", **{"label": "l", "text": "t", where: text}))
    assert _harmless(stream.getvalue())


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("where", ["label", "text"])
def test_what_is_shown_on_a_terminal_cannot_steer_it(where: str, text: str, terminal: Terminal) -> None:
    renderer(stream=terminal)(Event("x", **{"label": "l", "text": "t", where: text}))
    shown = terminal.getvalue()
    for own in ("\x1b[1m", "\x1b[0m"):
        shown = shown.replace(own, "")
    assert _harmless(shown)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_json_takes_anything(text: str) -> None:
    line = as_json(Event("x", text, text, data={"path": text}))
    assert not set(line) & set("\n\r\0\x1b")
    assert isinstance(json.loads(line.encode())["text"], str)


def test_a_label_of_two_lines_is_one() -> None:
    assert "\n" not in as_line(Event("x", "a\nb", "text"))


def _harmless(text: str) -> bool:
    return not any(unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for letter in text.replace("\n", ""))


def test_markup_is_text(terminal: Terminal) -> None:
    renderer(stream=terminal)(Event("x", "[red]l", "[bold]t[/bold] :smile: [link=http://x]y[/link]"))
    assert "[bold]t[/bold] :smile: [link=http://x]y[/link]" in terminal.getvalue()


def test_levels_have_colours_on_a_terminal_and_only_there(terminal: Terminal) -> None:
    plain = io.StringIO()
    for stream in (terminal, plain):
        renderer(stream=stream)(Event("x", "l", "bad", "error"))
    assert "\x1b[31mbad" in terminal.getvalue()
    assert plain.getvalue() == "l         bad\n"


def test_no_color_is_obeyed(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    renderer(stream=terminal)(Event("x", "l", "bad", "error"))
    assert "\x1b[31m" not in terminal.getvalue()


def test_json_is_written_to_a_terminal_too(terminal: Terminal) -> None:
    renderer("json", terminal)(Event("x", "l", "t"))
    assert json.loads(terminal.getvalue())["event"] == "x"


def test_a_line_is_there_at_once() -> None:
    script = "import os; from vllmrt.events import *; renderer()(Event('x', 'l', 't')); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == "l         t\n"


def test_a_stream_that_cannot_take_a_character_still_gets_the_line() -> None:
    script = "from vllmrt.events import Event, renderer; renderer()(Event('x', 'l', 'caf\\u00e9 \\u00b7 \\u00b0C'))"
    environ = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "caf" in done.stderr


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (16_100_000_000, "16.1 GB"),
        (2_500_000_000_000, "2.5 TB"),
        (9_000_000_000_000_000, "9000.0 TB"),
        (999_999, "1.0 MB"),
    ],
)
def test_sizes_are_decimal(size: int, words: str) -> None:
    assert human_size(size) == words
