"""What vLLM's CPU build needs: a bound on its KV cache.

On a CPU, ``gpu-memory-utilization`` is a share of the machine's memory: with the usual 0.85 vLLM refuses to start on a
machine that does anything else besides, and elsewhere takes nearly all of it (vllm/v1/worker/cpu_worker.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllmrt.serve.engine import engine_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
_FLAG = "kv-cache-memory-bytes"
_MOST = 4
_GIB_IN_KB = 1 << 20


def kv_cache_space(engine: Path, environ: Mapping[str, str], keys: Sequence[str], extra: Sequence[str]) -> str | None:
    """Return the GiB to set `VARIABLE` to: a quarter of what is free, from 1 to 4.

    Returns:
        None for a build that needs no such bound, or where the user has set one.
    """
    given = [*keys, *(word.lstrip("-") for word in extra)]
    if environ.get(VARIABLE) or any(word.replace("_", "-").startswith(_FLAG) for word in given):
        return None
    if not (engine_version(engine) or "").endswith("+cpu"):
        return None
    return str(min(_MOST, max(1, available_memory() // 4)))


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the whole GiB that can be had without swapping (proc(5), MemAvailable); 0 where it is not known."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return 0
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(next(found, "0")) // _GIB_IN_KB
