"""Engines without a launcher: found, measured, and stopped when they are ours; others are no orphans."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from standin import Machine, alive, children, wait_for

from vllmrt.preflight.orphans import find_orphans
from vllmrt.preflight.trees import descendants
from vllmrt.procfs import ProcFs
from vllmrt.settings import Settings
from vllmrt.testing import fake_dist

if TYPE_CHECKING:
    from vllmrt.procfs import Stat

pytestmark = [
    pytest.mark.usefixtures("only_orphans"),
    pytest.mark.skipif(
        Path("/proc/1/comm").read_text().startswith("python"), reason="what starts orphans here could be init itself"
    ),
]


def orphaned(machine: Machine, title: str = "VLLM::EngineCore", **environ: str) -> int:
    """Start an engine below a launcher, kill that, and return the engine."""
    launcher = machine.serve(ENGINE=title, ENGINE_WORKERS="2", **environ)
    (engine,) = children(launcher.pid)
    wait_for(lambda: len(children(engine)) == 2)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1] == "1")
    return engine


def pids(machine: Machine, port: int, *args: str, **environ: str) -> tuple[list[int], list[int]]:
    """Return which orphans of this machine are found, and which are stopped."""
    done = machine.preflight("--json", "--port", str(port), *args, environ=environ)
    assert done.code == 0, done.err
    ours = {one.pid for one in ProcFs().table().values()} and set(machine.left()) | set(done.json["reaped_orphans"])
    found = [orphan["pid"] for orphan in done.json["orphans"] if orphan["pid"] in ours]
    return found, done.json["reaped_orphans"]


def test_an_orphan_is_reported_and_stopped_on_request(machine: Machine, port: int) -> None:
    engine = orphaned(machine)
    tree = [engine, *children(engine)]
    done = machine.preflight("--json", "--port", str(port))
    (orphan,) = [one for one in done.json["orphans"] if one["pid"] == engine]
    assert (orphan["title"], orphan["processes"], orphan["uid"]) == ("VLLM::EngineCore", 3, os.getuid())
    pages = sum(ProcFs().table()[pid].rss for pid in tree)
    assert orphan["resident"] == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.2)
    assert 0 <= orphan["age"] < 60
    assert all(map(alive, tree))
    assert "--reap-orphans" in done.err
    assert pids(machine, port, "--reap-orphans", "--dry-run") == ([engine], [])
    assert all(map(alive, tree))
    assert pids(machine, port, "--reap-orphans") == ([engine], [engine])
    assert machine.left() == []


def test_the_variable_stops_them_too_also_deaf_ones(machine: Machine, port: int) -> None:
    engine = orphaned(machine, ON_TERM="", DEAF_WORKERS="1")
    assert pids(machine, port, VLLMRT_REAP_ORPHANS="1", VLLM_STOP_TIMEOUT="1") == ([engine], [engine])
    assert machine.left() == []


def test_a_prefix_of_ones_own(machine: Machine, port: int) -> None:
    engine = orphaned(machine, "A-long-prefix-of-ours::EngineCore")
    assert pids(machine, port) == ([], [])
    assert pids(machine, port, VLLM_PROCESS_NAME_PREFIX="A-long-prefix-of-ours") == ([engine], [])


def test_a_worker_that_has_lost_its_engine_as_well(machine: Machine, port: int) -> None:
    worker = orphaned(machine, "VLLM::Worker_TP0")
    assert pids(machine, port, "--reap-orphans") == ([worker], [worker])


def test_an_engine_whose_launcher_lives_is_none(machine: Machine, port: int) -> None:
    """With `vllm serve`, also --headless; with a program that uses vLLM as a library; with Ray."""
    machine.serve(ENGINE="VLLM::EngineCore")
    machine.start([sys.executable, machine.vllm, "serve", "--headless"], ENGINE="VLLM::EngineCore")
    machine.start([sys.executable, machine.standin], ENGINE="VLLM::EngineCore")
    machine.start(["raylet"], executable=sys.executable, ENGINE="VLLM::Worker")
    before = machine.left()
    assert pids(machine, port, "--reap-orphans") == ([], [])
    assert machine.left() == before


def test_an_api_server_that_serves_without_its_launcher_keeps_its_engine(machine: Machine, port: int) -> None:
    """Launcher gone, but the API servers and the engine, which it started, go on together."""
    launcher = machine.path / "bin" / "two"
    launcher.write_text(
        "import os, subprocess, sys\n"
        "for title in ('VLLM::APIServer_0', 'VLLM::EngineCore'):\n"
        "    env = {**os.environ, 'COMM': title[:15], 'READY': os.environ['READY'] * (title[6] == 'E')}\n"
        "    subprocess.Popen([title], executable=sys.executable, stdin=open(os.environ['STANDIN']), env=env)\n"
    )
    process = machine.start([sys.executable, launcher])
    process.wait(10)
    wait_for(lambda: len(machine.left()) == 2)
    engine = next(one.pid for one in ProcFs().table().values() if one.pgrp == process.pid and "Engine" in one.comm)
    assert pids(machine, port, "--reap-orphans") == ([], [])
    server = next(pid for pid in machine.left() if pid != engine)
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: not alive(server))
    assert pids(machine, port, "--reap-orphans") == ([engine], [engine])


def test_a_process_under_init_that_only_has_the_name(machine: Machine, port: int) -> None:
    script = f"COMM=VLLM::EngineCo setsid {sys.executable} {machine.standin} & exit"
    process = machine.start(["sh", "-c", script])
    process.wait()
    named = next(one.pid for one in ProcFs().table().values() if one.comm == "VLLM::EngineCo")
    try:
        assert pids(machine, port, "--reap-orphans")[1] == []
        assert alive(named)
    finally:
        os.kill(named, signal.SIGKILL)


def test_another_users_orphan_is_reported_and_left_alone(machine: Machine, port: int, as_other: list[str]) -> None:
    command = [sys.executable, str(machine.vllm), "serve"]
    python = shutil.which("python3", path="/usr/bin") or sys.executable  # ours may lie where others may not go
    launcher = machine.start(command, wrapper=as_other, ENGINE="VLLM::EngineCore", PYTHON=python)
    (engine,) = children(launcher.pid)
    wait_for(lambda: Path(f"/proc/{engine}/comm").read_text().startswith("VLLM"))
    launcher.kill()
    launcher.wait()
    allowed = {"VLLM_ALLOW_OTHER_UID_KILL": "1"}
    assert pids(machine, port, "--reap-orphans", **allowed) == ([engine], [])
    assert alive(engine)


PROTECTED_CHILD = "return Verdict.PROTECTED if process.ancestors and 'Engine' in process.ancestors[0].title else None"


def test_a_child_of_another_user_is_left_alone_with_its_engine(
    machine: Machine, port: int, as_other: list[str]
) -> None:
    launcher = machine.path / "launch" / "vllm"
    launcher.parent.mkdir()
    launcher.write_text(
        "import os, subprocess, sys, time\n"
        "env = {**os.environ, 'COMM': 'VLLM::EngineCor', 'READY': ''}\n"
        "script = open(os.environ['STANDIN']).read().replace('on_term =', os.environ['AS_OTHER'] + '\\non_term =', 1)\n"
        "p = subprocess.Popen(['VLLM::EngineCore'], executable=sys.executable, stdin=subprocess.PIPE, env=env)\n"
        "p.stdin.write(script.encode()); p.stdin.close()\n"
        "open(os.environ['READY'], 'w').close()\ntime.sleep(100)\n"
    )
    child = f"subprocess.Popen({[*as_other, 'sleep', '100']!r})"
    process = machine.start([sys.executable, launcher, "serve"], AS_OTHER=child)
    (engine,) = children(process.pid)
    (other,) = wait_for(lambda: children(engine))
    wait_for(lambda: Path(f"/proc/{other}").stat().st_uid)
    process.kill()
    process.wait()
    assert pids(machine, port, "--reap-orphans") == ([engine], [])
    assert alive(engine)
    assert alive(other)


@pytest.mark.parametrize("body", ["return Verdict.PROTECTED", PROTECTED_CHILD, "raise ValueError"])
def test_a_classifier_may_forbid_it(machine: Machine, port: int, body: str) -> None:
    source = "import vllmrt\nfrom vllmrt.types import Verdict\n@vllmrt.hookimpl\n"
    site, groups = machine.path / "site", {"vllmrt.plugins": {"acme": "acme"}}
    fake_dist(site, "acme", "1.0", groups, {"acme": f"{source}def vllmrt_classify_process(process):\n    {body}\n"})
    engine = orphaned(machine)
    assert pids(machine, port, "--reap-orphans", PYTHONPATH=str(site)) == ([engine], [])
    assert alive(engine)


def test_a_zombie_is_none(machine: Machine) -> None:
    engine = orphaned(machine)
    os.kill(engine, signal.SIGSTOP)
    assert engine in [orphan.process.pid for orphan in find_orphans(Settings())]
    for pid in descendants(ProcFs().table(), [engine]):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(engine))
    assert engine not in [orphan.process.pid for orphan in find_orphans(Settings())]


def test_the_age(machine: Machine) -> None:
    engine = orphaned(machine)
    time.sleep(0.5)
    listing = subprocess.run(["ps", "-o", "etimes=", "-p", str(engine)], capture_output=True, text=True, check=True)
    (orphan,) = [one for one in find_orphans(Settings()) if one.process.pid == engine]
    assert orphan.age == pytest.approx(float(listing.stdout), abs=1.5)


def test_only_what_init_has_inherited_is_looked_at(machine: Machine) -> None:
    """With thousands of processes, to read a line of each takes longer than all the rest."""
    read = []

    class Counting(ProcFs):
        def stat(self, pid: int) -> Stat | None:
            found = super().stat(pid)
            read.extend([found.ppid] if found else [])
            return found

    machine.serve(ENGINE="VLLM::EngineCore")
    assert find_orphans(Settings(), Counting()) == []
    assert set(read) == {1}


def test_where_the_kernel_lists_no_children_every_process_is_looked_at(machine: Machine) -> None:
    class Old(ProcFs):
        def children(self, pid: int) -> list[int] | None:
            assert super().children(pid) is not None
            return None

    engine = orphaned(machine)
    assert engine in [orphan.process.pid for orphan in find_orphans(Settings(), Old())]
