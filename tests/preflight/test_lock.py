"""The lock file and the variables of the contract: what is just outside a bound, and what a lock file must not be."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from standin import VLLMRT, Machine, held, listens, wait_for

from vllmrt import layers, locking
from vllmrt.preflight.lock import lock_path
from vllmrt.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BAD = [
    ("VLLM_HOST", "a b"),
    ("VLLM_HOST", "300.1.1.1"),
    ("VLLM_HOST", "no.such.host.invalid"),
    ("VLLM_HOST", "http://127.0.0.1"),
    ("VLLM_PORT", "0"),
    ("VLLM_PORT", "65536"),
    ("VLLM_PORT", "-1"),
    ("VLLM_PORT", "8000.0"),
    ("VLLM_PORT", "tcp://10.0.0.1:8000"),
    ("VLLM_DRY_RUN", "2"),
    ("VLLM_DRY_RUN", "true"),
    ("VLLM_SKIP_GPU_CHECK", "yes"),
    ("VLLM_MIN_FREE_GPU_GB", "-0.1"),
    ("VLLM_MIN_FREE_GPU_GB", "four"),
    ("VLLM_MIN_FREE_GPU_GB", "nan"),
    ("VLLM_MAX_GPU_TEMP_C", "0"),
    ("VLLM_MAX_GPU_TEMP_C", "85.5"),
    ("VLLM_MAX_GPU_UTIL_PCT", "-1"),
    ("VLLM_MAX_GPU_UTIL_PCT", "101"),
    ("VLLM_GPU_FAIL_ON", "temperature,heat"),
    ("VLLM_GPU_DEVICES", "-1"),
    ("VLLM_GPU_DEVICES", "0,x"),
    ("CUDA_VISIBLE_DEVICES", "0,0"),
    ("VLLMRT_GPU_PROBE_TIMEOUT", "0"),
    ("VLLM_ALLOW_OTHER_UID_KILL", "2"),
    ("VLLM_ALLOW_OTHER_UID_KILL", "yes"),
    ("VLLM_STOP_TIMEOUT", "-1"),
    ("VLLM_STOP_TIMEOUT", "1.5"),
    ("VLLM_STOP_TIMEOUT", "inf"),
    ("VLLM_PROCESS_SIGNATURES", "a\x01"),
    ("VLLM_PREFLIGHT_LOCKFILE", "a\x01"),
    ("VLLM_PREFLIGHT_JSON", "2"),
    ("VLLM_PREFLIGHT_PROXY_CHILD", "2"),
    ("VLLM_PREFLIGHT_PROXY_CHILD", "no"),
    ("VLLM_START_BIND_TIMEOUT", "0"),
    ("VLLM_START_BIND_TIMEOUT", "-1"),
    ("VLLM_START_BIND_TIMEOUT", "nan"),
    ("VLLM_START_BIND_TIMEOUT", "inf"),
    ("VLLM_START_BIND_POLL", "0"),
    ("VLLM_START_BIND_POLL", "x"),
    ("VLLM_PROCESS_NAME_PREFIX", "a b"),
    ("VLLMRT_REAP_ORPHANS", "2"),
]
GOOD = {
    "VLLM_HOST": "localhost",
    "VLLM_DRY_RUN": "0",
    "VLLM_MIN_FREE_GPU_GB": "0",
    "VLLM_MAX_GPU_TEMP_C": "1",
    "VLLM_MAX_GPU_UTIL_PCT": "100",
    "VLLM_GPU_FAIL_ON": "temperature,memory,utilization",
    "VLLM_GPU_DEVICES": "0,GPU-1",
    "VLLM_ALLOW_OTHER_UID_KILL": "0",
    "VLLM_STOP_TIMEOUT": "0",
    "VLLM_PROCESS_SIGNATURES": "my.custom.launcher,another_entrypoint",
    "VLLM_PREFLIGHT_PROXY_CHILD": "0",
    "VLLM_START_BIND_TIMEOUT": "0.001",
    "VLLM_START_BIND_POLL": "0.001",
}


def test_no_variable_is_forgotten() -> None:
    rows = [row for row in layers.rows() if row.var.section == "preflight" or row.field in {"host", "port"}]
    assert {row.names[-1] for row in rows} - {name for name, _ in BAD} == {"VLLMRT_GPU_PROBES"}


def test_a_probe_that_nobody_has_costs_no_running_server(machine: Machine, port: int) -> None:
    machine.serve(port=port)
    environ = {"VLLM_SKIP_GPU_CHECK": "0", "VLLMRT_GPU_PROBES": "no-such-probe"}
    done = machine.preflight("--json", "--port", str(port), environ=environ)
    assert (done.code, "'no-such-probe'" in done.json["error"]) == (1, True)
    assert listens(port)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_outside_its_bound(machine: Machine, port: int, name: str, value: str) -> None:
    machine.serve(port=port)
    environ = {"VLLM_PORT": str(port), "VLLM_SKIP_GPU_CHECK": "0", name: value}
    done = machine.preflight("--json", environ=environ)
    assert (done.code, done.json["ok"], done.json["code"]) == (1, False, 1)
    assert name in f"{done.json['error']} {done.json['hint']}"
    assert listens(port)


def test_a_variable_for_json_that_is_neither_0_nor_1(machine: Machine) -> None:
    done = machine.preflight(environ={"VLLM_PREFLIGHT_JSON": "yes"})
    assert (done.code, done.out) == (1, "")
    assert "VLLM_PREFLIGHT_JSON" in done.err


def test_values_on_their_bounds(machine: Machine, port: int) -> None:
    done = machine.preflight("--json", environ=GOOD | {"VLLM_PORT": str(port)})
    assert (done.code, done.json["ok"]) == (0, True), done.err


def test_the_lock_is_one_for_each_port() -> None:
    assert str(lock_path(Settings(port=8123))) == "/tmp/vllm-preflight.8123.lock"  # noqa: S108 - the contract's


def test_the_lock_is_made_and_closed_to_others(machine: Machine, port: int) -> None:
    lock = machine.path / "a" / "missing" / "lock"
    assert machine.preflight("--port", str(port), environ={"VLLM_PREFLIGHT_LOCKFILE": str(lock)}).code == 0
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def link(path: Path) -> None:
    (path.parent / "victim").write_text("precious")
    path.symlink_to(path.parent / "victim")


def hard_link(path: Path) -> None:
    (path.parent / "victim").write_text("precious")
    path.hardlink_to(path.parent / "victim")


UNFIT = {"a link": link, "a second name": hard_link, "a directory": lambda path: path.mkdir(), "a fifo": os.mkfifo}


@pytest.mark.parametrize("name", UNFIT)
def test_a_lock_file_that_is_none(machine: Machine, port: int, name: str) -> None:
    UNFIT[name](machine.path / "lock")
    machine.serve(port=port)
    done = machine.preflight("--json", "--port", str(port))
    assert (done.code, done.json["class"]) == (1, "ConfigError")
    assert str(machine.path / "lock") in done.json["error"]
    assert listens(port)
    victim = machine.path / "victim"
    assert not victim.exists() or victim.read_text() == "precious"


def test_a_lock_below_what_is_no_directory(machine: Machine, port: int) -> None:
    done = machine.preflight("--port", str(port), environ={"VLLM_PREFLIGHT_LOCKFILE": f"{machine.standin}/lock"})
    assert done.code == 1
    assert "VLLM_PREFLIGHT_LOCKFILE" in done.err


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom vllmrt import locking\n"
        "with locking.hold(Path(sys.argv[1]), timeout=0, waiting=print):\n"
        "    print('held', flush=True)\n    time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
    assert process.stdout
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_lock_that_a_living_process_holds(machine: Machine, port: int) -> None:
    machine.serve(port=port)
    with holder(machine.path / "lock") as process:
        done = machine.preflight("--json", "--port", str(port))
        assert (done.code, done.json["code"]) == (1, 1)
        assert f"another preflight of port {port}" in done.json["error"]
        assert f"process {process.pid}" in done.json["error"]
        assert listens(port)
        assert machine.preflight("--port", str(port), "--dry-run").code == 0


@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["init", "our parent"])
def test_a_lock_whose_holder_is_not_the_one_that_it_names(machine: Machine, port: int, pid: int) -> None:
    """Another container's process 1, where both have one ``/tmp``; or somebody who wants the lock ignored."""
    machine.serve(port=port)
    with holder(machine.path / "lock"):
        told = msgspec.json.decode((machine.path / "lock").read_bytes(), type=locking.Holder)
        with (machine.path / "lock").open("r+b") as file:
            file.write(msgspec.json.encode(told._replace(pid=pid)).ljust(200))
        done = machine.preflight("--json", "--port", str(port))
        assert (done.code, done.json["code"]) == (1, 1)
        assert f"another preflight of port {port}" in done.json["error"]
        assert listens(port)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a namespace of processes")
