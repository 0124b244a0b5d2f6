"""From a Hub, and from S3, to a verified directory, to a real vLLM, to an answer."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bigmodel import make_big_model
from fakehub import FakeHub
from realserver import VLLMRT, smoke, start, stop, stop_whatever_is_left

if TYPE_CHECKING:
    from s3server import Bucket, S3Server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vllmrt_model_tiny import __path__ as tiny

    return make_big_model(tmp_path_factory.mktemp("big") / "model", Path(tiny[0]))


def serve_and_compare(environ: dict[str, str], scratch: Path, model: Path) -> str:
    """Start the model, ask it everything, stop it; return what was logged."""
    environ = environ | {"VLLM_MODELS_DIR": str(scratch / "models")}
    server = start([str(VLLMRT), "up", "acme/big", "--", "--enforce-eager"], environ, scratch / "log")
    try:
        smoke(server)
        command_line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
        assert str(scratch / "models" / "big").encode() in command_line
        assert stop(server, signal.SIGTERM) == []
    finally:
        stop_whatever_is_left(server)
    for file in model.iterdir():
        assert (scratch / "models" / "big" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(scratch / "models")
    return server.log.read_text()


def test_a_model_goes_from_the_hub_to_an_answer(environ: dict[str, str], tmp_path: Path, model: Path) -> None:
    token = "hf_e2e_0d41"
    with FakeHub() as hub:
        hub.tokens[token] = {"acme/big"}
        hub.add("acme/big", model, private=True)
        environ = environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token, "VLLM_MODEL_SOURCES": "local,hf-hub"}
        log = serve_and_compare(environ, tmp_path, model)
    assert token not in log


def test_a_model_goes_from_s3_to_an_answer(
    environ: dict[str, str], tmp_path: Path, model: Path, s3_server: S3Server, bucket: Bucket
) -> None:
    bucket.put_tree("models/big/", model)
    bucket.put("models/big-other/config.json", b"{}")
    credentials = s3_server.environ(tmp_path)
    settings = {
        "R2_BUCKET": bucket.name,
        "R2_MODELS_PREFIX": "models",
        "R2_ENDPOINT_URL": s3_server.endpoint,
        "VLLM_MODEL_SOURCES": "local,r2",
    }
    log = serve_and_compare(environ | dict(credentials) | settings, tmp_path, model)
    assert credentials["AWS_SECRET_ACCESS_KEY"] not in log
