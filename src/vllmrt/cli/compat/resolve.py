"""``vllm-resolve-model``: finds and proves the model, and writes its env file."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vllmrt import pipeline
from vllmrt.cli import run_process
from vllmrt.cli.compat.script import HELP, load, require, run_script
from vllmrt.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmrt.cli.reporting import Run

_USAGE = """\
usage: vllm-resolve-model

Asks the sources in VLLM_MODEL_SOURCES for the model, proves that it is whole, and writes the env file that vllm-serve
reads. It is set by variables: VLLM_MODEL, VLLM_MODELS_DIR, VLLM_MODEL_ORG or VLLM_MODEL_ID, FLOX_ENV_CACHE or
VLLM_MODEL_ENV_FILE; docs/coming-from-vllm-flox-runtime.md has the others. Exit codes: 0 found, 1 anything else.
"""
_READS = ("model", "transfer", "stores", "plugins")


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    if not HELP.isdisjoint(argv[:1]):
        sys.stdout.write(_USAGE)
        return 0
    return run_script(_resolve, lambda: load(_READS, os.environ), lambda _: ExitCode.GENERAL, extra=tuple(argv))


def main() -> None:
    """Run the script as the whole process."""
    run_process(run)


def _resolve(run: Run) -> int:
    if run.extra:
        raise UsageError(f"vllm-resolve-model takes no argument, and was given {run.extra[0]!a}", hint="see its -h")
    given = run.layers.origins
    needed = {"model": "", "models_dir": ""}
    if "model_id" not in given:
        needed["model_org"] = ", and neither is VLLM_MODEL_ID"
    if "model_env_file" not in given:
        needed["flox_env_cache"] = ", and neither is VLLM_MODEL_ENV_FILE"
    require(run.layers, needed)
    pipeline.resolve(run.layers, run.emit)
    return 0
