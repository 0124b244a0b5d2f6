"""How long it takes to learn who holds a port among thousands of processes, beside ``ss -ltnp``.

Prints a table; it is measured, not asserted. What has to hold: the look at the port takes no longer than ``ss`` and the
start of vllmrt's interpreter (``vllmrt --version``) together, and where nobody listens, next to nothing.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

BIN = Path(sys.executable).parent
VLLMRT = str(BIN / "vllmrt")
# Neither typer nor the settings' layers: what `vllmrt up` pays besides. It leaves as vllmrt does.
INSPECT = """\
import os, sys
from vllmrt.settings import Settings
from vllmrt.host import PluginHost
from vllmrt.preflight.port import inspect
settings = Settings(port=int(sys.argv[1]))
print(len(inspect(settings, PluginHost(settings)).holders), flush=True)
os._exit(0)
"""
BARE = "pass"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=4000, help="how many others there are")
    parser.add_argument("--runs", type=int, default=15, help="measurements of each")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        crowd = _crowd(given.processes)
        held = [_listener(Path(scratch), name) for name in ("other", "vllm")]
        try:
            _table(free.getsockname()[1], *(port for _, port in held), runs=given.runs)
        finally:
            os.killpg(crowd.pid, signal.SIGKILL)
            crowd.wait()
            for process, _ in held:
                process.kill()
                process.wait()


def _table(free: int, foreign: int, engine: int, *, runs: int) -> None:
    count = sum(name.isdecimal() for name in os.listdir("/proc"))
    python = [sys.executable, "-c"]
    rows: dict[str, list[str]] = {
        "bare python": [*python, BARE],
        "ss -ltnp": ["ss", "-ltnp"],
        "inspect, nobody listens": [*python, INSPECT, str(free)],
        "inspect, another program listens": [*python, INSPECT, str(foreign)],
        "inspect, vllm listens": [*python, INSPECT, str(engine)],
        "vllmrt preflight, nobody listens": [VLLMRT, "preflight", "--port", str(free)],
        "vllmrt preflight, another listens": [VLLMRT, "preflight", "--port", str(foreign)],
        "vllm-preflight, another listens": ["env", f"VLLM_PORT={foreign}", f"{BIN}/vllm-preflight"],
        "vllmrt --version": [VLLMRT, "--version"],
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for _ in range(runs + 1):
        for name, command in rows.items():
            times[name].append(_time(command))
    print(f"{count} processes; {runs} runs; milliseconds   {'median':>7} {'best':>7} {'CPU':>7}")
    for name, taken in times.items():
        walls, cpus = ([one[column] for one in taken[1:]] for column in (0, 1))
        print(f"{name:<44} {statistics.median(walls):>7.1f} {min(walls):>7.1f} {statistics.median(cpus):>7.1f}")


def _time(command: Sequence[str]) -> tuple[float, float]:
    """Return the milliseconds that a command takes, by the clock and of the processor: others may be busy."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=False, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall * 1000, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def _crowd(number: int) -> subprocess.Popen[bytes]:
    """Start processes that do nothing, in a session of their own."""
    script = f"for i in $(seq {number}); do sleep 1000 & done; echo; wait"
    crowd = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert crowd.stdout
    crowd.stdout.read(1)
    return crowd


def _listener(scratch: Path, name: str) -> tuple[subprocess.Popen[str], int]:
    """Start a program of that name which listens; ``vllm`` is taken for the real one."""
    script = scratch / name
    script.write_text(
        "import socket, time\ns = socket.create_server(('127.0.0.1', 0))\n"
        "print(s.getsockname()[1], flush=True)\ntime.sleep(1000)\n"
    )
    process = subprocess.Popen([sys.executable, str(script), "serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, int(process.stdout.readline())


if __name__ == "__main__":
    main()
