"""What the machine gives: open files, shared memory, processors, its clock, and what of its processes may be seen."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vllmrt.doctor.page import Section
from vllmrt.events import human_size
from vllmrt.procfs import PROC
from vllmrt.serve.cpu import available_memory

if TYPE_CHECKING:
    from vllmrt.doctor.page import Case
    from vllmrt.settings import Settings

WANTED_FILES = 65_535
"""What vLLM raises its soft limit to, where the hard one allows it (vllm/utils/system_utils.py, set_ulimit)."""
LEAST_FILES = 4_096
LEAST_SHM, LEAST_SHM_OF_SEVERAL = 256 << 20, 1 << 30
"""Bytes. The queue between vLLM's processes has 10 chunks of 16 MiB (VLLM_MQ_MAX_CHUNK_BYTES_MB); where several GPUs
work together, NCCL has its buffers there too."""
_SHM = Path("/dev/shm")  # noqa: S108 - it is looked at, and nothing is written


def look(case: Case) -> Section:
    """Return the limits of the machine."""
    section = Section({"cpus": len(os.sched_getaffinity(0)), "memory_available": available_memory() << 30})
    memory = section.facts["memory_available"] >> 30
    section.lines.append(f"{section.facts['cpus']} CPUs · {memory or '(not known how many)'} GiB of memory available")
    _files(section)
    _shared_memory(section, case.settings)
    _processes(section)
    _clock(section)
    return section


def _files(section: Section) -> None:
    soft, hard = (None if one == resource.RLIM_INFINITY else one for one in resource.getrlimit(resource.RLIMIT_NOFILE))
    section.facts["open_files"] = {"soft": soft, "hard": hard}
    section.lines.append(f"open files: {soft or 'unlimited'}, at most {hard or 'unlimited'}")
    if soft is None or hard is None or hard >= WANTED_FILES:
        return
    if soft < LEAST_FILES:
        message = f"vLLM may open {soft} files, each connection is one, and the limit of {hard} keeps it from more"
        remedy = f"raise the hard limit to {WANTED_FILES}: ulimit -n, LimitNOFILE= of systemd, --ulimit of Docker"
        section.add("open-files", message, remedy)
    elif soft < WANTED_FILES:
        section.notes.append(f"vLLM asks for {WANTED_FILES} open files, and will warn that it gets {soft}")


def _shared_memory(section: Section, settings: Settings) -> None:
    least = LEAST_SHM
    if settings.tensor_parallel_size * settings.pipeline_parallel_size > 1:
        least = LEAST_SHM_OF_SEVERAL
    remedy = "--shm-size or --ipc=host in Docker; an emptyDir with medium: Memory at /dev/shm in Kubernetes"
    section.facts["shm"] = None
    if not _SHM.is_dir():
        section.lines.append(f"{_SHM}: none")
        section.add("shm", f"there is no {_SHM}, and vLLM's processes share memory there", remedy)
        return
    status = os.statvfs(_SHM)
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    section.facts["shm"] = {"size": size, "free": free}
    section.lines.append(f"{_SHM}: {human_size(size)}, {human_size(free)} free")
    if size < least:
        message = f"{_SHM} has {human_size(size)}, and vLLM's processes want {human_size(least)} to share"
        section.add("shm", message, remedy)
    elif free < least:
        message = f"{_SHM} has {human_size(free)} free, and vLLM's processes want {human_size(least)} to share"
        section.add("shm", message, f"see what lies in {_SHM}: killed servers leave files there")
    elif not os.access(_SHM, os.W_OK | os.X_OK):
        section.add("shm", f"{_SHM} cannot be written by uid {os.geteuid()}", f"chmod 1777 {_SHM}")


def _processes(section: Section) -> None:
    """Tell whether the processes of others may be seen (proc(5), hidepid)."""
    try:
        lines = (PROC / "self" / "mountinfo").read_text().splitlines()
    except OSError:
        section.facts["proc"] = "missing"
        message = "/proc cannot be read: who holds the port and which engines are left over cannot be said"
        section.add("proc", message, "mount it: mount -t proc proc /proc")
        return
    options = [line.rpartition(" ")[2].split(",") for line in lines if line.split()[4] == str(PROC)]
    hidden = [option for option in (options or [[]])[-1] if option.startswith("hidepid=")]
    is_hidden = bool(hidden) and hidden[0] not in {"hidepid=0", "hidepid=off"} and os.geteuid() != 0
    section.facts["proc"] = "hidden" if is_hidden else "seen"
    if is_hidden:
        section.notes.append(f"/proc has {hidden[0]}: processes of other users are not seen")


def _clock(section: Section) -> None:
    """Compare the clock with the time at which vllmrt was installed: before that it cannot be."""
    now, installed = time.time(), Path(__file__).stat().st_mtime
    section.facts["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    section.lines.append(f"clock: {section.facts['time']}")
    if now < installed - 86_400:
        message = f"the clock says {section.facts['time']}, which is before vllmrt was installed"
        section.add("clock", message, "set it, or start NTP: TLS and signed requests fail otherwise")
