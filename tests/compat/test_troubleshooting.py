"""Each case of the reference's chapter "Troubleshooting": its code, and a message that has the remedy, which works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from compatkit import MODEL_ID, PREFLIGHT, RESOLVE, SERVE, User
from fakehub import FakeHub
from gpukit import compile_nvml, write_smi
from realserver import free_port
from standin import Machine, hand_over, held, listens, wait_for

from vllmrt.preflight.decision import PortState
from vllmrt.preflight.refusals import still_bound
from vllmrt.preflight.stopping import Stopped
from vllmrt.testing import make_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.test_machine import Done


def answer(done: Done, code: int, *remedies: str) -> None:
    """Hold that the script ended with this code, and that its last lines say what to do."""
    assert (done.code, done.out) == (code, ""), done.err
    hint = done.err.partition("hint ")[2] or done.err
    for remedy in remedies:
        assert remedy in hint, done.err


def preflight(user: User, machine: Machine, wrapper: Sequence[str] = (), **env: str) -> Done:
    lock = {"VLLM_PREFLIGHT_LOCKFILE": str(machine.path / "lock")}
    return user.run(PREFLIGHT, wrapper=wrapper, **lock, **env)


def test_port_conflict_exit_code_2(user: User, machine: Machine) -> None:
    stranger = machine.start([sys.executable, machine.standin], LISTEN=f"127.0.0.1:{user.port}")
    done = preflight(user, machine)
    answer(done, 2, "stop it", "VLLM_PORT")
    assert f"process {stranger.pid} (" in done.err
    answer(preflight(user, machine, VLLM_PORT=str(free_port())), 0)
    stranger.kill()
    stranger.wait()
    answer(preflight(user, machine), 0)


def test_different_uid_exit_code_3(user: User, machine: Machine, as_other: list[str]) -> None:
    machine.start([sys.executable, machine.vllm, "serve"], wrapper=as_other, LISTEN=f"127.0.0.1:{user.port}")
    answer(preflight(user, machine), 3, "ask them to stop it", "VLLM_ALLOW_OTHER_UID_KILL=1")
    answer(preflight(user, machine, VLLM_ALLOW_OTHER_UID_KILL="1"), 0)


def test_inode_not_attributable_exit_code_4(user: User, machine: Machine) -> None:
    if os.geteuid():
        pytest.skip("needs root, to make a namespace")
    machine.serve(port=user.port)
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    answer(preflight(user, machine, inside), 4, "run as that user or root", "hidepid", "VLLM_PORT")
    answer(preflight(user, machine), 0)


def test_stop_failed_exit_code_5(user: User, machine: Machine) -> None:
    hand_over(machine, user.port)
    answer(preflight(user, machine), 5, "see who starts it again")


def test_stop_failed_because_it_takes_longer() -> None:
    error = still_bound(PortState("127.0.0.1", 8000), Stopped())
    assert error.exit_code == 5
    assert "raise VLLM_STOP_TIMEOUT" in str(error.hint)


def test_gpu_not_detected(user: User, machine: Machine) -> None:
    library = compile_nvml(user.root / "nvml")
    environ = {"LD_LIBRARY_PATH": str(library), "NVML_STUB": "none", "VLLM_SKIP_GPU_CHECK": "0"}
    done = preflight(user, machine, **environ)
    answer(done, 1, "VLLM_SKIP_GPU_CHECK=1")
    assert "no GPU" in done.err
    answer(preflight(user, machine, **environ | {"VLLM_SKIP_GPU_CHECK": "1"}), 0)


def test_gated_model_401(user: User) -> None:
    with FakeHub() as hub:
        hub.add(MODEL_ID, make_model(user.root / "origin"), gated="auto")
        hub.tokens["hf_of_mine"] = {MODEL_ID}
        online: dict[str, str | None] = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": None}
        online["VLLM_MODEL_SOURCES"] = "hf-hub"
        answer(user.run(RESOLVE, **online), 1, "HF_TOKEN", f"/{MODEL_ID}")  # where its licence is accepted
        assert not user.local.exists()
        answer(user.run(RESOLVE, HF_TOKEN="hf_of_mine", **online), 0)


OUT_OF_MEMORY = {
    "1 | lower gpu-memory-utilization in the config": ({}, "gpu-memory-utilization: 0.5\n", []),
    "2 | reduce VLLM_MAX_MODEL_LEN": ({"VLLM_MAX_MODEL_LEN": "64"}, None, ["--max-model-len", "64"]),
    "3 | VLLM_KV_CACHE_DTYPE=fp8": ({"VLLM_KV_CACHE_DTYPE": "fp8"}, None, ["--kv-cache-dtype", "fp8"]),
    "4 | increase tensor parallelism": ({"VLLM_TENSOR_PARALLEL_SIZE": "2"}, None, ["--tensor-parallel-size", "2"]),
}


@pytest.mark.parametrize(("environ", "config", "words"), OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_out_of_memory(environ: dict[str, str], config: str | None, words: list[str], ready: User) -> None:
    path = ready.cache / "vllm-config.yaml"
    if config:
        path.write_text(config)
    argv = ready.launched(**environ)["argv"]
    assert " ".join(words) in " ".join(argv)
    assert argv[argv.index("--config") + 1] == str(path)
    assert path.read_text() == config or config is None


def test_out_of_memory_is_seen_before(user: User, machine: Machine) -> None:
    row = "0, GPU-0, 80000, 3000, 40, 0, P0, 0x1, Disabled, NVIDIA A100"
    folder = write_smi(user.root / "smi", f"echo '{row}'")
    environ = {"PATH": f"{folder}:/usr/bin:/bin", "VLLM_SKIP_GPU_CHECK": "0", "VLLMRT_GPU_PROBES": "nvidia-smi"}
    done = preflight(user, machine, **environ)
    assert (done.code, "2.92 of 78.12 GiB free, less than 4" in done.err) == (0, True)
    answer(preflight(user, machine, VLLM_GPU_FAIL_ON="memory", **environ), 1, "stop the processes that hold it")


def test_missing_tokenizer(user: User) -> None:
    make_model(user.local, tokenizer=False)
    done = user.run(RESOLVE, VLLM_MODEL_SOURCES="local")
    assert (done.code, "VLLM_SKIP_TOKENIZER_CHECK=1" in done.err) == (1, True), done.err
    answer(user.run(RESOLVE, VLLM_MODEL_SOURCES="local", VLLM_SKIP_TOKENIZER_CHECK="1"), 0)


def test_stale_lock_of_the_preflight(user: User, machine: Machine) -> None:
    """Killed in the middle, it leaves a lock file and no lock: nothing has to be removed, and removing it is fine."""
    machine.serve(port=user.port, ON_TERM="ignore")
    lock = machine.path / "lock"
    environ = user.env | {"VLLM_PREFLIGHT_LOCKFILE": str(lock)}
    with subprocess.Popen([PREFLIGHT], env=environ, stderr=subprocess.DEVNULL) as killed:
        wait_for(lambda: lock.exists() and held(lock))
        killed.send_signal(signal.SIGKILL)
    assert lock.exists()
    answer(preflight(user, machine, VLLM_STOP_TIMEOUT="1"), 0)
    assert not listens(user.port)
    lock.unlink()
    answer(preflight(user, machine), 0)


def test_stale_lock_of_a_resolve(user: User) -> None:
    with FakeHub() as hub:
        hub.add(MODEL_ID, make_model(user.root / "origin"))
        hub.fault("", origin="cdn", times=-1, rate=2000)
        environ = user.env | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "VLLM_MODEL_SOURCES": "hf-hub"}
        with subprocess.Popen([RESOLVE], env=environ, stderr=subprocess.DEVNULL) as killed:
            wait_for(lambda: sum(hub.sent.values()) > 1000)
            killed.send_signal(signal.SIGKILL)
    (lock,) = (user.models / ".locks").iterdir()
    user.have_model()
    begin = time.monotonic()
    answer(user.run(RESOLVE, VLLM_MODEL_SOURCES="local"), 0)
    assert time.monotonic() - begin < 10
    lock.unlink()
    answer(user.run(RESOLVE, VLLM_MODEL_SOURCES="local"), 0)


def test_env_file_not_found(user: User) -> None:
    answer(user.run(SERVE), 1, "vllm-resolve-model", "VLLM_MODEL_ENV_FILE")
    user.have_model()
    line = f"{RESOLVE} && {SERVE} --dry-run"
    answer(user.bash(line, VLLM_MODEL_SOURCES="local"), 0)
    elsewhere = user.root / "elsewhere.env"
    user.env_file.rename(elsewhere)
    answer(user.run(SERVE, "--dry-run", VLLM_MODEL_ENV_FILE=str(elsewhere)), 0)


@pytest.mark.parametrize(("flag", "runs"), [("--print-cmd", True), ("--dry-run", False)])
def test_inspecting_the_generated_command(flag: str, runs: bool, ready: User) -> None:  # noqa: FBT001 - a case
    done = ready.run(SERVE, flag)
    assert (done.code, bool(done.out)) == (0, runs)
    assert f"serve {ready.local} --config" in done.err


def test_verbose_logging(ready: User) -> None:
    assert ready.launched(VLLM_LOGGING_LEVEL="DEBUG")["environ"]["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert ready.launched()["environ"]["VLLM_LOGGING_LEVEL"] == "WARNING"
