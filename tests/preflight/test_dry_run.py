"""A dry run ends as the run would: what is to be stopped will give its memory back, what is not will not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from gpukit import write_smi

if TYPE_CHECKING:
    from standin import Machine

FULL = 'echo "0, GPU-1, 81920, 100, 40, 3, P0, 0x1, Disabled, NVIDIA H100"'


@pytest.mark.parametrize("stale", [True, False])
@pytest.mark.parametrize("condition", ["memory", "temperature"])
def test_memory_that_somebody_else_holds(machine: Machine, port: int, condition: str, *, stale: bool) -> None:
    if stale:
        machine.serve(port=port)
    path = f"{write_smi(machine.path / 'smi', FULL)}:{os.environ['PATH']}"
    environ = {"VLLM_SKIP_GPU_CHECK": "0", "VLLMRT_GPU_PROBES": "nvidia-smi", "VLLM_GPU_FAIL_ON": condition}
    done = machine.preflight("--json", "--port", str(port), "--dry-run", environ=environ | {"PATH": path})
    assert done.code == int(condition == "memory" and not stale), done.err
    assert done.json["dry_run"] is True
    assert done.json["port_action"] == ("would_stop" if stale else "noop")
    assert done.err.count("less than 4 (VLLM_MIN_FREE_GPU_GB)") == 1
