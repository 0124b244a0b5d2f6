"""What was found out about the GPUs, and how it is told."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from vllmrt.errors import GpuUnhealthy
from vllmrt.events import Event

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from vllmrt.events import Emit
    from vllmrt.types import GpuStatus, Skip

SKIPPED = "skipped"
"""The `GpuReport.source` of GPUs that nobody looked at."""
_GIB = 1 << 30


class Problem(NamedTuple):
    """One thing that is wrong with the GPUs.

    Attributes:
        code: for programs: ``gpu-none``, ``gpu-missing``, ``gpu-number``, ``gpu-fault``, ``gpu-temperature``,
            ``gpu-memory``, ``gpu-utilization``, ``gpu-throttled``, ``gpu-unknown``.
        message: for people, in one line.
        fatal: True when it stops the start.
        hint: what to do about it.
    """

    code: str
    message: str
    fatal: bool
    hint: str | None = None


class GpuReport(NamedTuple):
    """What a check of the GPUs came to.

    Attributes:
        source: the probe that answered, or `SKIPPED`.
        gpus: those that were checked.
        visible: how many GPUs the engine can use; None where that is not known.
        problems: what is wrong, fatal or not.
        skips: the probes that could not say anything, and why.
        warnings: whatever else a user should know, a line each.
    """

    source: str
    gpus: tuple[GpuStatus, ...] = ()
    visible: int | None = None
    problems: tuple[Problem, ...] = ()
    skips: tuple[tuple[str, Skip], ...] = ()
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the fields for the JSON object of a preflight; the first two are the reference's."""
        import msgspec

        return {
            "gpus": [msgspec.to_builtins(gpu) for gpu in self.gpus],
            "gpu_check_source": self.source,
            "gpus_visible": self.visible,
            "gpu_problems": [problem._asdict() for problem in self.problems],
            "gpu_warnings": list(self.warnings),
            "gpu_skips": [{"probe": name, "reason": skip.reason, "hint": skip.hint} for name, skip in self.skips],
        }


def refuse(report: GpuReport, *, later: Collection[str] = ()) -> None:
    """Raise for what must stop the start.

    Args:
        report: as `vllmrt.gpu.check` returned it.
        later: codes of problems that may still go away, such as memory that a stale server holds.

    Raises:
        GpuUnhealthy: with a line for every fatal problem.
    """
    fatal = [problem for problem in report.problems if problem.fatal and problem.code not in later]
    if fatal:
        message = "\n".join(problem.message for problem in fatal)
        hints = dict.fromkeys(problem.hint for problem in fatal if problem.hint)
        raise GpuUnhealthy(message, hint="\n".join(hints) or None, facts=report.as_json())


def tell(report: GpuReport, emit: Emit, *, later: Collection[str] = ()) -> None:
    """Show a report; of its problems only those that stop nothing, because `refuse` has the others.

    Args:
        report: as `vllmrt.gpu.check` returned it.
        emit: shows an event.
        later: as for `refuse`.
    """
    if report.gpus:
        facts = {"source": report.source, "gpus": len(report.gpus), "visible": report.visible}
        emit(Event("gpu.status", "gpu", f"{summary(report.gpus)} · {report.source}", data=facts))
        for name, skip in report.skips:  # without an answer, the warning has the reasons
            data = {"probe": name, "reason": skip.reason, "hint": skip.hint}
            emit(Event("gpu.skip", "gpu", f"{name} skipped: {skip.reason}", data=data))
    for problem in report.problems:
        if not problem.fatal or problem.code in later:
            emit(Event("gpu.warning", "gpu", problem.message, "warning", {"code": problem.code}))
    for warning in report.warnings:
        emit(Event("gpu.warning", "gpu", warning, "warning", {"code": None}))


def summary(gpus: Sequence[GpuStatus]) -> str:
    """Return the GPUs in one line: how many of what, the least free memory, the highest temperature."""
    names = [gpu.name for gpu in gpus]
    parts = [", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))]
    free = [gpu.memory_free for gpu in gpus if gpu.memory_total]
    heat = [gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None]
    parts += [f"{gib(min(free))} GiB free"] if free else []
    parts += [f"{max(heat)} °C"] if heat else []
    return " · ".join(parts)


def gib(size: int) -> str:
    """Return bytes as GiB, rounded down: what is shown as 4 is not less than 4."""
    return f"{math.floor(size * 100 / _GIB) / 100:g}"
