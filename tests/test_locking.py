"""The lock file: exclusive, released with its holder, and not to be turned against its user."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from vllmrt import locking
from vllmrt.errors import ConfigError, LockTimeout
from vllmrt.locking import Holder, hold

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLDS = """
import sys, time
from pathlib import Path
from vllmrt.locking import hold
with hold(Path(sys.argv[1]), timeout=5, waiting=print):
    print("held", flush=True)
    time.sleep(30)
"""
EXECS = HOLDS.replace("time.sleep(30)", "import os; os.execvp('sleep', ['sleep', '30'])")
COUNTS = """
import os, sys
from pathlib import Path
from vllmrt.locking import hold
directory = Path(sys.argv[1])
for _ in range(20):
    with hold(directory / "lock", timeout=30, waiting=lambda holder: None):
        os.close(os.open(directory / "inside", os.O_CREAT | os.O_EXCL))
        counter = directory / "counter"
        value = int(counter.read_text())
        os.sched_yield()
        counter.write_text(str(value + 1))
        os.unlink(directory / "inside")
"""


def nobody_waits(holder: Holder | None) -> None:
    pytest.fail(f"waited for {holder}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "x.lock"


def start(script: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(HOLDS, path)
    yield process
    end(process)


def signature(path: Path) -> list[object]:
    """Return what the holder has written at the start of the file."""
    signed, _ = json.JSONDecoder().raw_decode(path.read_text(errors="replace"))
    assert isinstance(signed, list)
    return signed


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_it_is_held_within_the_block_and_the_file_stays(path: Path) -> None:
    with hold(path, timeout=0, waiting=nobody_waits):
        assert is_locked(path)
    assert path.exists()
    assert not is_locked(path)


def test_it_is_released_when_the_block_fails(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(path, timeout=0, waiting=nobody_waits):
        _ = 1 / 0
    assert not is_locked(path)


def test_file_and_directory_are_private(path: Path) -> None:
    before = os.umask(0)
    try:
        with hold(path, timeout=0, waiting=nobody_waits):
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_the_holder_signs_with_machine_process_and_time(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("x" * 1000)
    with hold(path, timeout=0, waiting=nobody_waits):
        host, pid, since = signature(path)[:3]
    assert (host, pid) == (os.uname().nodename, os.getpid())
    assert isinstance(since, float)
    assert abs(time.time() - since) < 10


def test_a_waiter_is_told_once_who_holds_it_and_the_error_says_so(path: Path, holder: subprocess.Popen[str]) -> None:
    told: list[Holder | None] = []
    before = time.monotonic()
    with pytest.raises(LockTimeout) as caught, hold(path, timeout=0.5, waiting=told.append):
        pass
    assert 0.5 <= time.monotonic() - before < 2
    assert [one and one.pid for one in told] == [holder.pid]
    assert f"process {holder.pid} on {os.uname().nodename!r}, since" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "waited 0.5 s" in str(caught.value)
    assert "VLLM_RESOLVE_LOCK_TIMEOUT" in (caught.value.hint or "")
    assert caught.value.exit_code == 12


@pytest.mark.usefixtures("holder")
def test_without_time_to_wait_it_gives_up_at_once(path: Path) -> None:
    before = time.monotonic()
    with pytest.raises(LockTimeout), hold(path, timeout=0, waiting=nobody_waits):
        pass
    assert time.monotonic() - before < 0.5


def test_it_is_free_when_its_holder_is_killed(path: Path, holder: subprocess.Popen[str]) -> None:
    def kill(_: Holder | None) -> None:
        holder.send_signal(signal.SIGKILL)

    with hold(path, timeout=10, waiting=kill):
        assert signature(path)[1] == os.getpid()


def test_the_program_that_the_holder_turns_into_does_not_keep_it(path: Path) -> None:
    process = start(EXECS, path)
    try:
        with hold(path, timeout=10, waiting=lambda _: None):
            assert process.poll() is None
    finally:
        end(process)


def test_a_thread_of_the_same_process_waits_too(path: Path) -> None:
    with (
        hold(path, timeout=0, waiting=nobody_waits),
        pytest.raises(LockTimeout),
        hold(path, timeout=0, waiting=nobody_waits),
    ):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "fifo", "device", "socket"])
def test_what_is_no_regular_file_is_refused_and_left_alone(kind: str, path: Path, tmp_path: Path) -> None:
    import socket

    path.parent.mkdir()
    target = tmp_path / "target"
    if kind == "link":
        target.write_text("precious")
        path.symlink_to(target)
    elif kind == "dangling link":
        path.symlink_to(target)
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))
    with (
        pytest.raises(ConfigError, match="is not a regular file") as caught,
        hold(path, timeout=0, waiting=nobody_waits),
    ):
        pass
    assert str(path) in str(caught.value)
    assert target.read_text() == "precious" if kind == "link" else not target.exists()


def test_a_second_name_of_another_file_is_not_written_to(path: Path, tmp_path: Path) -> None:
    """Who may write into the store could make a lock file out of any file of ours (link(2))."""
    target = tmp_path / "target"
    target.write_text("precious")
    path.parent.mkdir()
    path.hardlink_to(target)
    with pytest.raises(ConfigError), hold(path, timeout=0, waiting=nobody_waits):
        pass
    assert target.read_text() == "precious"


FOREIGN = {
    "nothing": b"",
    "text": b"locked by root",
    "binary": bytes(range(256)),
    "null": b"null",
    "deep": b"[" * 4000,
    "deep inside": b'["h", ' + b"[" * 3000,
    "not UTF-8": b'["\xff", 1, 1.0]',
    "wrong types": b'[1, "x", null]',
    "too few": b'["h", 1]',
    "an object": b'{"host": "h", "pid": 1, "since": 1}',
    "cut": b'["h", 1, 17',
    "huge": b'["' + b"h" * 100_000 + b'", 1, 1.0]',
}


def foreign_holder(path: Path, content: bytes) -> str:
    """Return what a waiter says about a lock that another holds with this content."""
    path.parent.mkdir()
    path.write_bytes(content)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockTimeout) as caught, hold(path, timeout=0.02, waiting=str):
            pass
    return str(caught.value)


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_content_is_another_process(content: bytes, path: Path) -> None:
    assert "is held by another process" in foreign_holder(path, content)
    with hold(path, timeout=0, waiting=nobody_waits):
        assert signature(path)[1] == os.getpid()


TIMES = {"far future": "1e300", "far past": "-1e300", "before the epoch": "-1", "zero": "0", "an integer": "5"}


@pytest.mark.parametrize("since", TIMES.values(), ids=TIMES)
def test_any_time_of_a_holder_can_be_shown(since: str, path: Path) -> None:
    assert "is held by" in foreign_holder(path, f'["h", 1, {since}]'.encode())


def test_a_holder_cannot_write_to_the_terminal(path: Path) -> None:
    message = foreign_holder(path, json.dumps(["\x1b]0;x\x07\n\u202eh", 1, 1.0]).encode())
    assert message.isprintable()
    assert "process 1 on " in message


@pytest.mark.parametrize("then", ["removed", "replaced"])
def test_a_file_that_loses_its_name_while_it_is_locked_is_not_the_lock(
    then: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = locking._try, []

    def interfere(descriptor: int) -> bool:
        tries.append(descriptor)
        if len(tries) == 1:
            path.unlink()
            if then == "replaced":
                path.touch()
        return real(descriptor)

    monkeypatch.setattr(locking, "_try", interfere)
    with hold(path, timeout=5, waiting=lambda _: None):
        assert is_locked(path)
    assert len(tries) == 2


def test_a_directory_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"Not a directory|File exists"),
        hold(tmp_path / "file" / "x.lock", timeout=0, waiting=nobody_waits),
    ):
        pass


def test_nothing_stays_open(path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with hold(path, timeout=0, waiting=nobody_waits), pytest.raises(LockTimeout), hold(path, timeout=0, waiting=str):
        pass
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_nothing_stays_open_where_a_file_system_has_no_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No locks"), hold(path, timeout=0, waiting=nobody_waits):
        pass
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_two_are_never_inside_at_once(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    workers = [
        subprocess.Popen([sys.executable, "-c", COUNTS, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    errors = [worker.communicate(timeout=60)[1] for worker in workers]
    assert errors == [""] * 5
    assert (tmp_path / "counter").read_text() == "100"
