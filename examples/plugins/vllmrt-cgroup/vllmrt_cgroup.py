"""A vllmrt classifier: what runs in a systemd unit or a control group that you name is never stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import vllmrt
from vllmrt.types import Verdict

if TYPE_CHECKING:
    from vllmrt.types import ProcessInfo


@vllmrt.hookimpl
def vllmrt_classify_process(process: ProcessInfo) -> Verdict | None:
    """Protect the members of PROTECTED_CGROUPS: names of units and slices, or paths such as ``/kubepods``."""
    protected = [word.strip() for word in os.environ.get("PROTECTED_CGROUPS", "").split(",") if word.strip()]
    if any(is_in(group, word) for group in groups(process.pid) for word in protected):
        return Verdict.PROTECTED
    return None


def groups(pid: int) -> list[str]:
    """Return the control groups of a process, one of each hierarchy; none where it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "cgroup").read_text(errors="surrogateescape").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        if folder.exists():
            raise  # what cannot be said is not to be stopped: vllmrt turns this into exit code 4
        return []
    return [line.split(":", 2)[2].removesuffix(" (deleted)") for line in lines]


def is_in(group: str, protected: str) -> bool:
    """Tell whether a group is the one that is protected, or below it."""
    if protected.startswith("/"):
        return f"{group}/".startswith(f"{protected.rstrip('/')}/")
    return protected in group.split("/")
