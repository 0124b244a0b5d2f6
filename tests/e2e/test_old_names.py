"""The line of the old service, unchanged, under bash against a real vLLM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import envreader
import pytest
from realserver import OLD_EXPORTS, VLLMRT, smoke, start, stop_whatever_is_left

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

LINE = "vllm-preflight && vllm-resolve-model && vllm-serve"


@pytest.fixture
def exported(environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """What the hook of the old environment exports, with the tiny model as one of the user's own."""
    from vllmrt_model_tiny import __path__ as tiny

    shutil.copytree(tiny[0], tmp_path / "models" / "mine", ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    cache = tmp_path / "cache"
    cache.mkdir()
    # the user's copy of the config, edited: compiling takes a CPU minutes
    (cache / "vllm-config.yaml").write_text("gpu-memory-utilization: 0.85\nenforce-eager: true\n")
    return environ | {
        **OLD_EXPORTS,
        "PATH": f"{VLLMRT.parent}:{os.environ['PATH']}",
        "FLOX_ENV": str(tmp_path / "flox"),
        "FLOX_ENV_CACHE": str(cache),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "prometheus"),
        "VLLM_MODEL": "mine",
        "VLLM_MODEL_ORG": "acme",
        "VLLM_MODELS_DIR": str(tmp_path / "models"),
        "VLLM_MODEL_SOURCES": "flox,local,hf-cache",
        "VLLM_SERVED_MODEL_NAME": "Mine",
        "VLLM_PREFIX_CACHING": "false",
        "VLLM_MAX_MODEL_LEN": "512",
    }


def test_the_old_line_serves_and_the_next_preflight_reclaims(exported: dict[str, str], tmp_path: Path) -> None:
    server = start(["bash", "-c", LINE], exported, tmp_path / "log")
    try:
        checks = {check["name"]: check for check in smoke(server)["checks"]}
        assert checks["chat"]["ok"]
        (env_file,) = (tmp_path / "cache").glob("vllm-model.*.env")
        assert envreader.read(env_file.read_text())["VLLM_MODEL_PATH"] == str(tmp_path / "models" / "mine")
        log = server.log.read_text()
        assert "Unknown vLLM environment variable" not in log
        assert exported["VLLM_API_KEY"] not in log

        asked = server.environ | {"VLLM_PREFLIGHT_JSON": "1"}
        done = subprocess.run(["vllm-preflight"], env=asked, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["port_action"], len(told["reclaimed_roots"])) == ("stopped", 1)
        assert server.process.wait(20) is not None
        assert server.in_session() == []
    finally:
        stop_whatever_is_left(server)
