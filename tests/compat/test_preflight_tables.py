"""``vllm-preflight`` against the reference's chapter "Pre-flight", a test for every row of its tables."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from cli.test_machine import Done
from compatkit import PREFLIGHT
from gpukit import compile_nvml, write_smi
from standin import OTHER, Machine, alive, hand_over, held, listens, wait_for

from vllmrt import layers
from vllmrt.cli.compat import preflight as script
from vllmrt.cli.compat.script import load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FIELDS = {
    "ok",
    "host",
    "port",
    "port_action",
    "reclaimed_roots",
    "blocked_roots",
    "could_scan",
    "gpus",
    "gpu_check_source",
}


class Case:
    """A machine, a port on which nobody listens, and the script."""

    def __init__(self, machine: Machine, port: int) -> None:
        self.machine, self.port = machine, port

    def run(self, *args: str | Path, wrapper: Sequence[str] = (), **env: str) -> Done:
        """Run the script to its end."""
        given = {"VLLM_HOST": "127.0.0.1", "VLLM_PORT": str(self.port), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [*wrapper, PREFLIGHT, *args],
            env=self.machine.environ | given | env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def answer(self, code: int = 0, wrapper: Sequence[str] = (), **env: str) -> dict[str, Any]:
        """Run the script for its JSON object."""
        done = self.run(wrapper=wrapper, VLLM_PREFLIGHT_JSON="1", **env)
        told: dict[str, Any] = done.json
        assert (done.code, told["ok"]) == (code, code == 0), done.err
        assert told.keys() >= FIELDS
        assert done.out.count("\n") == 1
        return told

    def stranger(self, host: str = "127.0.0.1", port: int = 0) -> subprocess.Popen[bytes]:
        """Start what listens and is not vLLM."""
        return self.machine.start([sys.executable, self.machine.standin], LISTEN=f"{host}:{port or self.port}")

    def smi(self, row: str) -> dict[str, str]:
        """Return the variables with which nvidia-smi says this, and nothing else knows of a GPU."""
        folder = write_smi(self.machine.path / "smi", f"echo '{row}'")
        return {"PATH": f"{folder}:/usr/bin:/bin", "VLLM_SKIP_GPU_CHECK": "0", "VLLMRT_GPU_PROBES": "nvidia-smi"}

    def nvml(self, stub: str = "healthy") -> dict[str, str]:
        """Return the variables with which the stub of NVML is like that."""
        library = self.machine.path / "nvml"
        if not library.exists():
            compile_nvml(library)
        return {"LD_LIBRARY_PATH": str(library), "VLLM_SKIP_GPU_CHECK": "0", "NVML_STUB": stub}


@pytest.fixture
def case(machine: Machine, port: int) -> Case:
    return Case(machine, port)


def refused(done: Done, code: int, *words: str) -> None:
    """Hold that the script ended as the contract says, and that its message has these words."""
    assert (done.code, done.out) == (code, ""), done.err
    for word in words:
        assert word in done.err


# -- Usage and exit codes -------------------------------------------------------------------


def checks_only(case: Case) -> None:
    done = case.run()
    assert (done.code, done.out) == (0, "")
    assert "is free" in done.err


def then_a_command(case: Case) -> None:
    start = case.machine.path / "start.sh"
    start.write_text(f'#!/bin/sh\necho "$0 $@"\nLISTEN=127.0.0.1:{case.port} EXIT=7 exec $PYTHON $STANDIN\n')
    start.chmod(0o755)
    done = case.run(start, "arg1", "arg 2", "--", "-x")
    assert (done.code, done.out) == (7, f"{start} arg1 arg 2 -- -x\n")


def then_a_command_after_dashes(case: Case) -> None:
    done = case.run("--", "sh", "-c", 'echo "$@"', "sh", "-m", "vllm", "--", "x", VLLM_PREFLIGHT_PROXY_CHILD="0")
    assert (done.code, done.out) == (0, "-m vllm -- x\n")


USAGE = {
    "vllm-preflight | checks only": checks_only,
    "vllm-preflight ./start.sh arg1 arg2 | checks, then exec command": then_a_command,
    "vllm-preflight -- python -m vllm ... | after --": then_a_command_after_dashes,
}


@pytest.mark.parametrize("row", USAGE.values(), ids=USAGE)
def test_usage(row: Callable[[Case], None], case: Case) -> None:
    row(case)


def test_help(case: Case) -> None:
    done = case.run("-h", VLLM_PORT="x")
    assert (done.code, done.err) == (0, "")
    assert "usage: vllm-preflight" in done.out


def code_0(case: Case) -> None:
    assert case.answer()["port_action"] == "noop"
    stale = case.machine.serve(port=case.port, WORKERS="2")
    told = case.answer()
    assert (told["port_action"], told["reclaimed_roots"]) == ("stopped", [stale.pid])
    assert case.machine.left() == []


def code_1(case: Case) -> None:
    refused(case.run(VLLM_PORT="0"), 1, "VLLM_PORT='0'")
    refused(case.run("no-such-program-anywhere"), 1, "no-such-program-anywhere")
    told = case.answer(1, **case.smi(HOT))
    assert "VLLM_MAX_GPU_TEMP_C" in told["error"]


def code_2(case: Case) -> None:
    stranger = case.stranger()
    told = case.answer(2)
    assert (told["code"], told["pids"], told["port_action"]) == (2, [stranger.pid], "blocked")
    assert alive(stranger.pid)


def code_4(case: Case) -> None:
    """A listener of another process namespace has no process here."""
    if os.geteuid():
        pytest.skip("needs root, to make a namespace")
    case.machine.serve(port=case.port)
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    told = case.answer(4, wrapper=inside)
    assert (told["could_scan"], told["port_action"]) == (False, "blocked")
    assert listens(case.port)


def code_5(case: Case) -> None:
    _, heir = hand_over(case.machine, case.port)
    told = case.answer(5)
    assert (told["port_action"], told["pids"]) == ("stop_failed", [heir.pid])


CODES = {
    "0 | success": code_0,
    "1 | validation error": code_1,
    "2 | port owned by non-vLLM process": code_2,
    "4 | not attributable": code_4,
    "5 | stop failed": code_5,
}


@pytest.mark.parametrize("row", CODES.values(), ids=CODES)
def test_exit_code(row: Callable[[Case], None], case: Case) -> None:
    row(case)


def test_exit_code_3_different_uid(case: Case, as_other: list[str]) -> None:
    theirs = case.machine.start(
        [sys.executable, case.machine.vllm, "serve"], wrapper=as_other, LISTEN=f"127.0.0.1:{case.port}"
    )
    told = case.answer(3)
    assert (told["uids"], told["blocked_roots"]) == ([OTHER], [theirs.pid])
    assert "VLLM_ALLOW_OTHER_UID_KILL=1" in told["hint"]
    assert alive(theirs.pid)


def test_a_dry_run_never_ends_with_5(case: Case) -> None:
    stale = case.machine.serve(port=case.port, ON_TERM="ignore")
    for args, env in (((), {"VLLM_DRY_RUN": "1"}), (("--dry-run",), {})):
        done = case.run(*args, VLLM_PREFLIGHT_JSON="1", **env)
        assert (done.code, done.json["port_action"], done.json["reclaimed_roots"]) == (0, "would_stop", [])
    assert alive(stale.pid)
    assert not (case.machine.path / "lock").exists()


# -- Environment variables --------------------------------------------------------------------


def host(case: Case) -> None:
    case.stranger("127.0.0.2")
    assert case.answer()["port_action"] == "noop"
    assert case.answer(2, VLLM_HOST="127.0.0.2")["host"] == "127.0.0.2"
    assert case.answer(2, VLLM_HOST="")["host"] == "0.0.0.0"  # noqa: S104 - the contract's default
    refused(case.run(VLLM_HOST="no such host"), 1, "VLLM_HOST='no such host'")
    refused(case.run(VLLM_HOST="no-such-host.invalid"), 1, "no-such-host.invalid")


def port_(case: Case) -> None:
    case.stranger()
    assert case.answer(2)["port"] == case.port
    for bad in ("0", "65536", "http", "8000.0"):
        refused(case.run(VLLM_PORT=bad), 1, f"VLLM_PORT={bad!r} is not an integer from 1 to 65535")


def dry_run(case: Case) -> None:
    stale = case.machine.serve(port=case.port)
    assert case.answer(VLLM_DRY_RUN="1")["port_action"] == "would_stop"
    assert alive(stale.pid)
    assert case.answer(VLLM_DRY_RUN="0")["port_action"] == "stopped"


def skip_gpu_check(case: Case) -> None:
    asked = case.machine.path / "asked"
    folder = write_smi(case.machine.path / "smi", f"touch {asked}; exit 1")
    environ = {"PATH": f"{folder}:/usr/bin:/bin"}
    assert case.answer(VLLM_SKIP_GPU_CHECK="1", **environ)["gpu_check_source"] == "skipped"
    assert not asked.exists()
    case.answer(VLLM_SKIP_GPU_CHECK="0", **environ)
    assert asked.exists()


GPU = "0, GPU-0, 80000, {free}, {heat}, {load}, P0, 0x1, Disabled, NVIDIA A100"
FULL, HOT, BUSY = (
    GPU.format(free=free, heat=heat, load=load) for free, heat, load in ((3000, 40, 0), (79000, 90, 0), (79000, 40, 99))
)


def min_free_gpu_gb(case: Case) -> None:
    full = case.smi(FULL)
    assert case.run(**full).code == 0
    refused(case.run(VLLM_GPU_FAIL_ON="memory", **full), 1, "2.92", "less than 4", "VLLM_MIN_FREE_GPU_GB")
    assert case.run(VLLM_GPU_FAIL_ON="memory", VLLM_MIN_FREE_GPU_GB="2.5", **full).code == 0
    refused(case.run(VLLM_MIN_FREE_GPU_GB="-1"), 1, "VLLM_MIN_FREE_GPU_GB='-1'")


def max_gpu_temp_c(case: Case) -> None:
    hot = case.smi(HOT)
    refused(case.run(**hot), 1, "90", "above 85", "VLLM_MAX_GPU_TEMP_C")
    assert case.run(VLLM_MAX_GPU_TEMP_C="90", **hot).code == 0
    refused(case.run(VLLM_MAX_GPU_TEMP_C="0"), 1, "VLLM_MAX_GPU_TEMP_C='0'")


def max_gpu_util_pct(case: Case) -> None:
    busy = case.smi(BUSY)
    assert case.run(**busy).code == 0
    refused(case.run(VLLM_GPU_FAIL_ON="utilization", **busy), 1, "99 %", "above 95", "VLLM_MAX_GPU_UTIL_PCT")
    assert case.run(VLLM_GPU_FAIL_ON="utilization", VLLM_MAX_GPU_UTIL_PCT="99", **busy).code == 0
    for bad in ("-1", "101"):
        refused(case.run(VLLM_MAX_GPU_UTIL_PCT=bad), 1, f"VLLM_MAX_GPU_UTIL_PCT='{bad}'")


def gpu_fail_on(case: Case) -> None:
    every = {"VLLM_GPU_FAIL_ON": "temperature,memory,utilization"}
    for spoilt in (FULL, HOT, BUSY):
        assert case.run(**every, **case.smi(spoilt)).code == 1
        assert case.run(VLLM_GPU_FAIL_ON=",", **case.smi(spoilt)).code == 0
    refused(case.run(VLLM_GPU_FAIL_ON="cold"), 1, "VLLM_GPU_FAIL_ON='cold'", "temperature, memory, utilization")


def gpu_devices(case: Case) -> None:
    eight = case.nvml("eight")
    assert [gpu["index"] for gpu in case.answer(**eight)["gpus"]] == list(range(8))
    assert [gpu["index"] for gpu in case.answer(VLLM_GPU_DEVICES="1,5", **eight)["gpus"]] == [1, 5]
    assert [gpu["index"] for gpu in case.answer(CUDA_VISIBLE_DEVICES="0", **eight)["gpus"]] == [0]
    (uuid,) = (gpu["uuid"] for gpu in case.answer(VLLM_GPU_DEVICES="3", **eight)["gpus"])
    assert [gpu["index"] for gpu in case.answer(VLLM_GPU_DEVICES=uuid, **eight)["gpus"]] == [3]
    assert "no GPU 9" in case.answer(1, VLLM_GPU_DEVICES="9", **eight)["error"]


def stop_timeout(case: Case) -> None:
    case.machine.serve(port=case.port, ON_TERM="ignore")
    begin = time.monotonic()
    assert case.run(VLLM_STOP_TIMEOUT="1").code == 0
    assert 1 <= time.monotonic() - begin < 8
    refused(case.run(VLLM_STOP_TIMEOUT="-1"), 1, "VLLM_STOP_TIMEOUT='-1'")


def process_signatures(case: Case) -> None:
    case.stranger()
    assert case.run().code == 2
    assert case.run(VLLM_PROCESS_SIGNATURES="my.custom.launcher,standin.py").code == 0
    assert not listens(case.port)


def lockfile(case: Case) -> None:
    lock = case.machine.path / "my.lock"
    case.run(VLLM_PREFLIGHT_LOCKFILE=str(lock))
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    default = load(("preflight", "port"), {"VLLM_PORT": "8123"}).settings
    from vllmrt.preflight.lock import lock_path

    assert str(lock_path(default)) == "/tmp/vllm-preflight.8123.lock"  # noqa: S108 - the contract's default


def json_mode(case: Case) -> None:
    done = case.run(VLLM_PREFLIGHT_JSON="1")
    assert done.json["ok"] is True
    assert "is free" in done.err
    for command in (["true"], ["--", "true"]):
        both = case.run(*command, VLLM_PREFLIGHT_JSON="1")
        assert (both.code, both.json["ok"]) == (1, False)
    assert case.run(VLLM_PREFLIGHT_JSON="0").out == ""
    settings = case.machine.path / "settings.toml"
    settings.write_text("preflight_json = true\n")
    assert case.run(VLLMRT_SETTINGS_FILE=str(settings)).json["ok"] is True


def proxy_child(case: Case) -> None:
    program = case.machine.path / "show"
    program.write_text(f"#!/bin/sh\necho $$\nLISTEN=127.0.0.1:{case.port} exec $PYTHON $STANDIN\n")
    program.chmod(0o755)
    environ = case.machine.environ | {"VLLM_HOST": "127.0.0.1", "VLLM_PORT": str(case.port)}
    for value, same in (("1", False), ("0", True)):
        given = environ | {"VLLM_PREFLIGHT_PROXY_CHILD": value}
        with subprocess.Popen(
            [PREFLIGHT, program], env=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            case.machine.sessions.append(process)
            assert process.stdout
            assert (int(process.stdout.readline()) == process.pid) is same
            wait_for(lambda: listens(case.port))
            wait_for(lambda: not held(case.machine.path / "lock"))
            process.send_signal(signal.SIGTERM)  # in proxy mode it is passed on
            assert process.wait(20) == (-signal.SIGTERM if same else 128 + signal.SIGTERM)
        wait_for(lambda: not listens(case.port))


def start_bind_timeout(case: Case) -> None:
    begin = time.monotonic()
    refused(case.run("sleep", "100", VLLM_START_BIND_TIMEOUT="0.5"), 1, "VLLM_START_BIND_TIMEOUT", "0.5 s")
    assert time.monotonic() - begin < 10
    refused(case.run("true", VLLM_START_BIND_TIMEOUT="0"), 1, "VLLM_START_BIND_TIMEOUT='0'")


def start_bind_poll(case: Case) -> None:
    refused(case.run("true", VLLM_START_BIND_POLL="0"), 1, "VLLM_START_BIND_POLL='0'")
    listen = {"LISTEN": f"127.0.0.1:{case.port}", "EXIT": "5", "LINGER": "1"}
    command = [sys.executable, case.machine.standin]
    assert case.run(*command, VLLM_START_BIND_POLL="0.05", **listen).code == 5


VARIABLES: dict[str, tuple[object, Callable[[Case], None]]] = {
    "VLLM_HOST | 0.0.0.0 | IP/hostname": ("0.0.0.0", host),  # noqa: S104 - the contract's default
    "VLLM_PORT | 8000 | integer, 1-65535": (8000, port_),
    "VLLM_DRY_RUN | 0 | 0 or 1": (False, dry_run),
    "VLLM_SKIP_GPU_CHECK | 0 | 0 or 1": (False, skip_gpu_check),
    "VLLM_MIN_FREE_GPU_GB | 4 | numeric, >= 0": (4.0, min_free_gpu_gb),
    "VLLM_MAX_GPU_TEMP_C | 85 | integer, >= 1": (85, max_gpu_temp_c),
    "VLLM_MAX_GPU_UTIL_PCT | 95 | integer, 0-100": (95, max_gpu_util_pct),
    "VLLM_GPU_FAIL_ON | temperature | comma-separated": (("temperature",), gpu_fail_on),
    "VLLM_GPU_DEVICES | (unset) | CSV | falls back to CUDA_VISIBLE_DEVICES": ((), gpu_devices),
    "VLLM_STOP_TIMEOUT | 15 | integer, >= 0": (15, stop_timeout),
    "VLLM_PROCESS_SIGNATURES | (unset) | comma-separated": ((), process_signatures),
    "VLLM_PREFLIGHT_LOCKFILE | /tmp/vllm-preflight.{port}.lock | file path": (None, lockfile),
    "VLLM_PREFLIGHT_JSON | 0 | 0 or 1": (False, json_mode),
    "VLLM_PREFLIGHT_PROXY_CHILD | 1 | 0 or 1": (True, proxy_child),
    "VLLM_START_BIND_TIMEOUT | 60 | numeric, > 0": (60.0, start_bind_timeout),
    "VLLM_START_BIND_POLL | 0.2 | numeric, > 0": (0.2, start_bind_poll),
}
FIELD_OF = {row.var.old: row.field for row in layers.rows()}
STRICT = [row for row in VARIABLES if row.endswith("| 0 or 1")] + ["VLLM_ALLOW_OTHER_UID_KILL | 0 | 0 or 1"]


@pytest.mark.parametrize(("row", "default"), [(row, default) for row, (default, _) in VARIABLES.items()], ids=VARIABLES)
def test_variable_default(row: str, default: object, tmp_path: Path) -> None:
    settings = load(script.READS, {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}).settings
    assert getattr(settings, FIELD_OF[row.partition(" | ")[0]]) == default


@pytest.mark.parametrize("row", [effect for _, effect in VARIABLES.values()], ids=VARIABLES)
def test_variable(row: Callable[[Case], None], case: Case) -> None:
    row(case)


@pytest.mark.parametrize("value", ["2", "true", "yes", "01", " 1"])
@pytest.mark.parametrize("row", STRICT)
def test_what_is_0_or_1_is_nothing_else(row: str, value: str, case: Case) -> None:
    name = row.partition(" | ")[0]
    done = case.run(**{name: value})
    assert done.code == 1
    assert f"{name}={value!r} is not 0 or 1" in done.err


def test_variable_allow_other_uid_kill(case: Case, as_other: list[str]) -> None:
    theirs = case.machine.start(
        [sys.executable, case.machine.vllm, "serve"], wrapper=as_other, LISTEN=f"127.0.0.1:{case.port}"
    )
    assert case.answer(3)["uids"] == [OTHER]
    told = case.answer(VLLM_ALLOW_OTHER_UID_KILL="1")
    assert (told["port_action"], told["reclaimed_roots"]) == ("stopped", [theirs.pid])


# what another script reads cannot stop this one
@pytest.mark.parametrize("variable", ["VLLM_MAX_MODEL_LEN=0", "VLLM_MODEL=../x", "VLLM_KEEP_LOGS=yes"])
def test_variables_of_the_other_scripts_are_not_looked_at(variable: str, case: Case) -> None:
    name, _, value = variable.partition("=")
    assert case.run(**{name: value}).code == 0


# -- Port reclaim behaviour ---------------------------------------------------------------------

SIGNATURES = {
    "vllm.entrypoints.openai.api_server": ["{python}", "-m", "vllm.entrypoints.openai.api_server"],
    "vllm.entrypoints.api_server": ["{python}", "-m", "vllm.entrypoints.api_server"],
    "vllm.entrypoints.openai.run_server": ["{python}", "-m", "vllm.entrypoints.openai.run_server"],
    "vllm serve": ["{python}", "{vllm}", "serve", "model"],
    "vllm.entrypoints": ["{python}", "-m", "vllm.entrypoints"],
}


@pytest.mark.parametrize("row", SIGNATURES)
def test_built_in_signature(row: str, case: Case) -> None:
    module = case.machine.path / "vllm" / "entrypoints" / "openai"
    module.mkdir(parents=True)
    for folder in (module.parent.parent, module.parent, module):
        (folder / "__init__.py").write_text("")
    for file in (module / "api_server.py", module.parent / "api_server.py", module / "run_server.py"):
        file.write_text(case.machine.standin.read_text())
    (module.parent / "__main__.py").write_text(case.machine.standin.read_text())
    names = {"python": sys.executable, "vllm": case.machine.vllm}
    argv = [word.format(**names) for word in SIGNATURES[row]]
    stale = case.machine.start(argv, LISTEN=f"127.0.0.1:{case.port}", PYTHONPATH=str(case.machine.path))
    assert case.answer()["reclaimed_roots"] == [stale.pid]


ANY = "0.0.0.0"  # noqa: S104 - what a test asks about


@pytest.mark.parametrize(("bound", "asked"), [(ANY, "127.0.0.1"), ("::", "127.0.0.1"), ("127.0.0.1", ANY)])
def test_wildcards_are_in_the_way_and_are_had_in_the_way(bound: str, asked: str, case: Case) -> None:
    case.stranger(bound)
    assert case.answer(2, VLLM_HOST=asked)["port_action"] == "blocked"


def test_descendants_are_stopped_and_survivors_are_killed(case: Case) -> None:
    stale = case.machine.serve(port=case.port, WORKERS="3", DEAF_WORKERS="1", ON_TERM="ignore")
    neighbour = case.machine.serve()
    assert case.answer(VLLM_STOP_TIMEOUT="1")["reclaimed_roots"] == [stale.pid]
    assert case.machine.left() == [neighbour.pid]


# -- GPU health check ---------------------------------------------------------------------------


def nvml_first(case: Case) -> None:
    both = case.nvml() | {"PATH": f"{write_smi(case.machine.path / 'smi', 'exit 1')}:/usr/bin:/bin"}
    told = case.answer(**both)
    assert told["gpu_check_source"] == "nvml"
    fields = {"name", "memory_total", "memory_free", "temperature_c", "utilization_pct", "pstate", "throttle_reasons"}
    assert told["gpus"][0].keys() >= fields
    assert "no GPU" in case.answer(1, **both | {"NVML_STUB": "none"})["error"]


def nvidia_smi_second(case: Case) -> None:
    environ = case.smi(GPU.format(free=79000, heat=40, load=0)) | {"VLLMRT_GPU_PROBES": "nvml,nvidia-smi"}
    told = case.answer(**environ)
    assert (told["gpu_check_source"], told["gpus"][0]["temperature_c"]) == ("nvidia-smi", 40)


def neither(case: Case) -> None:
    told = case.answer(VLLM_SKIP_GPU_CHECK="0", PATH="/usr/bin:/bin")
    assert (told["gpu_check_source"], told["gpus"]) == ("skipped", [])
    assert "no GPU was checked" in case.run(VLLM_SKIP_GPU_CHECK="0", PATH="/usr/bin:/bin").err


TIERS = {
    "1 | NVML preferred | hard-fails if driver present but 0 devices": nvml_first,
    "2 | nvidia-smi fallback": nvidia_smi_second,
    "3 | neither available | warning, continue": neither,
}


@pytest.mark.parametrize("row", TIERS.values(), ids=TIERS)
def test_gpu_cascade(row: Callable[[Case], None], case: Case) -> None:
    row(case)


def test_the_gpus_are_checked_after_the_port_is_reclaimed(case: Case) -> None:
    case.machine.serve(port=case.port)
    told = case.answer(1, **case.smi(HOT))
    assert told["port_action"] == "stopped"
    assert not listens(case.port)


# -- Multi-GPU ------------------------------------------------------------------------------------


def hybrid(case: Case) -> None:
    sizes = {"VLLM_TENSOR_PARALLEL_SIZE": "4", "VLLM_PIPELINE_PARALLEL_SIZE": "2"}
    assert case.answer(**sizes, **case.nvml("eight"))["gpu_problems"] == []
    told = case.answer(1, **sizes, **case.nvml("healthy"))
    assert told["error"].endswith("needs 8 GPUs, and 1 is visible")
    assert told["gpus_visible"] == 1


def tensor(case: Case) -> None:
    told = case.answer(1, VLLM_TENSOR_PARALLEL_SIZE="2", **case.nvml())
    assert "VLLM_TENSOR_PARALLEL_SIZE 2 x VLLM_PIPELINE_PARALLEL_SIZE 1" in told["error"]
    assert case.answer(VLLM_TENSOR_PARALLEL_SIZE="2", CUDA_VISIBLE_DEVICES="3,4", **case.nvml("eight"))["ok"]


def pipeline(case: Case) -> None:
    told = case.answer(1, VLLM_PIPELINE_PARALLEL_SIZE="4", CUDA_VISIBLE_DEVICES="0,1", **case.nvml("eight"))
    assert "needs 4 GPUs, and 2 are visible" in told["error"]


MULTI_GPU = {
    "VLLM_TENSOR_PARALLEL_SIZE=2 | 2-way tensor parallel": tensor,
    "VLLM_PIPELINE_PARALLEL_SIZE=4 | 4-way pipeline parallel": pipeline,
    "TP x PP must equal your total GPU count": hybrid,
}


@pytest.mark.parametrize("row", MULTI_GPU.values(), ids=MULTI_GPU)
def test_multi_gpu(row: Callable[[Case], None], case: Case) -> None:
    row(case)


ELSEWHERE: dict[str, tuple[list[str], dict[str, str]]] = {
    "no probe sees a GPU": ([], {"LD_LIBRARY_PATH": "", "PATH": "/usr/bin:/bin"}),
    "the check is left out": ([], {"VLLM_SKIP_GPU_CHECK": "1"}),
    "Ray": ([], {"RAY_ADDRESS": "10.0.0.1:6379"}),
    "LeaderWorkerSet": ([], {"LWS_GROUP_SIZE": "2"}),
    "the command behind it": (["true", "--nnodes", "2"], {"VLLM_PREFLIGHT_PROXY_CHILD": "0"}),
}


@pytest.mark.parametrize(("command", "environ"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_gpus_of_other_machines_are_not_missed(command: list[str], environ: dict[str, str], case: Case) -> None:
    done = case.run(*command, **case.nvml() | {"VLLM_TENSOR_PARALLEL_SIZE": "16"} | environ)
    assert done.code == 0, done.err


# -- Locking --------------------------------------------------------------------------------------


def test_the_lockfile_may_be_no_link(case: Case) -> None:
    lock, victim = case.machine.path / "link", case.machine.path / "victim"
    lock.symlink_to(victim)
    refused(case.run(VLLM_PREFLIGHT_LOCKFILE=str(lock)), 1, str(lock))
    assert not victim.exists()


def test_the_lockfile_has_to_be_a_regular_file(case: Case) -> None:
    for kind in ("directory", "fifo"):
        lock = case.machine.path / kind
        lock.mkdir() if kind == "directory" else os.mkfifo(lock)
        refused(case.run(VLLM_PREFLIGHT_LOCKFILE=str(lock)), 1, str(lock))


def test_two_at_once(case: Case) -> None:
    listen = {"LISTEN": f"127.0.0.1:{case.port}", "DELAY": "3"}
    first = case.machine.start(
        [PREFLIGHT, sys.executable, case.machine.standin],
        ready=False,
        **listen,
        VLLM_HOST="127.0.0.1",
        VLLM_PORT=str(case.port),
    )
    wait_for(lambda: (case.machine.path / "lock").exists() and held(case.machine.path / "lock"))
    refused(case.run(), 1, "another preflight of port")
    assert alive(first.pid)


def test_what_stands_on_stdout_is_the_object_and_nothing_else(case: Case) -> None:
    told = json.loads(case.run(VLLM_PREFLIGHT_JSON="1", VLLM_PORT="x").out)
    assert (told["ok"], told["code"], told["class"]) == (False, 1, "ConfigError")
