"""A real vLLM, started as a new user starts it: with ``make up``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
VLLMRT = ROOT / ".venv" / "bin" / "vllmrt"
KEY = "e2e-key-5f1c"

# What the old scripts exported: none of it may reach vLLM as an unknown variable.
OLD_EXPORTS = {
    "VLLM_TENSOR_PARALLEL_SIZE": "1",
    "VLLM_PIPELINE_PARALLEL_SIZE": "1",
    "VLLM_KV_CACHE_DTYPE": "auto",
    "VLLM_MAX_NUM_BATCHED_TOKENS": "2048",
    "VLLM_SKIP_GPU_CHECK": "1",
    "VLLM_HOST": "127.0.0.1",
}


class Server(NamedTuple):
    """A running server and how it was started."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    environ: dict[str, str]

    def in_session(self) -> list[str]:
        """Return the live processes that the start has left in its session, as pid and title."""
        return [line for line in _processes() if line.split()[1] == str(self.process.pid)]


def _processes() -> list[str]:
    listing = subprocess.run(["ps", "-eo", "pid=,sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if not line.split()[2].startswith("Z")]


@pytest.fixture(scope="session")
def engine() -> str:
    """The vllm to test with; `make e2e` names it."""
    found = os.environ.get("VLLMRT_TEST_ENGINE") or shutil.which("vllm") or str(ROOT / ".venv-vllm" / "bin" / "vllm")
    if not os.access(found, os.X_OK):
        pytest.skip("no vllm: make engine")
    return found


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory, engine: str) -> dict[str, str]:
    """The environment of a new user: an empty home, and no variable of an earlier life.

    What vLLM has learnt of a model's classes is kept between the tests: each start would else import them once more.
    """
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM", "HF_", "XDG_"))}
    return kept | {
        "HOME": str(home),
        "VLLMRT_VLLM": engine,
        "VLLM_API_KEY": KEY,
        "VLLM_CACHE_ROOT": str(tmp_path_factory.getbasetemp() / "vllm-cache"),
        "VLLM_PREFLIGHT_LOCKFILE": str(home / "lock"),
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(command: list[str], environ: dict[str, str], log: Path) -> Server:
    """Start a server in a session of its own, so that everything it leaves behind can be found.

    It gets a port that is free, unless `environ` has one.
    """
    environ = {"VLLM_PORT": str(free_port())} | environ
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=output, start_new_session=True)
    return Server(process, f"http://127.0.0.1:{environ['VLLM_PORT']}", log, environ)


def smoke(server: Server) -> dict[str, Any]:
    """Wait until the server is healthy, ask it what clients ask, and return the report; every line has to be green."""
    command = [VLLMRT, "smoke", "--url", server.url, "--wait", "240", "--json"]
    done = subprocess.run(command, env=server.environ, capture_output=True, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["ok"], (report, server.log.read_text()[-4000:])
    assert done.returncode == 0
    return report


def stop(server: Server, number: signal.Signals) -> list[str]:
    """Signal the whole foreground group, as a terminal does, and return what still lives after 30 s."""
    os.killpg(server.process.pid, number)
    server.process.wait(60)
    return left_of(server)


def left_of(server: Server) -> list[str]:
    """Return what still lives after 30 s."""
    deadline = time.monotonic() + 30
    while (left := server.in_session()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def stop_whatever_is_left(server: Server) -> None:
    """End what a failed test has left, by pid."""
    for line in server.in_session():
        with suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    server.process.wait(10)
