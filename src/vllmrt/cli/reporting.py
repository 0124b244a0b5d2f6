"""What a command is given, and how what it raises becomes a message and an exit status; without typer."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, redirect_stdout
from signal import SIGINT, SIGPIPE, SIGTERM, signal
from typing import TYPE_CHECKING, NamedTuple, TextIO

from vllmrt import layers
from vllmrt.cli import Status
from vllmrt.errors import ExitCode, PreflightError, ResolveError, ServerFailed, VllmrtError
from vllmrt.events import Event, renderer, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vllmrt.events import Emit
    from vllmrt.layers import Layers

    Codes = Callable[[VllmrtError | None], int]

_FETCH = "transfer.start"


class Run(NamedTuple):
    """What every command is given.

    Attributes:
        layers: the settings and where they came from.
        emit: shows an event on stderr.
        json: True when `out` takes one JSON object and nothing else.
        extra: what is for another program: what followed ``--``, or began with a word that is no option.
        out: stdout; ``sys.stdout`` itself leads to stderr meanwhile, for plugins that print.
        log_format: how events are to be shown: ``text``, ``json``, or None.
        settle: called when all went well, and vllmrt is about to become something else.
    """

    layers: Layers
    emit: Emit
    json: bool
    extra: tuple[str, ...]
    out: TextIO
    log_format: str | None = None
    settle: Callable[[], None] = lambda: None

    def print(self, line: object) -> None:
        """Print one line on stdout."""
        self.out.write(f"{line}\n")
        self.out.flush()

    def print_json(self, value: object) -> None:
        """Print the command's one JSON object."""
        self.print(to_json(value))


def asks_for_json(setting: str | None) -> bool:
    """Look ahead: settings that cannot be read are reported as JSON too."""
    names = [name for row in layers.rows() if row.field == setting for name in row.names]
    return next((os.environ[name] for name in names if os.environ.get(name)), "0") == "1"


def own_code(error: VllmrtError | None) -> int:
    """Return the exit status of an error, and of a bug, which is None."""
    return ExitCode.BUG if error is None else error.exit_code


@contextmanager
def reporting(
    *, json: bool = False, log_format: str | None = None, verbose: bool = False, code: Codes = own_code
) -> Iterator[tuple[Emit, TextIO]]:
    """Turn what the block raises into one message and an exit status.

    Args:
        json: True to print one JSON object on stdout besides.
        log_format: as for `vllmrt.events.renderer`.
        verbose: True to show the traceback of a bug.
        code: the exit status of an error, and of a bug.
    """
    show, out = renderer(log_format), sys.stdout
    is_fetching = False

    def emit(event: Event) -> None:
        nonlocal is_fetching
        is_fetching |= event.name == _FETCH
        show(event)

    signal(SIGTERM, _terminate)
    try:
        with redirect_stdout(sys.stderr):
            yield emit, out
    except (VllmrtError, OSError) as error:
        known = error if isinstance(error, VllmrtError) else _of_system(error)
        facts = _report(known, code(known), emit)
    except KeyboardInterrupt as interrupt:
        kept = "; what was fetched is kept, and the next run goes on from there" if is_fetching else ""
        by = "SIGTERM" if isinstance(interrupt, _Terminated) else "Ctrl-C"
        emit(Event("interrupted", "stopped", f"by {by}{kept}", "warning"))
        raise interrupted(interrupt) from None
    except Exception as error:  # noqa: BLE001 - whatever else there is, is a bug of ours
        facts = _report_bug(error, code(None), emit, verbose=verbose)
    else:
        return
    if json:
        out.write(to_json(facts) + "\n")
    raise Status(facts["code"])


def interrupted(interrupt: KeyboardInterrupt) -> SystemExit:
    """Return how a run ends that was interrupted: as the signal would have ended it."""
    return SystemExit(128 + (SIGTERM if isinstance(interrupt, _Terminated) else SIGINT))


def _of_system(error: OSError) -> VllmrtError:
    """What the system refuses is no bug: a full disk, a directory that may not be read, a reader that has gone."""
    if isinstance(error, BrokenPipeError):
        # nobody listens any more; Python must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(128 + SIGPIPE) from None
    return VllmrtError(f"{error.filename}: {error.strerror}" if error.filename else str(error))


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: everything is left in order."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _report(error: VllmrtError, code: int, emit: Emit) -> dict[str, object]:
    facts = {"class": type(error).__name__, "code": int(code)}
    emit(Event("error", "error", error.message, "error", facts))
    if error.hint:
        emit(Event("hint", "hint", error.hint))
    more: dict[str, object] = {"attempts": error.attempts} if isinstance(error, ResolveError) else {}
    if isinstance(error, PreflightError | ServerFailed):
        more = error.facts
    return {"ok": False, **facts, "error": error.message, "hint": error.hint, **more}


def _report_bug(error: Exception, code: int, emit: Emit, *, verbose: bool) -> dict[str, object]:
    if verbose:
        from traceback import print_exception

        print_exception(error)
    fault = f"{type(error).__name__}: {error}"
    emit(Event("bug", "bug", f"{fault}\nplease report it with what the same command prints with -v", "error"))
    return {"ok": False, "code": int(code), "class": "bug", "error": fault, "hint": None}
