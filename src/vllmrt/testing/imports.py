"""What importing a plugin costs, looked at in a Python of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCRIPT = """\
import importlib, json, sys, threading
import vllmrt.host, vllmrt.hookspecs, vllmrt.settings, vllmrt.identity, vllmrt.hubcache
before = set(sys.modules)
importlib.import_module(sys.argv[1])
threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
print()
# what has no spec was made by an extension module, and not imported
modules = [name for name in set(sys.modules) - before if getattr(sys.modules[name], "__spec__", None)]
print(json.dumps({"modules": sorted(modules), "threads": threads}))
"""
_OURS = frozenset({"vllmrt", "msgspec", "platformdirs", "pluggy"})


def assert_import_light(module: str, *, allowed: Iterable[str] = ()) -> None:
    """Fail unless a module can be imported without any third-party module, without a thread and in silence.

    Args:
        module: its full name; it, and what is in the same package, may of course be imported.
        allowed: top-level names of further modules that are light enough.
    """
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, module],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{module} cannot be imported:\n{done.stderr[-2000:]}"
    printed, _, told = done.stdout.rstrip("\n").rpartition("\n")
    found = json.loads(told)
    light = {*sys.stdlib_module_names, *_OURS, *allowed, module.partition(".")[0]}
    heavy = sorted({name.partition(".")[0] for name in found["modules"]} - light)
    assert not heavy, f"importing {module} imports {', '.join(heavy)}: import them inside the functions that need them"
    assert not found["threads"], f"importing {module} starts threads: {', '.join(found['threads'])}"
    assert not printed.strip(), f"importing {module} prints: {printed.strip()[:200]}"
