"""From a Hub, and from S3, to a verified directory, to a real vLLM, to an answer."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from bigmodel import make_big_model
from fakehub import FakeHub
from realserver import VLLMRT, start, stop, stop_whatever_is_left

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vllmrt_model_tiny import __path__ as tiny

    return make_big_model(tmp_path_factory.mktemp("big") / "model", Path(tiny[0]))


def test_a_model_goes_from_the_hub_to_an_answer(environ: dict[str, str], tmp_path: Path, model: Path) -> None:
    token = "hf_e2e_0d41"
    with FakeHub() as hub:
        hub.tokens[token] = {"acme/big"}
        hub.add("acme/big", model, private=True)
        environ = environ | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": token,
            "VLLM_MODELS_DIR": str(tmp_path / "models"),
            "VLLM_MODEL_SOURCES": "local,hf-hub",
        }
        server = start([str(VLLMRT), "up", "acme/big", "--", "--enforce-eager"], environ, tmp_path / "log")
        try:
            command = [VLLMRT, "smoke", "--url", server.url, "--wait", "240", "--json"]
            report = json.loads(subprocess.run(command, env=environ, capture_output=True, check=False).stdout)
            assert report["ok"], (report, server.log.read_text()[-4000:])
            command_line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().split(b"\0")
            assert str(tmp_path / "models" / "big").encode() in command_line
            assert stop(server, signal.SIGTERM) == []
        finally:
            stop_whatever_is_left(server)
    assert token not in server.log.read_text()
    for file in model.iterdir():
        assert (tmp_path / "models" / "big" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(tmp_path / "models")
