"""What is wrong with the GPUs. Reference: chapter "GPU health check", "Threshold checks"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllmrt.gpu.report import Problem, gib
from vllmrt.gpu.throttle import SERIOUS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vllmrt.gpu.cascade import Found
    from vllmrt.gpu.devices import Chosen
    from vllmrt.settings import Settings
    from vllmrt.types import GpuProcess, GpuStatus

_GIB = 1 << 30
_HOLDERS = 5
_NONE_HINT = (
    "in a container, ask for the GPU (nvidia.com/gpu in Kubernetes, --gpus in Docker); without one, set"
    " VLLM_SKIP_GPU_CHECK=1"
)
_NUMBER_HINT = (
    "set both so that their product is {visible}, or make more GPUs visible; where other machines have the rest, see"
    " docs/multi-gpu.md; VLLM_SKIP_GPU_CHECK=1 leaves the check out"
)
_MISSING_HINT = "correct VLLM_GPU_DEVICES or CUDA_VISIBLE_DEVICES; 'nvidia-smi -L' lists what there is"


def absences(found: Found, chosen: Chosen, everything: Callable[[], Sequence[GpuStatus] | None]) -> Iterator[Problem]:
    """Yield what was asked for and is not there.

    Args:
        found: the answer of the probe.
        chosen: what of it is meant.
        everything: asks for all devices; called only when one is missing.
    """
    present = found.gpus if found.gpus and not chosen.missing else everything()
    if present is not None and not present:
        message = f"there is a GPU driver, but no GPU ({found.probe} sees none)"
        yield Problem("gpu-none", message, fatal=True, hint=_NONE_HINT)
        return
    there = ", ".join(f"{gpu.index} {gpu.uuid}" for gpu in present or ())
    if chosen.missing:
        message = f"there is no GPU {', '.join(chosen.missing)}; {found.probe} sees {there or 'others'}"
        yield Problem("gpu-missing", message, fatal=True, hint=_MISSING_HINT)
    if chosen.unclear:
        message = f"several GPUs begin with {', '.join(chosen.unclear)}: {there}"
        yield Problem("gpu-missing", message, fatal=True, hint=_MISSING_HINT)


def number(visible: int, settings: Settings) -> Iterator[Problem]:
    """Yield what is wrong with how many GPUs the engine is told to use. Reference: chapter "Multi-GPU".

    Args:
        visible: how many it can use; that there is none at all is said by `absences`.
        settings: its tensor and pipeline parallel sizes.
    """
    needed, tensor, pipeline = settings.gpus, settings.tensor_parallel_size, settings.pipeline_parallel_size
    sizes = f"VLLM_TENSOR_PARALLEL_SIZE {tensor} x VLLM_PIPELINE_PARALLEL_SIZE {pipeline}"
    if 0 < visible < needed:
        message = f"{sizes} needs {needed} GPUs, and {visible} {'is' if visible == 1 else 'are'} visible"
        yield Problem("gpu-number", message, fatal=True, hint=_NUMBER_HINT.format(visible=visible))
    elif visible > needed:
        yield Problem("gpu-number", f"{sizes} uses {needed} of the {visible} GPUs that are visible", fatal=False)


def judge(gpus: Iterable[GpuStatus], settings: Settings) -> Iterator[Problem]:
    """Yield what is wrong with each device; `Settings.gpu_fail_on` decides what of it is fatal."""
    for gpu in gpus:
        if gpu.fault is not None:
            yield Problem("gpu-fault", f"{_label(gpu)} cannot be used: {gpu.fault}", fatal=True, hint=_fault_hint(gpu))
            continue
        yield from _hot(gpu, settings)
        yield from _full(gpu, settings)
        yield from _busy(gpu, settings)
        serious = [reason for reason in gpu.throttle_reasons if reason in SERIOUS]
        if serious:
            yield Problem("gpu-throttled", f"{_label(gpu)} holds its clocks down: {', '.join(serious)}", fatal=False)


def _hot(gpu: GpuStatus, settings: Settings) -> Iterator[Problem]:
    fatal, limit = "temperature" in settings.gpu_fail_on, settings.max_gpu_temp_c
    if gpu.temperature_c is None:
        yield from _unknown(gpu, "temperature", fatal=fatal)
    elif gpu.temperature_c > limit:
        message = f"{_label(gpu)} is at {gpu.temperature_c} °C, above {limit} (VLLM_MAX_GPU_TEMP_C)"
        yield Problem("gpu-temperature", message, fatal, "wait until it has cooled down; look at its fans and air flow")


def _full(gpu: GpuStatus, settings: Settings) -> Iterator[Problem]:
    fatal, limit = "memory" in settings.gpu_fail_on, settings.min_free_gpu_gb
    if not gpu.memory_total:
        yield from _unknown(gpu, "memory", fatal=fatal)
    elif gpu.memory_free < limit * _GIB:
        free = f"{gib(gpu.memory_free)} of {gib(gpu.memory_total)} GiB free, less than {limit:g}"
        message = f"{_label(gpu)} has {free} (VLLM_MIN_FREE_GPU_GB); {_held_by(gpu.processes)}"
        yield Problem("gpu-memory", message, fatal, "stop the processes that hold it, or choose another GPU")


def _busy(gpu: GpuStatus, settings: Settings) -> Iterator[Problem]:
    fatal, limit = "utilization" in settings.gpu_fail_on, settings.max_gpu_util_pct
    if gpu.utilization_pct is None:
        yield from _unknown(gpu, "utilization", fatal=fatal)
    elif gpu.utilization_pct > limit:
        message = f"{_label(gpu)} is {gpu.utilization_pct} % busy, above {limit} (VLLM_MAX_GPU_UTIL_PCT)"
        yield Problem("gpu-utilization", message, fatal, "somebody else computes on it; wait, or choose another GPU")


def _unknown(gpu: GpuStatus, condition: str, *, fatal: bool) -> Iterator[Problem]:
    """Warn where a condition that should stop the start cannot be seen; probes only ever fail open."""
    if fatal:
        message = f"{_label(gpu)} does not tell its {condition}, so VLLM_GPU_FAIL_ON={condition} cannot stop anything"
        yield Problem("gpu-unknown", message, fatal=False)


def _label(gpu: GpuStatus) -> str:
    which = f", {gpu.uuid}" if gpu.uuid.startswith("MIG-") else ""
    return f"GPU {gpu.index} ({gpu.name}{which})"


def _fault_hint(gpu: GpuStatus) -> str:
    return f"leave it out with CUDA_VISIBLE_DEVICES; 'dmesg | grep NVRM' may say why GPU {gpu.index} failed"


def _held_by(processes: Sequence[GpuProcess]) -> str:
    if not processes:
        return "the driver tells no process that holds it (one of another container, perhaps)"
    largest = sorted(processes, key=lambda one: -(one.memory or 0))
    more = f" and {len(largest) - _HOLDERS} more" if len(largest) > _HOLDERS else ""
    return "held by " + ", ".join(map(_holder, largest[:_HOLDERS])) + more


def _holder(process: GpuProcess) -> str:
    memory = "" if process.memory is None else f" ({gib(process.memory)} GiB)"
    return f"{process.pid} {process.name or _name_of(process.pid)}{memory}"


def _name_of(pid: int, proc: Path = Path("/proc")) -> str:
    """Return the first words of a command line, without options: they may hold a key."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "(of another container or user)"
    names = [Path(word).name or word for word in words[:2] if word and not word.startswith("-")]
    return " ".join(names)[:60] or "(without a name)"
