"""The pod that `vllmrt render k8s` describes, with a real vLLM: any user, a read-only root, a read-only store."""

from __future__ import annotations

import http.client
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from podkit import Pod, image
from realserver import KEY, VLLMRT, free_port

if TYPE_CHECKING:
    from typing import Any

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def spec(environ: dict[str, str]) -> dict[str, Any]:
    command = [VLLMRT, "render", "k8s", "vllmrt/tiny", "--port", str(free_port()), "--", "--enforce-eager"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert KEY not in done.stdout + done.stderr
    (server,) = (one for one in yaml.safe_load_all(done.stdout) if one["kind"] == "Deployment")
    return server["spec"]["template"]["spec"]


def test_a_pod_of_any_user_serves(spec: dict[str, Any], engine: str, environ: dict[str, str], tmp_path: Path) -> None:
    (init,), (server,) = spec["initContainers"], spec["containers"]
    port = server["ports"][0]["containerPort"]
    budget = server["startupProbe"]["failureThreshold"] * server["startupProbe"]["periodSeconds"]
    programs = image(tmp_path, Path(engine).resolve())
    claims = {"vllm-models": tmp_path / "models"}
    url = f"http://127.0.0.1:{port}"
    with Pod(spec, tmp_path / "pod", claims=claims, image=programs, secrets={"api-key": KEY}, user=1000650000) as pod:
        status, told = pod.run(init)
        assert status == 0, told
        log = tmp_path / "log"
        process = pod.start(server, log)
        wait_healthy(port, process, log, budget)
        done = subprocess.run([VLLMRT, "smoke", "--url", url], env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + log.read_text()[-4000:]
        assert KEY not in log.read_text()
        assert pod.stop(process, seconds=spec["terminationGracePeriodSeconds"]) in {0, 128 + 15}


def wait_healthy(port: int, process: subprocess.Popen[bytes], log: Path, budget: float) -> None:
    deadline = time.monotonic() + budget
    while True:
        assert process.poll() is None, log.read_text()[-6000:]
        assert time.monotonic() < deadline, log.read_text()[-6000:]
        with suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.5)
