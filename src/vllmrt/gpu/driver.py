"""Whether anything of NVIDIA's driver is on this machine, told by names of files alone.

Where there is none, its probes need not be asked: a child process and what it imports take longer than all the rest of
the check. Whatever may be a driver is asked, and nothing is loaded here.
"""

from __future__ import annotations

import os
from pathlib import Path
from shutil import which

from vllmrt.types import Skip

_LIBRARY = "libnvidia-ml.so.1"
_KERNEL = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")
"""What the driver shows where it is loaded; the last is Windows' under WSL."""
_CACHE = Path("/etc/ld.so.cache")


def absence(probe: str) -> Skip | None:
    """Return why a probe cannot answer, in its own words; None where it has to be asked.

    Args:
        probe: its name; only ``nvml`` and ``nvidia-smi`` are known.
    """
    if probe == "nvml" and not _may_have_library():
        return Skip(f"there is no {_LIBRARY}, so no NVIDIA driver")
    if probe == "nvidia-smi" and which("nvidia-smi") is None:
        return Skip("it is not on PATH")
    return None


def _may_have_library() -> bool:
    """Look where ld.so(8) does: LD_LIBRARY_PATH and the cache, which has whatever ldconfig(8) found."""
    if any(map(os.path.exists, _KERNEL)):
        return True
    folders = os.environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
    try:
        return _LIBRARY.encode() in _CACHE.read_bytes() or any((Path(one) / _LIBRARY).exists() for one in folders)
    except OSError:  # no glibc, or one that does not use it
        return True
