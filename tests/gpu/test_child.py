"""A child process that hangs, crashes or talks: it never costs more than its answer."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gpukit import is_gone

from vllmrt.gpu import child
from vllmrt.types import Skip

if TYPE_CHECKING:
    from collections.abc import Callable


def reason(call: Callable[[], bytes], seconds: float = 5) -> str:
    answer = child.run(call, seconds)
    assert isinstance(answer, Skip), answer[:80]
    return answer.reason


def forever() -> bytes:
    while True:
        signal.pause()


def ignoring() -> bytes:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    return forever()


def test_the_answer_comes_back() -> None:
    parent = os.getpid()

    def call() -> bytes:
        return f"{os.getpid()} {os.getppid()}".encode()

    line = child.run(call, 5)
    assert isinstance(line, bytes)
    pid, ppid = map(int, line.split())
    assert (pid != parent, ppid) == (True, parent)


def test_a_large_answer_comes_back_whole() -> None:
    assert child.run(lambda: b"x" * (child.LARGEST - 1), 5) == b"x" * (child.LARGEST - 1) + b"\n"


@pytest.mark.parametrize("size", [child.LARGEST, 50 << 20])
def test_an_answer_that_is_too_large_is_none(size: int) -> None:
    assert reason(lambda: b"x" * size) == "an answer of more than 1 MiB"


@pytest.mark.parametrize("call", [forever, ignoring])
def test_a_child_that_hangs_is_killed(call: Callable[[], bytes], tmp_path: Path) -> None:
    def noted() -> bytes:
        (tmp_path / "pid").write_text(str(os.getpid()))
        return call()

    start = time.monotonic()
    assert reason(noted, 0.3) == "no answer in 0.3 s, as when a driver hangs"
    assert time.monotonic() - start < 2
    with pytest.raises(ProcessLookupError):  # it is gone, not even a zombie
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_a_child_started_is_killed_with_it(tmp_path: Path) -> None:
    def call() -> bytes:
        with subprocess.Popen(["sleep", "600"]) as process:
            (tmp_path / "pid").write_text(str(process.pid))
        return b""

    assert "no answer" in reason(call, 0.5)
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_child_that_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in uninterruptible sleep: SIGKILL has no effect."""
    kill = os.killpg
    monkeypatch.setattr(os, "killpg", lambda *_: None)

    def call() -> bytes:
        (tmp_path / "pid").write_text(str(os.getpid()))
        return ignoring()

    start = time.monotonic()
    assert "no answer in 0.2 s" in reason(call, 0.2)
    assert time.monotonic() - start < 1.5
    pid = int((tmp_path / "pid").read_text())
    assert not is_zombie(pid)
    kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def is_zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - one read
        return stat.read().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL])
def test_a_crash_is_told_by_its_signal(number: signal.Signals) -> None:
    def call() -> bytes:
        os.kill(os.getpid(), number)
        return forever()

    assert reason(call) == f"it was killed by {number.name}"


def test_a_crash_in_native_code() -> None:
    assert reason(lambda: ctypes.string_at(8)) == "it was killed by SIGSEGV"


@pytest.mark.parametrize("call", [lambda: os._exit(0), lambda: sys.exit(0), lambda: 1 / 0, lambda: None])
def test_a_child_that_ends_without_an_answer(call: Callable[[], bytes]) -> None:
    assert reason(call) == "it ended without an answer"


def test_half_an_answer_is_none() -> None:
    def call() -> bytes:
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2:
                try:
                    os.write(descriptor, b'{"gpus": [')
                except OSError:
                    continue
        os._exit(0)

    assert reason(call) == "it ended without an answer"


def test_what_a_child_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    def call() -> bytes:
        print("python")
        os.write(1, b"stdout")
        os.write(2, b"stderr")
        sys.stdout.flush()
        return b"fine"

    assert child.run(call, 5) == b"fine\n"
    assert capfd.readouterr() == ("", "")


def test_nothing_that_the_parent_has_open_is_open_in_the_child(tmp_path: Path) -> None:
    def call() -> bytes:
        links = (Path("/proc/self/fd", name) for name in sorted(os.listdir("/proc/self/fd"), key=int))
        return " ".join(str(link.readlink()) for link in links if os.path.lexists(link)).encode()

    with (tmp_path / "lock").open("w"):
        line = child.run(call, 5)
    assert isinstance(line, bytes)
    *standard, pipe = line.decode().split()
    assert standard == [os.devnull] * 3
    assert pipe.startswith("pipe:")


def test_a_crash_leaves_no_core() -> None:
    line = child.run(lambda: repr(resource.getrlimit(resource.RLIMIT_CORE)).encode(), 5)
    assert line in {b"(1, 1)\n", b"(0, 0)\n"}


def test_the_parent_keeps_its_signals_and_descriptors() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ()), sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        child.run(lambda: b"x", 5)
        child.run(lambda: os._exit(1), 5)
    assert (signal.pthread_sigmask(signal.SIG_BLOCK, ()), sorted(os.listdir("/proc/self/fd"))) == before


ORPHAN = """
import os, signal, sys
from vllmrt.gpu import child

def call():
    print(os.getpid(), file=open(sys.argv[1], "w"), flush=True)
    while True:
        signal.pause()

child.run(call, float(sys.argv[2]))
"""


def started(tmp_path: Path, seconds: str) -> tuple[subprocess.Popen[bytes], int]:
    note = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", ORPHAN, str(note), seconds])
    for _ in range(500):
        if note.exists() and note.read_text().endswith("\n"):
            return process, int(note.read_text())
        time.sleep(0.02)
    raise AssertionError("it does not start")


def test_ctrl_c_ends_the_child_too(tmp_path: Path) -> None:
    process, pid = started(tmp_path, "60")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) != 0
    assert is_gone(pid)


def test_a_child_outlives_a_killed_parent_by_its_time_limit_only(tmp_path: Path) -> None:
    process, pid = started(tmp_path, "0.5")
    process.kill()
    process.wait(10)
    assert is_gone(pid)
