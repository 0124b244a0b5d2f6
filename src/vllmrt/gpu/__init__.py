"""Whether the GPUs are there, cool and free.

Reference: chapter "GPU health check". The driver is only ever touched in a child process (`vllmrt.gpu.child`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt.gpu import cascade, devices
from vllmrt.gpu.report import SKIPPED, GpuReport

if TYPE_CHECKING:
    from vllmrt.host import PluginHost
    from vllmrt.settings import Settings


def check(settings: Settings, host: PluginHost, *, alone: bool = False) -> GpuReport:
    """Read the GPUs that are to be checked, and judge them.

    Which ones: `Settings.gpu_devices`, else `Settings.cuda_visible_devices`, else all. A probe that cannot say anything
    is passed over, and where none can, that is a warning: only a driver that answers can find fault.

    Args:
        settings: devices, thresholds, probes and their time limit.
        host: loads the probes, in child processes.
        alone: whether the GPUs that the engine can use have to be as many as it is told to use.

    Returns:
        What was found, faults too; `vllmrt.gpu.report.refuse` turns those into an error.

    Raises:
        ConfigError: a list of devices or a name of a probe that cannot be used.
        PluginError: two distributions claim the name of a probe.
    """
    if settings.skip_gpu_check:
        return GpuReport(SKIPPED)
    require(settings, host)
    cuda = devices.of_cuda(settings.cuda_visible_devices)
    wanted = settings.gpu_devices or cuda.names
    if wanted == ():
        return GpuReport(SKIPPED, visible=0, warnings=cuda.warnings)
    # without CUDA_VISIBLE_DEVICES the engine may use all of them, and how many those are is of interest too
    asked = () if cuda.names is None else tuple(dict.fromkeys((*settings.gpu_devices, *cuda.names)))
    found = cascade.ask(settings, host, asked)
    if found.probe is None:
        return GpuReport(SKIPPED, skips=found.skips, warnings=(*cuda.warnings, _unchecked(found)))
    from vllmrt.gpu import thresholds

    chosen = devices.select(found.gpus, wanted)
    visible = devices.count(devices.select(found.gpus, cuda.names).gpus)
    problems = (
        *thresholds.absences(found, chosen, lambda: cascade.all_of(settings, host, found)),
        *(thresholds.number(visible, settings) if alone else ()),
        *thresholds.judge(chosen.gpus, settings),
    )
    return GpuReport(found.probe, chosen.gpus, visible, problems, found.skips, cuda.warnings)


def require(settings: Settings, host: PluginHost) -> None:
    """Refuse what `check` would, before anything is stopped; no probe is asked.

    Raises:
        ConfigError, PluginError: as `check`.
    """
    if not settings.skip_gpu_check:
        devices.of_cuda(settings.cuda_visible_devices)
        cascade.require(settings, host)


def _unchecked(found: cascade.Found) -> str:
    reasons = "; ".join(f"{name}: {skip.reason}" for name, skip in found.skips) or "VLLMRT_GPU_PROBES names no probe"
    return f"no GPU was checked: {reasons}"
