"""The command line: ``vllmrt``."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line and exit with its status."""
    # Start-up only makes objects that stay; collecting among them takes a tenth of its time.
    gc.disable()
    from vllmrt.cli.app import run

    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    # Without the interpreter's finalisation: a plugin that hangs in its thread could hold it up, or crash it.
    os._exit(code)
