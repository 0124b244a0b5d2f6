"""``vllm-preflight``: reclaims the port, checks the GPUs, and may start a command behind that."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vllmrt.cli import run_process
from vllmrt.cli.checks import check_and_start
from vllmrt.cli.compat.script import HELP, load, run_script
from vllmrt.cli.reporting import asks_for_json
from vllmrt.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmrt.errors import VllmrtError

_USAGE = """\
usage: vllm-preflight [--dry-run] [[--] command [argument ...]]

Frees VLLM_PORT on VLLM_HOST of a stale vLLM, checks the GPUs, then starts the command, if there is one. Everything else
is set by variables: docs/coming-from-vllm-flox-runtime.md. Exit codes: 0 free or freed, 2 the port is held by what is
not vLLM, 3 by another user's vLLM, 4 by what cannot be seen, 5 it could not be freed, 1 anything else.
"""
READS = (
    *("preflight", "plugins", "host", "port"),
    *("tensor_parallel_size", "pipeline_parallel_size", "vllm", "config_file", "flox_env_cache"),
)
"""The second line: whether the GPUs are enough."""


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    words = list(argv)
    flags = {"dry_run": "1"} if words[:1] == ["--dry-run"] else {}
    words = words[len(flags) :]
    if not HELP.isdisjoint(words[:1]):
        sys.stdout.write(_USAGE)
        return 0
    extra = tuple(words[1:] if words[:1] == ["--"] else words)
    return run_script(
        check_and_start,
        lambda: load(READS, os.environ, **flags),
        _code,
        json=asks_for_json("preflight_json"),
        extra=extra,
    )


def main() -> None:
    """Run the script as the whole process."""
    run_process(run)


def _code(error: VllmrtError | None) -> int:
    code = ExitCode.GENERAL if error is None else error.exit_code
    return code if code <= ExitCode.PORT_STILL_BOUND else ExitCode.GENERAL
