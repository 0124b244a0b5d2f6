"""The model that comes with vllmrt, served from wheels alone: nothing of this checkout is in the environment."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from realserver import smoke, start, stop, stop_whatever_is_left
from wheels import dist, install  # noqa: F401 - pytest finds the fixture by its name here

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def test_a_real_vllm_serves_the_model_out_of_its_wheel(
    environ: dict[str, str],
    dist: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    programs = install(dist, tmp_path / "venv")
    environ = environ | {"VLLM_SKIP_GPU_CHECK": "1"}
    server = start([str(programs / "vllmrt"), "up", "--", "--enforce-eager"], environ, tmp_path / "log")
    try:
        smoke(server)
        words = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().decode().split("\0")
        assert any(word.startswith(str(tmp_path / "venv")) and "vllmrt_model_tiny" in word for word in words)
        assert stop(server, signal.SIGTERM) == []
    finally:
        stop_whatever_is_left(server)
