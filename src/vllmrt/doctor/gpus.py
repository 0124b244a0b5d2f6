"""The GPUs, as a preflight sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllmrt import gpu
from vllmrt.doctor.page import Section
from vllmrt.gpu.report import SKIPPED, summary
from vllmrt.host import PluginHost
from vllmrt.serve.nodes import in_cluster, stands_alone

if TYPE_CHECKING:
    from vllmrt.doctor.page import Case

_UNSEEN = (
    "nvidia-smi has to work here: install the driver; in a container, ask for the GPU (nvidia.com/gpu in Kubernetes,"
    " --gpus in Docker)"
)


def look(case: Case, build: str | None) -> Section:
    """Return what a preflight would say of the GPUs.

    Args:
        case: which GPUs are meant.
        build: what vLLM was built for, as `vllmrt.serve.engine.engine_build` returns it. Without a GPU a vLLM for CUDA
            cannot start; any other can, or it is not known.
    """
    alone = not in_cluster(case.environ) and stands_alone(case.settings, case.environ, ())
    report = gpu.check(case.settings, PluginHost(case.settings), alone=alone)
    section = Section(report.as_json())
    skips = [f"{name}: {skip.reason}" for name, skip in report.skips]
    if report.gpus:
        section.lines += [f"{summary(report.gpus)} · {report.source}", *(f"{skip} (skipped)" for skip in skips)]
    elif case.settings.skip_gpu_check:
        section.lines.append("not looked at: VLLM_SKIP_GPU_CHECK is set")
    elif report.source != SKIPPED or report.visible == 0:
        section.lines.append("none that may be used")
        if build == "cuda" and report.source == SKIPPED:
            message = "this vLLM was built for CUDA, and CUDA_VISIBLE_DEVICES leaves it no GPU"
            section.add("gpu-hidden", message, "unset CUDA_VISIBLE_DEVICES, or name GPUs in it")
    else:
        section.lines += ["none was seen", *skips]
        _unseen(section, build)
    for problem in report.problems:
        if problem.fatal:
            section.add(problem.code, problem.message, problem.hint)
        else:
            section.notes.append(problem.message)
    # without an answer, the last warning repeats the reasons
    section.notes += [one for one in report.warnings if not one.startswith("no GPU was checked")]
    return section


def _unseen(section: Section, build: str | None) -> None:
    if build == "cuda":
        section.add("gpu-unseen", "this vLLM was built for CUDA, and no GPU can be seen", _UNSEEN)
    elif build == "cpu":
        section.lines.append("this vLLM was built for CPUs and needs none")
