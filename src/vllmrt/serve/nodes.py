"""Whether the GPUs of this machine have to be enough for the engine."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from vllmrt.errors import ServeRefused
from vllmrt.serve.config import config_keys, ensure_config
from vllmrt.serve.engine import engine_build, find_engine
from vllmrt.serve.spelling import is_flag, stem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vllmrt.settings import Settings

# vLLM 0.32, config/parallel.py: without one of these it refuses a world that is larger than the machine.
_SPREADING = ("--nnodes", "--node-rank", "--distributed-executor-backend", "--headless", "--data-parallel-")
_SHORT = re.compile(r"-(?:[nr]|dp[a-z]*)\d*")
_CLUSTERS = ("LWS_GROUP_SIZE", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
"""Numbers of machines, as LeaderWorkerSet and Slurm set them."""


def stands_alone(settings: Settings, environ: Mapping[str, str], words: Sequence[str]) -> bool:
    """Tell whether vLLM is going to need its tensor times pipeline parallel GPUs on this machine.

    Args:
        settings: the sizes, and the engine's config.
        environ: in which the engine is looked for.
        words: the extra arguments, or a whole command line.

    Returns:
        False where one GPU is enough, where other machines may have the rest, and where the engine is for CPUs.
    """
    if settings.gpus == 1 or any(map(_spreads, [*_flags(words), *_keys(settings)])):
        return False
    with suppress(ServeRefused):  # without an engine, one for GPUs is meant
        return engine_build(find_engine(settings, environ)) != "cpu"
    return True


def in_cluster(environ: Mapping[str, str]) -> bool:
    """Tell whether an environment speaks of several machines that work together: Ray, LeaderWorkerSet or Slurm."""
    return bool(environ.get("RAY_ADDRESS")) or any(environ.get(name, "1") not in {"", "1"} for name in _CLUSTERS)


def _flags(words: Sequence[str]) -> Iterable[str]:
    return (stem(word) for word in words if is_flag(word))


def _keys(settings: Settings) -> list[str]:
    with suppress(ServeRefused):  # whether the config is sound is said when it is used
        config = ensure_config(settings, dry_run=True)
        return [stem(f"--{key}") for key in config_keys(config)] if config.exists() else []
    return []


def _spreads(name: str) -> bool:
    """Tell whether vLLM may read a flag as one of `_SPREADING`; argparse takes abbreviations."""
    if not name.startswith("--"):
        return _SHORT.fullmatch(name) is not None
    return len(name) > len("--n") and any(name.startswith(flag) or flag.startswith(name) for flag in _SPREADING)
