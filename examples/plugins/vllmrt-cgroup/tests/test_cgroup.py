"""The conformance of a classifier, and real control groups: a server in one of them keeps its port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from vllmrt_cgroup import groups, is_in

from vllmrt.procfs import ProcFs
from vllmrt.testing import ClassifierConformance
from vllmrt.types import ProcessInfo, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

HIERARCHIES = ("", "unified", "systemd")
"""Where systemd keeps its units, from version 2 of control groups back to version 1."""
SERVER = """\
import socket, sys, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
time.sleep(100)
"""


class Server:
    """What looks like a vLLM and listens; it ends with the test."""

    def __init__(self, folder: Path) -> None:
        script = folder / "vllm"
        script.write_text(SERVER)
        self.process = subprocess.Popen([sys.executable, script, "serve", "model"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = self.process.stdout.readline().strip()

    @property
    def info(self) -> ProcessInfo:
        """The process, as vllmrt sees it."""
        found = ProcFs().info(self.process.pid)
        assert found is not None
        return found

    def preflight(self, folder: Path, protected: str) -> dict[str, Any]:
        """Ask vllmrt for the server's port."""
        vllmrt = Path(sys.executable).with_name("vllmrt")
        environ = {**os.environ, "PROTECTED_CGROUPS": protected, "VLLM_SKIP_GPU_CHECK": "1", "HOME": str(folder)}
        environ["VLLM_PREFLIGHT_LOCKFILE"] = str(folder / "lock")
        command = [str(vllmrt), "preflight", "--port", self.port, "--json"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer | {"status": done.returncode}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.process.kill()
    server.process.communicate()


@pytest.fixture
def unit(server: Server) -> Iterator[str]:
    """Put the server below a control group that is called like a unit; return the unit's name."""
    name = f"vllm-test-{os.getpid()}.service"
    roots = [Path("/sys/fs/cgroup", one) for one in HIERARCHIES]
    root = next((one for one in roots if (one / "cgroup.procs").exists() and os.access(one, os.W_OK)), None)
    if root is None:
        pytest.skip("this user may make no control group")
    worker = root / name / "worker"
    worker.mkdir(parents=True)
    (worker / "cgroup.procs").write_text(str(server.process.pid))
    yield name
    server.process.kill()
    server.process.wait()
    for group in (worker, worker.parent):
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a group, which is busy for a moment after its last process has ended."""
    deadline = time.monotonic() + 5
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            assert time.monotonic() < deadline, f"{group} is still busy"
            time.sleep(0.02)


class TestConformance(ClassifierConformance):
    name = "cgroup"

    @pytest.fixture
    def judged(
        self, server: Server, unit: str, monkeypatch: pytest.MonkeyPatch
    ) -> list[tuple[ProcessInfo, Verdict | None]]:
        monkeypatch.setenv("PROTECTED_CGROUPS", f"other.service, {unit}")
        ours = ProcFs().info(os.getpid())
        assert ours is not None
        return [(server.info, Verdict.PROTECTED), (ours, None)]


def test_a_protected_server_keeps_its_port(server: Server, unit: str, tmp_path: Path) -> None:
    answer = server.preflight(tmp_path, unit)
    assert (answer["status"], server.process.poll()) == (2, None)
    answer = server.preflight(tmp_path, "another.service")
    assert (answer["status"], answer["port_action"]) == (0, "stopped")
    assert server.process.wait(10) is not None


def test_a_process_that_has_ended_is_in_no_group(server: Server) -> None:
    assert groups(server.process.pid)
    server.process.kill()
    server.process.wait()
    assert groups(server.process.pid) == []


IN = [
    ("/system.slice/vllm.service", "vllm.service", True),
    ("/system.slice/vllm.service/worker", "vllm.service", True),
    ("/system.slice/vllm.service", "system.slice", True),
    ("/system.slice/vllm.service.d", "vllm.service", False),
    ("/user.slice/my-vllm.service", "vllm.service", False),
    ("/kubepods/pod1/abc", "/kubepods", True),
    ("/kubepods", "/kubepods/", True),
    ("/kubepods-other", "/kubepods", False),
    ("/a/kubepods", "/kubepods", False),
    ("/anything", "/", True),
    ("/", "vllm.service", False),
]


@pytest.mark.parametrize(("group", "protected", "expected"), IN)
def test_units_are_found_by_name_and_groups_by_path(group: str, protected: str, expected: bool) -> None:  # noqa: FBT001
    assert is_in(group, protected) is expected