@pytest.mark.parametrize("first", [[VLLMRT, "preflight", "--"], []], ids=["a preflight", "the preflight itself"])
def test_process_1_of_a_container(machine: Machine, port: int, first: list[str]) -> None:
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *first]
    done = machine.preflight("--json", wrapper=inside, environ={"VLLM_PORT": str(port)})
    assert (done.code, done.json["ok"]) == (0, True), done.err


def test_a_lock_that_a_dead_process_held(machine: Machine, port: int) -> None:
    with holder(machine.path / "lock"):
        pass
    assert (machine.path / "lock").read_text().strip()
    assert machine.preflight("--port", str(port)).code == 0


def test_two_at_a_time_and_one_of_them_works(machine: Machine, port: int) -> None:
    """The other one leaves at once, and what the first one stops is stopped once."""
    stale = machine.serve(port=port, ON_TERM="ignore")
    command = [VLLMRT, "preflight", "--port", str(port), "--stop-timeout", "60"]
    with subprocess.Popen(command, env=machine.environ, stderr=subprocess.DEVNULL) as first:
        wait_for(lambda: held(machine.path / "lock"))
        assert machine.preflight("--port", str(port)).code == 1
        stale.kill()
        assert first.wait(20) == 0
    assert not listens(port)


def test_sixteen_at_a_time(machine: Machine, port: int) -> None:
    """One of them stops what is stale; the others leave, or come when the port is free."""
    stale = machine.serve(port=port, WORKERS="2")
    command = [VLLMRT, "preflight", "--json", "--port", str(port)]
    runs = [subprocess.Popen(command, env=machine.environ, stdout=-1, stderr=-1, text=True) for _ in range(16)]
    answers = [(json.loads(run.communicate(timeout=60)[0]), run.returncode) for run in runs]
    assert [told["reclaimed_roots"] for told, code in answers if code == 0 and told["port_action"] != "noop"] == [
        [stale.pid]
    ]
    assert all("another preflight of port" in told["error"] for told, code in answers if code == 1)
    assert {code for _, code in answers} <= {0, 1}
    assert machine.left() == []
