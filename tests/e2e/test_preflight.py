"""A real vLLM: recognised and stopped with its tree; and its engine, when the launcher was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from realserver import VLLMRT, Server, smoke, start, stop_whatever_is_left

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


def test_a_real_vllm_is_stopped_with_all_that_it_started(server: Server) -> None:
    told = preflight(server, "--dry-run")
    assert (told["port_action"], told["pids"]) == ("would_stop", [server.process.pid])
    assert len(server.in_session()) > 1
    answer = preflight(server)
    assert (answer["port_action"], answer["reclaimed_roots"]) == ("stopped", [server.process.pid])
    assert server.process.wait(10) is not None
    assert server.in_session() == []


def test_an_engine_whose_launcher_was_killed_is_found_and_stopped(server: Server) -> None:
    assert preflight(server, "--dry-run", "--reap-orphans")["orphans"] == []  # its launcher lives
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    deadline = time.monotonic() + 20
    while not (found := preflight(server)["orphans"]) and time.monotonic() < deadline:
        time.sleep(0.2)
    engine = next(one for one in found if one["title"].startswith("VLLM::EngineCore"))
    assert any(line.split()[0] == str(engine["pid"]) for line in server.in_session())
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
