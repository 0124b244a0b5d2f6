"""A real vLLM in the background: it is ready when it has made a token, and nothing is left of it when it is down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from realserver import KEY, VLLMRT, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def at(environ: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment, with a port and a cache of its own; what a failed test leaves in the background is ended."""
    environ = environ | {"VLLM_PORT": str(free_port()), "FLOX_ENV_CACHE": str(tmp_path), "VLLM_SKIP_GPU_CHECK": "1"}
    yield environ
    kept = tmp_path / "background" / f"{environ['VLLM_PORT']}.json"
    for pid in session(json.loads(kept.read_bytes())["pid"]) if kept.exists() else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def vllmrt(environ: dict[str, str], *args: str, code: int = 0) -> Any:
    done = subprocess.run(
        [VLLMRT, args[0], "--json", *args[1:]], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def session(pid: int) -> list[int]:
    """Return the live processes of a session."""
    listing = subprocess.run(["ps", "-eo", "pid=,sid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [int(one) for one, leader, state in rows if leader == str(pid) and not state.startswith("Z")]


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while session(pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not session(pid)


def start(environ: dict[str, str]) -> int:
    told = vllmrt(environ, "up", "--detach", "--wait", "--", "--enforce-eager")
    assert told["ready"]
    assert KEY not in json.dumps(told)
    pid: int = told["pid"]
    return pid


def test_it_is_started_looked_at_and_stopped(at: dict[str, str], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        pid = start(at | {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        said = ""
        while "READY=1" not in said:
            said = manager.recv(65536).decode()
        assert f"MAINPID={pid}" in said.splitlines()
    assert vllmrt(at, "status")["state"] == "healthy"
    assert vllmrt(at, "smoke")["ok"]
    assert KEY not in (tmp_path / "background" / f"{at['VLLM_PORT']}.log").read_text()
    running = session(pid)
    assert len(running) > 1
    stopped = vllmrt(at, "down")
    assert (stopped["was"], stopped["alive"]) == (pid, [])
    assert set(running) <= set(stopped["signalled"])
    assert gone(pid)
    assert vllmrt(at, "status", code=1)["state"] == "none"
    assert vllmrt(at, "down")["signalled"] == []


def test_an_engine_whose_launcher_was_killed_is_stopped_too(at: dict[str, str]) -> None:
    pid = start(at)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while pid in session(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = session(pid)
    assert left
    assert vllmrt(at, "status", code=1)["state"] == "ended"
    stopped = vllmrt(at, "down")
    assert stopped["signalled"]
    assert set(stopped["signalled"]) <= set(left)
    assert gone(pid)


def test_one_that_cannot_start_says_why(at: dict[str, str]) -> None:
    args = ("--", "--enforce-eager", "--max-num-seqs", "0")
    told = vllmrt(at, "up", "--detach", "--wait", *args, code=21)
    assert told["status"] not in {0, None}
    assert any("max_num_seqs" in line for line in told["lines"])
