"""What cannot be had with a real machine in a test: a clock that is behind, a network file system, one that hangs."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from vllmrt import doctor, layers
from vllmrt.doctor import machine, mounts, processes, store
from vllmrt.doctor.page import Case, Section
from vllmrt.types import ProcessInfo


def case(**environ: str) -> Case:
    return Case(layers.read(environ), environ)


def test_a_section_that_hangs_costs_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.3)
    start = time.monotonic()
    section = doctor._apart("store", lambda: time.sleep(60) or Section())
    assert time.monotonic() - start < 10
    (problem,) = section.problems
    assert (problem.code, problem.message) == ("not-looked-at", "store could not be looked at: no answer in 0.3 s")


@pytest.mark.parametrize("end", [lambda: os._exit(0), os.abort, lambda: 1 / 0], ids=["exit", "abort", "bug"])
def test_a_section_that_breaks_is_a_line(end: object) -> None:
    section = doctor._apart("store", end)  # type: ignore[arg-type]
    assert [problem.code for problem in section.problems] == ["not-looked-at"]
    assert section.lines == ["could not be looked at"]


def test_a_section_that_says_more_than_a_pipe_holds() -> None:
    section = doctor._apart("store", lambda: Section({"x": "y" * 300_000}))
    assert section.facts == {"x": "y" * 300_000}


def test_names_that_are_no_text(tmp_path: Path) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff\xfe"))
    (directory / "model").mkdir(parents=True)
    page = doctor.examine(case(VLLM_MODELS_DIR=str(tmp_path), VLLM_SKIP_GPU_CHECK="1"))
    assert [one["directory"] for one in page.sections["store"].facts["models"]] == ["m\\udcff\\udcfe"]


@pytest.mark.parametrize("when", [0.0, 1_600_000_000.0])
def test_a_clock_that_is_behind(when: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "clock" not in {problem.code for problem in machine.look(case()).problems}
    monkeypatch.setattr(time, "time", lambda: when)
    (problem,) = [one for one in machine.look(case()).problems if one.code == "clock"]
    assert "before vllmrt was installed" in problem.message
    assert "NTP" in problem.remedy


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/root rw
30 22 0:30 / {here} rw shared:1 - tmpfs none rw
31 22 0:31 / {here} rw,noexec shared:2 master:3 - nfs4 server:/x rw
32 22 0:32 / {here}/a\\040b rw - fuse.s3fs s3fs rw
33 22 0:33 / {here}/ab rw - ext4 /dev/vda rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "remote"),
    [
        (".", "nfs4", True),
        ("a b/c", "fuse.s3fs", True),
        ("ab", "ext4", False),
        ("abc", "nfs4", True),
        ("..", "ext4", False),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str, remote: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a row
    (tmp_path / "proc" / "self").mkdir(parents=True)
    here = tmp_path / "here"
    (here / "a b").mkdir(parents=True)
    (here / "ab").mkdir()
    (here / "abc").mkdir()
    (tmp_path / "proc" / "self" / "mountinfo").write_text(MOUNTS.format(here=here))
    mount = mounts.mount_of(here / path, tmp_path / "proc")
    assert (mount.kind, mount.is_remote) == (kind, remote)


def test_without_a_table_the_file_system_is_not_known(tmp_path: Path) -> None:
    assert mounts.mount_of(tmp_path / "not" / "there", tmp_path) == mounts.Mount(None, ())


def test_a_store_on_the_network_is_worth_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "mount_of", lambda _: mounts.Mount("nfs4", ()))
    section = store.look(case(VLLM_MODELS_DIR=str(tmp_path)))
    assert section.problems == []
    assert any("nfs4" in note and "locks" in note for note in section.notes)


@pytest.mark.parametrize(
    ("host", "known"),
    [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("0.0.0.0", True), ("a.example", False)],  # noqa: S104
)
def test_no_name_is_asked_of_the_network(host: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 - a row
    asked: list[int] = []
    real = socket.getaddrinfo

    def spy(name: str, port: int | None, *args: int, flags: int = 0, **kinds: int) -> object:
        asked.append(flags)
        return real(name, port, *args, flags=flags, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", spy)
    assert processes._is_known_here(host) == known
    assert asked == [socket.AI_NUMERICHOST]


def test_names_of_this_machine_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost Here.example # there.example\n")
    monkeypatch.setattr(processes, "_HOSTS", hosts)
    names = ("localhost", "here.example", "there.example", "127.0.0.1")
    assert [processes._is_known_here(name) for name in names] == [True, True, False, True]


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (("/usr/bin/python3", "-m", "http.server", "8000"), "python3 -m http.server"),
        (("python3", "/opt/app/server.py", "--key", "secret"), "python3 server.py"),
        (("python3", "/venv/bin/vllm", "serve", "model"), "python3 vllm serve"),
        (("/venv/bin/vllm", "serve", "model", "--api-key", "secret"), "vllm serve"),
        (("redis-server", "secret"), "redis-server"),
        (("curl", "https://u:secret@host/x.py?secret"), "curl"),
        (("python3", "-c", "secret"), "python3"),
        (("python3", "-m", "secret=1"), "python3"),
        (("VLLM::EngineCore",), "VLLM::EngineCore"),
        (("postgres: secret",), "postgres:"),
        ((), "/bin/exe".rpartition("/")[2]),
        (("",), "?"),
    ],
)
def test_what_a_process_is_called(argv: tuple[str, ...], shown: str) -> None:
    process = ProcessInfo(1, uid=0, start_ticks=1, exe="/bin/exe", argv=argv, title=argv[0] if len(argv) == 1 else "")
    assert processes.program(process) == shown


def test_a_limit_that_is_none_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = machine.resource.RLIM_INFINITY
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (unlimited, unlimited))
    section = machine.look(case())
    assert section.facts["open_files"] == {"soft": None, "hard": None}
    assert not any("files" in note for note in section.notes)


@pytest.mark.parametrize(
    ("soft", "hard", "problems", "notes"),
    [(1024, 65_535, 0, 0), (1024, 1024, 1, 0), (4096, 4096, 0, 1), (1024, 65_534, 1, 0)],
)
def test_the_files_that_vllm_may_open(
    soft: int, hard: int, problems: int, notes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (soft, hard))
    section = machine.look(case())
    assert sum(problem.code == "open-files" for problem in section.problems) == problems
    assert sum("open files" in note for note in section.notes) == notes
