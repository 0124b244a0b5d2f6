"""Drivers that are made up: a ``libnvidia-ml.so.1`` that ``cc`` makes, and an ``nvidia-smi`` that is a script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

STUB = Path(__file__).with_name("gpu") / "nvml_stub.c"
CHECK = """
import json, os, sys, time
from vllmrt import gpu, layers
from vllmrt.errors import VllmrtError
from vllmrt.gpu.report import refuse
from vllmrt.host import PluginHost

start = time.monotonic()
try:
    settings = layers.load(os.environ).settings
    report = gpu.check(settings, PluginHost(settings))
    told = report.as_json()
    told["imported"] = "pynvml" in sys.modules
    told["error"] = told["hint"] = None
    refuse(report)
except VllmrtError as error:
    told = {**globals().get("told", {}), "error": str(error), "hint": error.hint, "code": error.exit_code}
told["seconds"] = time.monotonic() - start
print(json.dumps(told))
"""
KEPT = ("HOME", "LANG", "TMPDIR", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")


def compile_nvml(directory: Path, *flags: str) -> Path:
    """Make ``libnvidia-ml.so.1`` in a directory, which is returned; for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", *flags, "-o", str(library), str(STUB)]
    subprocess.run(command, check=True)
    return directory


def write_smi(directory: Path, script: str) -> Path:
    """Make ``nvidia-smi`` in a directory, which is returned; for PATH."""
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return directory


def run_check(environ: Mapping[str, str], *, library: Path | None = None, smi: Path | None = None) -> dict[str, Any]:
    """Run `vllmrt.gpu.check` in a Python of its own, since the loader reads LD_LIBRARY_PATH once.

    Args:
        environ: variables of the settings and of the stubs.
        library: the directory of a `compile_nvml`.
        smi: the directory of a `write_smi`.

    Returns:
        The JSON fields of the report, and ``error``, ``hint``, ``code``, ``seconds``, ``imported`` (pynvml).
    """
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    kept["PATH"] = f"{smi}:/usr/bin:/bin" if smi else "/usr/bin:/bin"
    if library:
        kept["LD_LIBRARY_PATH"] = str(library)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHECK],
        env={**kept, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1, "a probe printed"
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def is_gone(pid: int) -> bool:
    """Wait until a process has ended; whoever inherits it may take his time to reap it."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False
