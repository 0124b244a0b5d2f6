"""What runs here: vllmrt, its Python, the system."""

from __future__ import annotations

import os
import platform
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from vllmrt.doctor.page import Section

if TYPE_CHECKING:
    from vllmrt.doctor.page import Case


def look(_: Case) -> Section:
    """Return the versions."""
    system = os.uname()
    facts = {
        "vllmrt": _vllmrt(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "distribution": _distribution(),
        "kernel": f"{system.sysname} {system.release}",
        "machine": system.machine,
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "uid": os.geteuid(),
    }
    names = (facts[name] for name in ("kernel", "machine", "libc", "distribution"))
    lines = [
        f"vllmrt {facts['vllmrt'] or '(not known)'} · Python {facts['python']} · {facts['executable']}",
        f"{' · '.join(str(name) for name in names if name)} · uid {facts['uid']}",
    ]
    section = Section(facts, lines)
    if facts["vllmrt"] is None:
        section.add("vllmrt-metadata", "the metadata of vllmrt is not to be found", "install vllmrt again")
    return section


def _vllmrt() -> str | None:
    try:
        return str(import_module("vllmrt").__version__)
    except ImportError:  # PackageNotFoundError is one
        return None


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None
