"""The real nvidia-ml-py against a libnvidia-ml.so.1 that is made for the test (tests/gpu/nvml_stub.c)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from gpukit import compile_nvml, run_check

from vllmrt.testing import GpuProbeConformance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Check = Callable[..., dict[str, Any]]

GIB = 1 << 30
UUIDS = [f"GPU-abc0000{index}-aaaa-bbbb-cccc-00000000000{index}" for index in range(8)]
INSTANCES = [f"MIG-def0000{place}-dddd-eeee-ffff-00000000000{place}" for place in (0, 2, 4, 6)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def check(library: Path) -> Check:
    def run(stub: str, **environ: str) -> dict[str, Any]:
        told = run_check({"NVML_STUB": stub, "VLLMRT_GPU_PROBES": "nvml", **environ}, library=library)
        assert not told.get("imported"), "pynvml is in the main process"
        return told

    return run


def codes(told: dict[str, Any]) -> dict[str, bool]:
    return {problem["code"]: problem["fatal"] for problem in told["gpu_problems"]}


def uuids(told: dict[str, Any]) -> list[str]:
    return [gpu["uuid"] for gpu in told["gpus"]]


def test_a_healthy_gpu(check: Check) -> None:
    told = check("healthy")
    assert told["gpus"] == [
        {
            "index": 0,
            "uuid": UUIDS[0],
            "name": "NVIDIA H100 80GB HBM3",
            "memory_total": 80 * GIB,
            "memory_free": 79 * GIB,
            "temperature_c": 41,
            "utilization_pct": 7,
            "pstate": "P0",
            "throttle_reasons": ["idle"],
            "aliases": [],
            "processes": [],
            "fault": None,
        }
    ]
    assert (told["gpu_check_source"], told["gpus_visible"]) == ("nvml", 1)
    assert (told["error"], told["gpu_problems"], told["gpu_warnings"], told["gpu_skips"]) == (None, [], [], [])


def test_a_hot_gpu_stops_the_start(check: Check) -> None:
    told = check("hot")
    assert told["error"] == "GPU 0 (NVIDIA H100 80GB HBM3) is at 91 °C, above 85 (VLLM_MAX_GPU_TEMP_C)"
    assert (told["code"], told["hint"] is None) == (1, False)
    assert codes(told) == {"gpu-temperature": True, "gpu-throttled": False}
    assert told["gpus"][0]["throttle_reasons"] == ["hardware slowdown", "hardware thermal slowdown"]


@pytest.mark.parametrize(
    ("environ", "fatal"),
    [
        ({"VLLM_MAX_GPU_TEMP_C": "91"}, None),
        ({"VLLM_GPU_FAIL_ON": "memory"}, False),
        ({"VLLM_GPU_FAIL_ON": ","}, False),
    ],
)
def test_how_hot_is_too_hot_is_for_the_user_to_say(
    environ: dict[str, str],
    fatal: bool | None,  # noqa: FBT001
    check: Check,
) -> None:
    told = check("hot", **environ)
    assert told["error"] is None
    assert codes(told).get("gpu-temperature") is fatal


def test_a_gpu_as_warm_as_is_allowed(check: Check) -> None:
    assert codes(check("warm")) == {}


def test_a_full_gpu_is_a_warning_and_names_who_holds_it(check: Check) -> None:
    pid = os.getpid()
    told = check("full", NVML_STUB_PID=str(pid))
    assert told["error"] is None
    (problem,) = told["gpu_problems"]
    assert "has 1.5 of 80 GiB free, less than 4 (VLLM_MIN_FREE_GPU_GB); held by " in problem["message"]
    assert f"{pid} python" in problem["message"]
    assert "(76 GiB), 4194305 (of another container or user)" in problem["message"]
    assert told["gpus"][0]["processes"] == [
        {"pid": pid, "memory": 76 * GIB, "name": None},
        {"pid": 4194305, "memory": None, "name": None},
    ]


def test_a_full_gpu_stops_the_start_where_the_user_says_so(check: Check) -> None:
    told = check("full", NVML_STUB_PID="1", VLLM_GPU_FAIL_ON="temperature,memory")
    assert told["code"] == 1
    assert codes(told) == {"gpu-memory": True}
    assert check("full", NVML_STUB_PID="1", VLLM_GPU_FAIL_ON="memory", VLLM_MIN_FREE_GPU_GB="1.5")["error"] is None


def test_in_a_container_nobody_holds_it_visibly(check: Check) -> None:
    assert "the driver tells no process" in check("full container")["gpu_problems"][0]["message"]


def test_a_busy_gpu(check: Check) -> None:
    assert codes(check("busy")) == {"gpu-utilization": False}
    assert check("busy", VLLM_GPU_FAIL_ON="utilization")["code"] == 1
    assert codes(check("busy", VLLM_MAX_GPU_UTIL_PCT="99")) == {}


def test_a_driver_without_a_gpu_stops_the_start(check: Check) -> None:
    told = check("none", VLLM_GPU_FAIL_ON=",")
    assert told["error"] == "there is a GPU driver, but no GPU (nvml sees none)"
    assert "VLLM_SKIP_GPU_CHECK=1" in told["hint"]
    assert told["gpus_visible"] == 0
    assert check("none", VLLM_SKIP_GPU_CHECK="1")["gpu_check_source"] == "skipped"


@pytest.mark.parametrize("stub", ["hang", "stubborn"])
def test_a_driver_that_hangs_is_skipped_in_time(stub: str, check: Check) -> None:
    told = check(stub, VLLMRT_GPU_PROBE_TIMEOUT="0.6")
    assert told["gpu_skips"][0]["reason"] == "vllmrt-gpu-nvml 0.1.0: no answer in 0.6 s, as when a driver hangs"
    assert told["error"] is None
    assert told["gpu_check_source"] == "skipped"
    assert told["seconds"] < 3


def test_the_process_in_which_a_driver_hangs_is_gone_afterwards(check: Check, tmp_path: Path) -> None:
    log = tmp_path / "log"
    check("log hang", NVML_STUB_LOG=str(log), VLLMRT_GPU_PROBE_TIMEOUT="0.6")
    pid = int(log.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        ("segv", "it was killed by SIGSEGV"),
        ("abort", "it was killed by SIGABRT"),
        ("exit", "it ended without an answer"),
    ],
)
def test_a_driver_that_crashes_is_skipped(stub: str, reason: str, check: Check) -> None:
    told = check(stub)
    assert told["gpu_skips"][0]["reason"] == f"vllmrt-gpu-nvml 0.1.0: {reason}"
    assert told["error"] is None


def test_a_driver_that_prints_is_not_heard(check: Check) -> None:
    assert check("chatty")["gpu_check_source"] == "nvml"


@pytest.mark.parametrize(
    ("stub", "reason", "hint"),
    [
        ("not-loaded", "Driver Not Loaded", "modprobe"),
        ("mismatch", "version mismatch", "reboot"),
        ("forbidden", "Insufficient Permissions", "/dev/nvidiactl"),
    ],
)
def test_a_driver_that_refuses_says_why(stub: str, reason: str, hint: str, check: Check) -> None:
    (skip,) = check(stub)["gpu_skips"]
    assert reason in skip["reason"]
    assert hint in skip["hint"]


def test_a_library_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    told = run_check({"VLLMRT_GPU_PROBES": "nvml"}, library=tmp_path)
    assert "there is no libnvidia-ml.so.1" in told["gpu_skips"][0]["reason"]


def test_an_older_driver_has_the_reasons_under_their_old_name(tmp_path: Path) -> None:
    library = compile_nvml(tmp_path, "-DOLD_DRIVER")
    told = run_check({"NVML_STUB": "healthy"}, library=library)
    assert told["gpus"][0]["throttle_reasons"] == ["software power cap"]


def test_a_virtual_gpu_that_tells_no_temperature(check: Check) -> None:
    told = check("virtual")
    assert (told["gpus"][0]["temperature_c"], told["gpus"][0]["pstate"]) == (None, None)
    assert codes(told) == {"gpu-unknown": False}


def test_memory_that_is_shared_with_the_cpu(check: Check) -> None:
    told = check("shared")
    assert (told["gpus"][0]["memory_total"], told["gpus"][0]["memory_free"]) == (0, 0)
    assert codes(told) == {}


# eight of them


def test_eight_gpus(check: Check) -> None:
    told = check("eight")
    assert uuids(told) == UUIDS
    assert [gpu["index"] for gpu in told["gpus"]] == list(range(8))
    assert told["gpus_visible"] == 8


@pytest.mark.parametrize(
    ("devices", "indices"),
    [
        ("5", [5]),
        ("7,0", [7, 0]),
        (UUIDS[2], [2]),
        ("GPU-abc00006", [6]),
        (f"1,{UUIDS[4]},1", [1, 4]),
    ],
)
def test_some_of_eight(devices: str, indices: list[int], check: Check) -> None:
    told = check("eight", VLLM_GPU_DEVICES=devices)
    assert [gpu["index"] for gpu in told["gpus"]] == indices
    assert (told["gpus_visible"], told["error"]) == (8, None)


def test_what_cuda_may_see_counts_where_nothing_else_is_said(check: Check) -> None:
    told = check("eight", CUDA_VISIBLE_DEVICES="GPU-abc00003,GPU-abc00001")
    assert uuids(told) == [UUIDS[3], UUIDS[1]]
    assert told["gpus_visible"] == 2


def test_no_gpu_is_looked_at_where_cuda_sees_none(check: Check) -> None:
    told = check("segv", CUDA_VISIBLE_DEVICES="")
    assert (told["gpus_visible"], told["gpu_skips"], told["error"]) == (0, [], None)
    assert told["gpu_warnings"] == ["CUDA_VISIBLE_DEVICES='' hides every GPU from the engine, so none was checked"]


@pytest.mark.parametrize("devices", ["8", "GPU-abc00009", f"0,{UUIDS[0]}0"])
def test_one_that_is_not_there(devices: str, check: Check) -> None:
    told = check("eight", VLLM_GPU_DEVICES=devices)
    assert told["code"] == 1
    assert codes(told) == {"gpu-missing": True}
    assert f"there is no GPU {devices.rpartition(',')[2]}; nvml sees 0 {UUIDS[0]}, 1 {UUIDS[1]}" in told["error"]


def test_a_beginning_that_all_share(check: Check) -> None:
    assert "several GPUs begin with GPU-abc" in check("eight", CUDA_VISIBLE_DEVICES="GPU-abc")["error"]


@pytest.mark.parametrize("devices", [{"VLLM_GPU_DEVICES": "0,-1"}, {"CUDA_VISIBLE_DEVICES": "0,0"}])
def test_a_list_that_cannot_be_used(devices: dict[str, str], check: Check) -> None:
    told = check("segv", **devices)
    assert (told["code"], told.get("gpu_skips")) == (1, None)
    assert next(iter(devices)) in told["error"]


def test_gpus_that_are_not_named_are_not_woken_up(check: Check) -> None:
    told = check("eight asleep", CUDA_VISIBLE_DEVICES="5", VLLMRT_GPU_PROBE_TIMEOUT="5")
    assert uuids(told) == [UUIDS[5]]


def test_a_lost_gpu_stops_the_start_only_of_who_would_use_it(check: Check) -> None:
    told = check("eight lost")
    assert codes(told) == {"gpu-fault": True}
    assert "GPU 3 (unnamed) cannot be used: GPU is lost" in told["error"]
    assert check("eight lost", CUDA_VISIBLE_DEVICES="2,4")["error"] is None
    assert check("eight lost", CUDA_VISIBLE_DEVICES=f"{UUIDS[2]}")["error"] is None
    assert "GPU is lost" in check("eight lost", VLLM_GPU_DEVICES="3")["error"]


def test_a_gpu_that_is_lost_while_it_is_read(check: Check) -> None:
    told = check("lost-later")
    assert codes(told) == {"gpu-fault": True}
    assert uuids(told) == [UUIDS[0]]


# MIG


def test_of_a_divided_gpu_the_instances_are_told(check: Check) -> None:
    told = check("mig")
    assert uuids(told) == INSTANCES
    first = told["gpus"][0]
    assert (first["index"], first["name"]) == (0, "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    assert (first["memory_total"], first["memory_free"]) == (10 * GIB, 9 * GIB)
    assert (first["temperature_c"], first["utilization_pct"]) == (41, None)
    assert (told["gpus_visible"], told["error"]) == (1, None)


@pytest.mark.parametrize(
    ("device", "instance"),
    [(INSTANCES[1], 1), ("MIG-def00004", 2), (f"MIG-{UUIDS[0]}/13/0", 3)],
)
def test_an_instance_is_meant_by_its_uuid(device: str, instance: int, check: Check) -> None:
    for variable in ("VLLM_GPU_DEVICES", "CUDA_VISIBLE_DEVICES"):
        told = check("mig", **{variable: device})
        assert uuids(told) == [INSTANCES[instance]]
        assert told["error"] is None


@pytest.mark.parametrize("device", ["0", UUIDS[0], "GPU-abc"])
def test_a_divided_gpu_means_its_instances(device: str, check: Check) -> None:
    told = check("mig", CUDA_VISIBLE_DEVICES=device)
    assert uuids(told) == INSTANCES
    assert (told["gpus_visible"], told["error"]) == (1, None)


@pytest.mark.parametrize("device", ["MIG-fff", f"MIG-{UUIDS[0]}/8/0", "1"])
def test_an_instance_that_is_not_there(device: str, check: Check) -> None:
    assert codes(check("mig", CUDA_VISIBLE_DEVICES=device)) == {"gpu-missing": True}


def test_whole_gpus_beside_a_divided_one(check: Check) -> None:
    told = check("mig eight")
    assert uuids(told) == [*INSTANCES, *UUIDS[1:]]
    assert told["gpus_visible"] == 7


def test_a_full_and_hot_instance(check: Check) -> None:
    told = check("mig full hot container", CUDA_VISIBLE_DEVICES=INSTANCES[0])
    assert codes(told) == {"gpu-temperature": True, "gpu-memory": False, "gpu-throttled": False}
    assert f"GPU 0 (NVIDIA H100 80GB HBM3 MIG 1g.10gb, {INSTANCES[0]}) is at 91" in told["error"]


def test_a_gpu_that_is_divided_into_nothing(check: Check) -> None:
    told = check("mig-empty")
    assert codes(told) == {"gpu-fault": True}
    assert "there is no MIG instance on it" in told["error"]


class TestConformance(GpuProbeConformance):
    name = "nvml"

    @pytest.fixture
    def machine(self, library: Path) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(library), "NVML_STUB": "eight"}
