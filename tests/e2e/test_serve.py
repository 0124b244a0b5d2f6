"""``vllmrt resolve`` and ``vllmrt serve`` as two steps, with a model of one's own, against a real vLLM."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from realserver import VLLMRT, smoke, start, stop, stop_whatever_is_left

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def test_a_local_model_is_served_from_its_env_file(environ: dict[str, str], tmp_path: Path) -> None:
    shipped = json.loads(
        subprocess.run([VLLMRT, "resolve", "--json"], env=environ, capture_output=True, text=True, check=True).stdout
    )["path"]
    environ = environ | {"VLLM_MODELS_DIR": str(tmp_path / "models"), "VLLM_MODEL_SOURCES": "local,package"}
    shutil.copytree(shipped, tmp_path / "models" / "mine", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([VLLMRT, "resolve", "acme/mine"], env=environ, check=True)

    server = start([str(VLLMRT), "serve", "acme/mine", "--", "--enforce-eager"], environ, tmp_path / "log")
    try:
        smoke(server)
        command_line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
        assert str(tmp_path / "models" / "mine").encode() in command_line
        assert stop(server, signal.SIGTERM) == []
    finally:
        stop_whatever_is_left(server)
