"""A real vLLM: recognised and stopped with its tree; and its engine, when the launcher was killed."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fakehub import FakeHub
from realserver import KEY, VLLMRT, Server, smoke, start, stop_whatever_is_left

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.fixture
def server(environ: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    environ = environ | {"VLLM_SKIP_GPU_CHECK": "1"}
    started = start([str(VLLMRT), "up", "--", "--enforce-eager"], environ, tmp_path / "log")
    try:
        smoke(started)
        yield started
    finally:
        stop_whatever_is_left(started)


def preflight(server: Server, *args: str) -> dict[str, Any]:
    port = server.url.rpartition(":")[2]
    command = [VLLMRT, "preflight", "--json", "--port", port, *args]
    done = subprocess.run(command, env=server.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def orphans(server: Server, *args: str) -> list[dict[str, Any]]:
    """Return those of this server; another test may have some too."""
    found = preflight(server, *args)["orphans"]
    ours = {line.split()[0] for line in server.in_session()}
    return [one for one in found if str(one["pid"]) in ours]


def test_a_real_vllm_is_stopped_with_all_that_it_started(server: Server) -> None:
    told = preflight(server, "--dry-run")
    assert (told["port_action"], told["pids"]) == ("would_stop", [server.process.pid])
    assert len(server.in_session()) > 1
    answer = preflight(server)
    assert (answer["port_action"], answer["reclaimed_roots"]) == ("stopped", [server.process.pid])
    assert server.process.wait(10) is not None
    assert server.in_session() == []


def test_an_engine_whose_launcher_was_killed_is_found_and_stopped(server: Server) -> None:
    assert orphans(server, "--dry-run", "--reap-orphans") == []  # its launcher lives
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    deadline = time.monotonic() + 20
    while not (found := orphans(server)) and time.monotonic() < deadline:
        time.sleep(0.2)
    engine = next(one for one in found if one["title"].startswith("VLLM::EngineCore"))
    assert engine["resident"] > 200 * 1024 * 1024
    assert 0 < engine["age"] < 400
    answer = preflight(server, "--reap-orphans")
    assert engine["pid"] in answer["reaped_orphans"]
    left = [line for line in server.in_session() if "VLLM::" in line]
    assert left == []


def test_a_real_vllm_behind_the_preflight(environ: dict[str, str], tmp_path: Path) -> None:
    """Killed with -9, vllmrt leaves nothing of it behind."""
    environ = environ | {"VLLM_START_BIND_TIMEOUT": "240"}
    command = [str(VLLMRT), "preflight", "--", str(VLLMRT), "up", "--", "--enforce-eager"]
    server = start(command, environ, tmp_path / "log")
    try:
        smoke(server)
        assert "the command listens on" in Path(server.log).read_text()
        server.process.kill()
        server.process.wait(10)
        deadline = time.monotonic() + 40
        while server.in_session() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert server.in_session() == []
    finally:
        stop_whatever_is_left(server)


def test_the_old_server_answers_until_the_new_model_is_whole(server: Server, tmp_path: Path) -> None:
    """A model that cannot be had costs nothing; one that comes slowly is fetched beside the server that it replaces."""
    from vllmrt_model_tiny import __path__ as tiny

    with FakeHub() as hub:
        hub.add("acme/tiny", Path(tiny[0]))
        hub.fault("", origin="cdn", times=-1, rate=400_000)
        environ = server.environ | {"HF_ENDPOINT": hub.endpoint, "VLLM_MODEL_SOURCES": "hf-hub"}
        environ["VLLM_MODELS_DIR"] = str(tmp_path / "models")
        failed = subprocess.run([VLLMRT, "up", "acme/gone"], env=environ, capture_output=True, text=True, check=False)
        assert failed.returncode == 10, failed.stderr
        assert models(server) == ["vllmrt/tiny"]
        successor = start([str(VLLMRT), "up", "acme/tiny", "--", "--enforce-eager"], environ, tmp_path / "successor")
        try:
            answered = 0
            while sum(hub.sent.values()) < 3_500_000:
                assert successor.process.poll() is None, successor.log.read_text()
                assert models(server) == ["vllmrt/tiny"]
                answered += 1
                time.sleep(0.2)
            assert answered > 2
            assert server.process.wait(60) is not None
            stopped, deadline = f"was reclaimed from process {server.process.pid} (", time.monotonic() + 30
            while stopped not in (log := successor.log.read_text()):
                assert time.monotonic() < deadline, log
                time.sleep(0.05)
            assert server.in_session() == []
            smoke(successor)
            assert models(successor) == ["acme/tiny"]
        finally:
            stop_whatever_is_left(successor)


def models(server: Server) -> list[str]:
    """Return what the server says that it serves."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        return [model["id"] for model in json.load(connection.getresponse())["data"]]
    finally:
        connection.close()
