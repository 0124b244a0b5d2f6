"""A file of which nobody sees half, whatever happens; names that a store gives are in test_safe_join.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vllmrt import paths
from vllmrt.paths import write_atomic

SCRIPT = "import os, resource, signal, sys\nfrom pathlib import Path\nfrom vllmrt.paths import write_atomic\n"
LIMITED = f"""{SCRIPT}
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(Path(sys.argv[1]), b"x" * 100_000)
except OSError as error:
    print(error.errno)
"""
AS_NOBODY = f"""{SCRIPT}
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    write_atomic(Path(sys.argv[1]), b"x")
except OSError as error:
    print(type(error).__name__)
"""
FOREVER = f"""{SCRIPT}
print("ready", flush=True)
while True:
    for letter in b"ab":
        write_atomic(Path(sys.argv[1]), bytes([letter]) * 300_000)
"""


def python(script: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)


def alone(path: Path) -> bool:
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "file"


def test_it_writes_and_replaces(path: Path) -> None:
    for data in (b"one", b"", b"\0two"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert alone(path)


def test_the_directory_is_made(path: Path) -> None:
    write_atomic(path.parent / "a" / "b" / "c", b"x")
    assert (path.parent / "a" / "b" / "c").read_bytes() == b"x"


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
@pytest.mark.parametrize("mode", [None, 0o600, 0o644])
def test_the_mode_is_exact_whatever_the_umask(umask: int, mode: int | None, path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomic(path, b"x") if mode is None else write_atomic(path, b"x", mode=mode)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == (mode or 0o600)


def test_the_mode_of_the_old_file_is_not_kept(path: Path) -> None:
    path.write_text("old")
    path.chmod(0o666)
    write_atomic(path, b"new")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_replaced_and_not_followed(dangling: bool, path: Path, tmp_path: Path) -> None:  # noqa: FBT001
    target = tmp_path / "target"
    if not dangling:
        target.write_text("precious")
    path.symlink_to(target)
    write_atomic(path, b"new")
    assert not path.is_symlink()
    assert path.read_bytes() == b"new"
    assert target.exists() is not dangling
    assert dangling or target.read_text() == "precious"


def test_another_name_of_the_old_file_keeps_the_old_content(path: Path, tmp_path: Path) -> None:
    path.write_text("old")
    (tmp_path / "other").hardlink_to(path)
    write_atomic(path, b"new")
    assert (tmp_path / "other").read_text() == "old"


def test_a_fifo_is_replaced_without_waiting(path: Path) -> None:
    os.mkfifo(path)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_directory_is_not_replaced_and_nothing_is_left(path: Path) -> None:
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(path, b"new")
    assert alone(path)


@pytest.mark.parametrize("length", [200, 255])
def test_any_name_that_the_file_system_takes_will_do(length: int, path: Path) -> None:
    long = path.with_name("a" * length)
    write_atomic(long, b"x")
    assert alone(long)


def test_a_name_that_is_too_long_is_an_os_error(path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        write_atomic(path.with_name("a" * 256), b"x")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(old: bytes | None, path: Path) -> None:
    if old is not None:
        path.write_bytes(old)
    done = python(LIMITED, path)
    assert done.communicate()[0] == "27\n"  # EFBIG
    assert (path.read_bytes() if path.exists() else None) == old
    assert len(list(path.parent.iterdir())) == (old is not None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_directory_that_may_not_be_written_is_an_os_error(path: Path) -> None:
    path.write_bytes(b"old")
    for parent in path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    script = AS_NOBODY.replace("import os,", f"import sys; sys.path.insert(0, {_source()!r})\nimport os,", 1)
    assert python(script, path).communicate()[0] == "PermissionError\n"
    assert path.read_bytes() == b"old"
    assert alone(path)


def _source() -> str:
    return str(Path(paths.__file__).parents[1])


def test_an_interrupt_while_writing_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert alone(path)


def test_the_bytes_are_on_the_disk_before_the_name_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(path.exists()), real(descriptor))[1])
    write_atomic(path, b"new")
    assert seen[:1] == [False]


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(path: Path) -> None:
    for pause in (0.001, 0.003, 0.007, 0.012, 0.02, 0.031):
        writer = python(FOREVER, path)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(pause)
        writer.kill()
        writer.communicate()
        if path.exists():
            content = path.read_bytes()
            assert content in {b"a" * 300_000, b"b" * 300_000}, (len(content), content[:1])
    assert path.exists()


def test_a_reader_never_sees_half(path: Path) -> None:
    contents = [letter * 200_000 for letter in (b"a", b"b")]
    write_atomic(path, contents[0])
    ended = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not ended.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        write_atomic(path, contents[number % 2])
    ended.set()
    reader.join()
    assert seen <= set(contents)


def test_two_threads_may_write_one_file(path: Path) -> None:
    failures: list[BaseException] = []

    def write(letter: bytes) -> None:
        try:
            for _ in range(30):
                write_atomic(path, letter * 50_000)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set(path.read_bytes())) == 1
    assert alone(path)


@pytest.mark.parametrize(
    ("function", "variable", "expected"),
    [
        (paths.user_cache, "XDG_CACHE_HOME", "vllmrt"),
        (paths.user_models, "XDG_DATA_HOME", "vllmrt/models"),
        (paths.user_settings_file, "XDG_CONFIG_HOME", "vllmrt/settings.toml"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("XDG") else "",
)
def test_defaults_follow_the_xdg_directories(
    function: object, variable: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(function)
    monkeypatch.setenv(variable, str(tmp_path))
    assert function() == tmp_path / expected
    monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert (tmp_path / "home") in function().parents
