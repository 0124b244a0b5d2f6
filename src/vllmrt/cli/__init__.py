"""The command line: ``vllmrt``."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Status(SystemExit):
    """An exit status that is meant: 2 is the preflight's or a child's then, and not click's for a wrong usage."""


def main() -> None:
    """Run the command line and exit with its status."""

    def run(argv: Sequence[str]) -> int:
        from vllmrt.cli import app

        return app.run(argv)

    run_process(run)


def run_process(run: Callable[[Sequence[str]], int]) -> None:
    """Run a program of ours as the whole process, and exit with the status that it returns."""
    # Start-up only makes objects that stay; collecting among them takes a tenth of its time.
    gc.disable()
    _fill_closed_streams()
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1  # what was to be said was not
    # Without the interpreter's finalisation: a plugin that hangs in its thread could hold it up, or crash it.
    os._exit(code)


def _fill_closed_streams() -> None:
    """Give a process that was started with closed streams others: else the next file that is opened becomes stdout."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115 - for as long as the process lives
