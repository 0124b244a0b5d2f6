"""The Flox example: hook, service and demos, run by bash as Flox runs them, with a real vLLM."""

from __future__ import annotations

import shutil
import signal
import tomllib
from typing import TYPE_CHECKING

import pytest
from modelkit import move_to_hub_cache
from realserver import KEY, ROOT, VLLMRT, free_port, left_of, smoke, start, stop, stop_whatever_is_left

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EXAMPLE = ROOT / "examples" / "flox"
MANIFEST = tomllib.loads((EXAMPLE / ".flox" / "env" / "manifest.toml").read_text())
HOOK = MANIFEST["hook"]["on-activate"]


@pytest.fixture
def activated(environ: dict[str, str], engine: str, tmp_path: Path) -> dict[str, str]:
    """What Flox sets before it runs the hook, in an environment that has vllmrt and vLLM."""
    programs = tmp_path / "env" / "bin"
    programs.mkdir(parents=True)
    (programs / "vllmrt").symlink_to(VLLMRT)
    (programs / "vllm").symlink_to(engine)
    kept = {name: value for name, value in environ.items() if name != "VLLMRT_VLLM"}
    return kept | {
        "PATH": f"{programs}:/usr/bin:/bin",
        "FLOX_ENV": str(tmp_path / "env"),
        "FLOX_ENV_CACHE": str(tmp_path / "cache"),
        "FLOX_ENV_PROJECT": str(tmp_path),
        "VLLM_PREFLIGHT_LOCKFILE": str(tmp_path / "lock"),
        "VLLM_PORT": str(free_port()),
    }


def test_the_service_serves(activated: dict[str, str], tmp_path: Path) -> None:
    command = MANIFEST["services"]["vllm"]["command"]
    server = start(["bash", "-c", f"{HOOK}\n{command}"], activated, tmp_path / "log")
    try:
        smoke(server)
        assert (tmp_path / "cache" / "vllm-config.yaml").exists()
        assert KEY not in server.log.read_text()
        assert stop(server, signal.SIGTERM) == []
    finally:
        stop_whatever_is_left(server)


@pytest.fixture
def cached(tmp_path: Path) -> dict[str, str]:
    """A Hugging Face cache with a model."""
    from vllmrt_model_tiny import __path__ as tiny

    model = tmp_path / "model"
    shutil.copytree(tiny[0], model, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    move_to_hub_cache(model, tmp_path / "hf" / "hub")
    return {"HF_HOME": str(tmp_path / "hf")}


def test_the_demo_of_the_bundled_model(activated: dict[str, str], tmp_path: Path) -> None:
    told = demo(["bundled-model.sh"], activated, tmp_path)
    assert "vllmrt_model_tiny" in told


def test_the_demo_of_a_cached_model(activated: dict[str, str], cached: dict[str, str], tmp_path: Path) -> None:
    told = demo(["cached-model.sh", "org/name"], activated | cached, tmp_path)
    assert f"{cached['HF_HOME']}/hub/models--org--name/snapshots/" in told


def test_a_demo_whose_server_cannot_start_does_not_wait(activated: dict[str, str], tmp_path: Path) -> None:
    server = start([str(EXAMPLE / "cached-model.sh"), "org/name"], activated, tmp_path / "log")
    try:
        assert server.process.wait(60) == 1
        assert "the server ended with status 10" in server.log.read_text()
        assert left_of(server) == []
    finally:
        stop_whatever_is_left(server)


def demo(command: list[str], environ: dict[str, str], tmp_path: Path) -> str:
    """Activate, run a demo, and see that it passes and leaves nothing behind; return what it printed."""
    environ = environ | {"DEMO_PORT": str(free_port())}
    words = [str(EXAMPLE / command[0]), *command[1:], "--", "--enforce-eager"]
    script = f'{HOOK}\nexec "$@"'
    server = start(["bash", "-c", script, "flox", *words], environ, tmp_path / "log")
    try:
        status = server.process.wait(400)
        told = server.log.read_text()
        assert status == 0, told[-6000:]
        assert left_of(server) == []
    finally:
        stop_whatever_is_left(server)
    for check in ("health", "models", "completion", "chat", "streaming", "metrics"):
        assert [line for line in told.splitlines() if line.split()[:2] == [check, "ok"]], told[-6000:]
    return told
