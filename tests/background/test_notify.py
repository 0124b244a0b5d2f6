"""sd_notify(3): what a service manager is told, over a real socket."""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from standin import alive, children, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from background.conftest import User


class Manager:
    """Takes what a service manager is told."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.told: list[tuple[float, list[str]]] = []

    def hear(self, seconds: float = 0) -> list[str]:
        """Return every line so far; wait for the next message."""
        select.select([self.socket], [], [], seconds)
        while select.select([self.socket], [], [], 0)[0]:
            self.told.append((time.monotonic(), self.socket.recv(65536).decode().split("\n")))
        return [line for _, lines in self.told for line in lines]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@vllmrt-test-{os.getpid()}-{time.time()}")
    yield made
    made.socket.close()


def watchers(pid: int) -> list[int]:
    """Return the watchers of a server."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else []
            if b"vllmrt.background.notify" in words and str(pid).encode() in words and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def test_it_is_ready_when_the_server_is_healthy_and_no_sooner(user: User, manager: Manager) -> None:
    with user.start("up", "acme/llama", NOTIFY_SOCKET=manager.address, LOADS="2") as server:
        wait_for(lambda: f"MAINPID={server.pid}" in manager.hear(0.1))
        assert "STATUS=vLLM loads acme/llama" in manager.hear()
        assert any(line.startswith("STATUS=local: ") for line in manager.hear())
        assert "READY=1" not in manager.hear()
        assert user.run("smoke").code == 1  # nothing listens yet
        wait_for(lambda: "READY=1" in manager.hear(0.1))
        assert manager.told[-1][1] == [
            "READY=1",
            f"MAINPID={server.pid}",
            f"STATUS=serving acme/llama on http://127.0.0.1:{user.port}",
        ]
        wait_for(lambda: not watchers(server.pid))
        assert children(server.pid) == []  # not even a dead one
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{server.pid}/environ").read_bytes()
        server.kill()


def test_a_server_in_the_background_is_told_of_as_the_main_process(user: User, manager: Manager) -> None:
    pid = user.detach("--wait", NOTIFY_SOCKET=manager.address).json["pid"]
    wait_for(lambda: "READY=1" in manager.hear(0.1))
    assert f"MAINPID={pid}" in manager.hear()


def test_the_watcher_ends_with_a_server_that_dies(user: User, manager: Manager) -> None:
    with user.start("up", "acme/llama", NOTIFY_SOCKET=manager.address, LOADS="1", DIES="1") as server:
        wait_for(lambda: watchers(server.pid))
        assert server.wait(20) == 1
        wait_for(lambda: not watchers(server.pid))
    assert "READY=1" not in manager.hear()


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody-listens", "vsock:2:1234", "/" + "x" * 200])
def test_a_manager_that_cannot_be_told_stops_nothing(user: User, address: str) -> None:
    assert user.detach("--wait", NOTIFY_SOCKET=address).code == 0


def test_a_dry_run_watches_nothing(user: User, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "dry"))
    assert user.run("up", "acme/llama", "--dry-run", NOTIFY_SOCKET=manager.address).code == 0
    assert not [line for line in manager.hear() if line.startswith(("MAINPID", "READY"))]
    assert user.processes() == []
    manager.socket.close()
