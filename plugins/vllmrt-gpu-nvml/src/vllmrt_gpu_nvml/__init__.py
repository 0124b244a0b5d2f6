"""NVIDIA GPUs through the driver's own library, NVML (``libnvidia-ml.so.1``), with NVIDIA's ``nvidia-ml-py``.

Reference: chapter "GPU health check", row NVML. API: https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import vllmrt
from vllmrt.gpu.devices import is_named
from vllmrt.gpu.throttle import words
from vllmrt.types import GpuProcess, GpuStatus, Skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from vllmrt.types import GpuProbe

T = TypeVar("T")
_LIBRARY = "libnvidia-ml.so.1"


class NvmlProbe:
    """Asks the driver."""

    name = "nvml"

    def read(self, devices: tuple[str, ...]) -> tuple[GpuStatus, ...] | Skip:
        """Return the devices that the driver has; of a GPU that is divided, its MIG instances."""
        if not _has_library():
            return Skip(f"there is no {_LIBRARY}, so no NVIDIA driver", hint="nvidia-smi should work before vLLM can")
        import pynvml

        try:
            pynvml.nvmlInit()
            found = tuple(gpu for index in _indices(pynvml, devices) for gpu in _Gpu(pynvml, index).statuses())
        except pynvml.NVMLError as error:
            return Skip(f"the driver says: {error}", hint=_hint(pynvml, error))
        return tuple(gpu for gpu in found if not devices or any(is_named(gpu, name) for name in devices))


class _Gpu:
    """One physical GPU."""

    def __init__(self, nvml: ModuleType, index: int) -> None:
        self._nvml = nvml
        self._index = index

    def statuses(self) -> list[GpuStatus]:
        """Return the GPU, or its instances; one that fell off the bus is told with its fault."""
        uuid = ""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(self._index)
            uuid = self._nvml.nvmlDeviceGetUUID(handle)
            if not self._is_divided(handle):
                return [self._status(handle, handle)]
            instances = [self._status(instance, handle) for instance in self._instances(handle)]
            return instances or [self._broken(uuid, "MIG is on, but there is no MIG instance on it")]
        except self._nvml.NVMLError as error:
            return [self._broken(uuid, str(error))]

    def _status(self, device: Any, gpu: Any) -> GpuStatus:
        """Read a device; heat and clocks are those of the whole GPU, where an instance has none of its own."""
        nvml = self._nvml
        memory = self._maybe(nvml.nvmlDeviceGetMemoryInfo, device)
        utilization = self._maybe(nvml.nvmlDeviceGetUtilizationRates, device)
        state = self._maybe(nvml.nvmlDeviceGetPerformanceState, gpu)
        return GpuStatus(
            self._index,
            uuid=nvml.nvmlDeviceGetUUID(device),
            name=self._maybe(nvml.nvmlDeviceGetName, device) or "unnamed",
            memory_total=memory.total if memory else 0,
            memory_free=memory.free if memory else 0,
            temperature_c=self._maybe(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
            utilization_pct=utilization.gpu if utilization else None,
            pstate=None if state in {None, nvml.NVML_PSTATE_UNKNOWN} else f"P{state}",
            throttle_reasons=words(self._throttled(gpu)),
            aliases=() if device is gpu else self._aliases(device, gpu),
            processes=tuple(self._processes(device)),
        )

    def _throttled(self, gpu: Any) -> int:
        nvml = self._nvml
        # the same under its new name; drivers before 535 know only the old one
        reasons = self._maybe(nvml.nvmlDeviceGetCurrentClocksEventReasons, gpu)
        return (self._maybe(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu) if reasons is None else reasons) or 0

    def _processes(self, device: Any) -> Iterator[GpuProcess]:
        nvml = self._nvml
        seen = set()
        for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            for process in self._maybe(ask, device) or ():
                if process.pid not in seen:
                    seen.add(process.pid)
                    yield GpuProcess(process.pid, memory=process.usedGpuMemory)

    def _is_divided(self, gpu: Any) -> bool:
        mode = self._maybe(self._nvml.nvmlDeviceGetMigMode, gpu)
        return mode is not None and mode[0] == self._nvml.NVML_DEVICE_MIG_ENABLE

    def _instances(self, gpu: Any) -> Iterator[Any]:
        nvml = self._nvml
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
            try:
                yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place)
            except nvml.NVMLError_NotFound:
                continue

    def _aliases(self, instance: Any, gpu: Any) -> tuple[str, ...]:
        """Return the UUID of its GPU, and its own before driver 470, which CUDA still takes (MIG User Guide)."""
        nvml = self._nvml
        uuid = nvml.nvmlDeviceGetUUID(gpu)
        asked = (nvml.nvmlDeviceGetGpuInstanceId, nvml.nvmlDeviceGetComputeInstanceId)
        places = [self._maybe(ask, instance) for ask in asked]
        return (uuid,) if None in places else (uuid, f"MIG-{uuid}/{places[0]}/{places[1]}")

    def _maybe(self, ask: Callable[..., T], *arguments: Any) -> T | None:
        """Ask for what not every device tells; a device that is gone is another matter."""
        try:
            return ask(*arguments)
        except (self._nvml.NVMLError_GpuIsLost, self._nvml.NVMLError_ResetRequired):
            raise
        except self._nvml.NVMLError:
            return None

    def _broken(self, uuid: str, fault: str) -> GpuStatus:
        return GpuStatus(self._index, uuid=uuid, name="unnamed", memory_total=0, memory_free=0, fault=fault)


def _indices(nvml: ModuleType, devices: tuple[str, ...]) -> list[int]:
    """Return the GPUs to look at: only a number tells beforehand which one it is.

    The others are left alone where that is possible: without persistence mode each costs a second to wake up.
    """
    everything = list(range(nvml.nvmlDeviceGetCount()))
    if not devices or not all(name.isdecimal() for name in devices):
        return everything
    return [index for index in everything if index in map(int, devices)]


def _has_library() -> bool:
    """Look before nvidia-ml-py is imported, which takes longer than all the rest."""
    import ctypes

    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True


def _hint(nvml: ModuleType, error: Any) -> str | None:
    return {
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the kernel module: modprobe nvidia",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was updated: reboot, or reload its kernel module",
        nvml.NVML_ERROR_NO_PERMISSION: "give this user access to /dev/nvidiactl and /dev/nvidia*",
    }.get(error.value)


@vllmrt.hookimpl
def vllmrt_gpu_probes() -> Iterator[GpuProbe]:
    """Offer the one probe of this plugin."""
    yield NvmlProbe()
