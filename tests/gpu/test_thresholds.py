"""The thresholds of the reference: chapter "GPU health check"."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from vllmrt.errors import ConfigError, GpuUnhealthy
from vllmrt.gpu import thresholds
from vllmrt.gpu.report import GpuReport, gib, refuse, summary, tell
from vllmrt.gpu.throttle import words
from vllmrt.layers import load
from vllmrt.settings import Settings
from vllmrt.types import GpuProcess, GpuStatus, Skip

if TYPE_CHECKING:
    from vllmrt.events import Event

GIB = 1 << 30


def gpu(**changed: Any) -> GpuStatus:
    fine = {"uuid": "GPU-a", "name": "H100", "memory_total": 80 * GIB, "memory_free": 79 * GIB}
    return GpuStatus(0, **{**fine, "temperature_c": 41, "utilization_pct": 7, **changed})


def judged(status: GpuStatus, **settings: Any) -> dict[str, bool]:
    """What is wrong, and whether it is fatal."""
    return {problem.code: problem.fatal for problem in thresholds.judge([status], Settings(**settings))}


EDGES: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "as warm as allowed": ({"temperature_c": 85}, {}, set()),
    "a degree more": ({"temperature_c": 86}, {}, {"gpu-temperature"}),
    "a limit of one": ({"temperature_c": 2}, {"max_gpu_temp_c": 1}, {"gpu-temperature"}),
    "below freezing": ({"temperature_c": -3}, {}, set()),
    "as full as allowed": ({"memory_free": 4 * GIB}, {}, set()),
    "a byte less": ({"memory_free": 4 * GIB - 1}, {}, {"gpu-memory"}),
    "half a GiB is enough": ({"memory_free": GIB // 2}, {"min_free_gpu_gb": 0.5}, set()),
    "nothing is enough": ({"memory_free": 0}, {"min_free_gpu_gb": 0.0}, set()),
    "as busy as allowed": ({"utilization_pct": 95}, {}, set()),
    "a per cent more": ({"utilization_pct": 96}, {}, {"gpu-utilization"}),
    "a hundred is never too busy": ({"utilization_pct": 100}, {"max_gpu_util_pct": 100}, set()),
    "one is too busy for zero": ({"utilization_pct": 1}, {"max_gpu_util_pct": 0}, {"gpu-utilization"}),
    "everything": (
        {"temperature_c": 99, "memory_free": 0, "utilization_pct": 100},
        {},
        {"gpu-temperature", "gpu-memory", "gpu-utilization"},
    ),
    "idle clocks": ({"throttle_reasons": ("idle", "software power cap")}, {}, set()),
    "slow clocks": ({"throttle_reasons": ("idle", "hardware power brake")}, {}, {"gpu-throttled"}),
}


@pytest.mark.parametrize(("status", "settings", "codes"), EDGES.values(), ids=EDGES)
def test_what_is_beyond_a_threshold(status: dict[str, Any], settings: dict[str, Any], codes: set[str]) -> None:
    assert set(judged(gpu(**status), **settings)) == codes


CONDITIONS = ("temperature", "memory", "utilization")


@pytest.mark.parametrize("fatal", [(), *((one,) for one in CONDITIONS), CONDITIONS], ids=str)
def test_what_stops_the_start(fatal: tuple[str, ...]) -> None:
    bad = gpu(temperature_c=99, memory_free=0, utilization_pct=100)
    assert judged(bad, gpu_fail_on=fatal) == {f"gpu-{one}": one in fatal for one in CONDITIONS}


def test_by_default_only_heat_does() -> None:
    assert Settings().gpu_fail_on == ("temperature",)


@pytest.mark.parametrize(
    ("condition", "untold"),
    [
        ("temperature", {"temperature_c": None}),
        ("memory", {"memory_total": 0}),
        ("utilization", {"utilization_pct": None}),
    ],
)
def test_what_a_device_does_not_tell_stops_nothing_and_is_told(condition: str, untold: dict[str, Any]) -> None:
    status = gpu(**{"memory_free": 80 * GIB, **untold})
    assert judged(status, gpu_fail_on=CONDITIONS) == {"gpu-unknown": False}
    assert judged(status, gpu_fail_on=()) == {}
    (problem,) = thresholds.judge([status], Settings(gpu_fail_on=CONDITIONS))
    assert f"does not tell its {condition}" in problem.message


def test_a_fault_stops_the_start_whatever_else_the_device_says() -> None:
    assert judged(gpu(fault="GPU is lost", temperature_c=99, memory_free=0), gpu_fail_on=()) == {"gpu-fault": True}


OUTSIDE = {
    "VLLM_SKIP_GPU_CHECK": "2",
    "VLLM_MIN_FREE_GPU_GB": "-0.001",
    "VLLM_MAX_GPU_TEMP_C": "0",
    "VLLM_MAX_GPU_UTIL_PCT": "101",
    "VLLM_GPU_FAIL_ON": "temperature,heat",
    "VLLM_GPU_DEVICES": "0,-1",
    "VLLMRT_GPU_PROBE_TIMEOUT": "0",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_value_outside_its_bound_is_named_and_ends_with_1(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({name: OUTSIDE[name]})
    assert f"{name}={OUTSIDE[name]!r}" in caught.value.message
    assert caught.value.exit_code == 1


# -- how many ------------------------------------------------------------------------------

NUMBERS = {
    "as many as there are": (4, 2, 2, {}),
    "one of one": (1, 1, 1, {}),
    "more": (2, 4, 1, {"gpu-number": True}),
    "more by pipeline": (8, 4, 4, {"gpu-number": True}),
    "one too many": (3, 2, 2, {"gpu-number": True}),
    "fewer": (8, 2, 2, {"gpu-number": False}),
    "there is none at all, which is said elsewhere": (0, 2, 1, {}),
}


@pytest.mark.parametrize(("visible", "tensor", "pipeline", "codes"), NUMBERS.values(), ids=NUMBERS)
def test_how_many_gpus_are_needed(visible: int, tensor: int, pipeline: int, codes: dict[str, bool]) -> None:
    settings = Settings(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    assert {one.code: one.fatal for one in thresholds.number(visible, settings)} == codes


def test_too_few_gpus_are_told_with_the_numbers_and_a_remedy() -> None:
    (problem,) = thresholds.number(1, Settings(tensor_parallel_size=2, pipeline_parallel_size=3))
    assert problem.message == (
        "VLLM_TENSOR_PARALLEL_SIZE 2 x VLLM_PIPELINE_PARALLEL_SIZE 3 needs 6 GPUs, and 1 is visible"
    )
    assert "product is 1" in str(problem.hint)
    assert "docs/multi-gpu.md" in str(problem.hint)


def message(status: GpuStatus) -> str:
    (problem,) = thresholds.judge([status], Settings())
    return problem.message


def test_who_holds_the_memory_is_told_the_largest_first() -> None:
    holders = tuple(GpuProcess(pid, memory=pid * GIB, name=f"p{pid}") for pid in range(1, 8))
    assert message(gpu(memory_free=0, processes=holders)).endswith(
        "held by 7 p7 (7 GiB), 6 p6 (6 GiB), 5 p5 (5 GiB), 4 p4 (4 GiB), 3 p3 (3 GiB) and 2 more"
    )


def test_a_holder_without_a_name_is_looked_up_and_its_options_are_not_shown() -> None:
    told = message(gpu(memory_free=0, processes=(GpuProcess(os.getpid(), memory=GIB),)))
    assert f"held by {os.getpid()} " in told
    assert " -" not in told
    assert "(of another container or user)" not in told


def test_a_holder_that_is_not_here_or_tells_no_size() -> None:
    assert message(gpu(memory_free=0, processes=(GpuProcess(4194305),))).endswith(
        "held by 4194305 (of another container or user)"
    )


def test_memory_that_nobody_holds_visibly() -> None:
    assert "the driver tells no process" in message(gpu(memory_free=0))


def test_a_mig_instance_is_named_by_its_uuid() -> None:
    assert message(gpu(uuid="MIG-1", memory_free=0)).startswith("GPU 0 (H100, MIG-1) has 0 of 80 GiB free")


def test_throttle_reasons_are_words() -> None:
    assert words(0) == ()
    assert words(0x1 | 0x40) == ("idle", "hardware thermal slowdown")
    assert words(0x600) == ("board limit", "reliability")
    assert words(1 << 40) == ("reason 0x10000000000",)
    assert len(set(words(0x7FF))) == 11


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (4 * GIB - 1, "3.99"), (4 * GIB, "4"), (int(79.5 * GIB), "79.5"), (1 << 60, "1.07374e+09")],
)
def test_gibibytes_are_rounded_down(size: int, text: str) -> None:
    assert gib(size) == text


# the report


def report(*statuses: GpuStatus, **settings: Any) -> GpuReport:
    return GpuReport("nvml", statuses, len(statuses), tuple(thresholds.judge(statuses, Settings(**settings))))


def test_fatal_problems_are_one_error_with_exit_code_1() -> None:
    with pytest.raises(GpuUnhealthy) as caught:
        refuse(report(gpu(temperature_c=99), gpu(temperature_c=98)))
    assert caught.value.message.splitlines() == [
        "GPU 0 (H100) is at 99 °C, above 85 (VLLM_MAX_GPU_TEMP_C)",
        "GPU 0 (H100) is at 98 °C, above 85 (VLLM_MAX_GPU_TEMP_C)",
    ]
    assert (caught.value.exit_code, len((caught.value.hint or "").splitlines())) == (1, 1)


def test_what_a_stale_server_holds_may_be_judged_later() -> None:
    full = report(gpu(memory_free=0), gpu_fail_on=("memory",))
    refuse(full, later={"gpu-memory"})
    with pytest.raises(GpuUnhealthy, match="VLLM_MIN_FREE_GPU_GB"):
        refuse(full)


def test_a_report_is_told_once_and_its_errors_are_left_to_the_error() -> None:
    events: list[Event] = []
    status = gpu(temperature_c=99, memory_free=0)
    told = report(status)._replace(skips=(("acme", Skip("no")),), warnings=("look",))
    tell(told, events.append)
    assert [(event.name, event.level) for event in events] == [
        ("gpu.status", "info"),
        ("gpu.skip", "info"),
        ("gpu.warning", "warning"),
        ("gpu.warning", "warning"),
    ]
    assert events[0].text == "1 x H100 · 0 GiB free · 99 °C · nvml"
    assert events[2].data == {"code": "gpu-memory"}


def test_the_summary_has_the_worst_values() -> None:
    other = gpu(name="L4", memory_free=int(20.5 * GIB), temperature_c=None)
    assert summary([gpu(temperature_c=50), other, gpu()]) == "2 x H100, 1 x L4 · 20.5 GiB free · 50 °C"
    assert summary([gpu(memory_total=0, temperature_c=None)]) == "1 x H100"
