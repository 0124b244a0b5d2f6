"""A model from a Hub to a verified directory: vllmrt beside ``hf download``, which verifies nothing (DESIGN.md §13).

Both ends run on this machine: the hub of the tests serves from the page cache. The tools take turns; the table has
medians, the CPU time and peak memory of the client, and the ratio to vllmrt.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Run(NamedTuple):
    """One run of a tool: seconds, CPU seconds, bytes of peak memory."""

    wall: float
    cpu: float
    memory: int


def main() -> None:
    """Start the hub, let the tools take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=64, help="16 million bytes each")
    parser.add_argument("--hf", default=shutil.which("hf"), help="the hf command")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        # in a process of its own: a child inherits the peak memory of whoever starts it
        _make(model, options.layers)
        size = sum(path.stat().st_size for path in model.iterdir())
        with _hub(model) as hub:
            environ = _environ(Path(scratch), json.loads(_first_line(hub))["endpoint"])
            tools = _tools(Path(scratch) / "out", options.hf)
            runs = {name: [] for name in tools}
            for _ in range(options.runs + 1):
                for name, command in tools.items():
                    runs[name].append(_run(command, environ, Path(scratch) / "out"))
            _end(hub)
    _table({name: measured[1:] for name, measured in runs.items()}, size)


def _make(model: Path, layers: int) -> None:
    script = (
        "import sys; from pathlib import Path; import bigmodel, vllmrt_model_tiny as tiny;"
        "bigmodel.LAYERS = int(sys.argv[2]); bigmodel.make_big_model(Path(sys.argv[1]), Path(tiny.__path__[0]))"
    )
    environ = os.environ | {"PYTHONPATH": str(HERE.parent)}
    subprocess.run([sys.executable, "-c", script, str(model), str(layers)], env=environ, check=True)


def _hub(model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE.parent / "fakehub.py"), f"acme/big={model}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(10)


def _environ(scratch: Path, endpoint: str) -> dict[str, str]:
    dropped = ("VLLM", "HF_", "XDG_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {"HOME": str(scratch), "HF_ENDPOINT": endpoint, "VLLM_MODEL_SOURCES": "hf-hub"}


def _tools(out: Path, hf: str | None) -> dict[str, list[str]]:
    ours = [str(Path(sys.executable).with_name("vllmrt")), "resolve", "acme/big", "--models-dir", str(out)]
    tools = {"vllmrt resolve (sha256)": ours}
    if hf:
        tools["hf download (no check)"] = [hf, "download", "acme/big", "--local-dir", str(out / "hf")]
    return tools


def _run(command: list[str], environ: dict[str, str], out: Path) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return Run(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def _table(runs: dict[str, list[Run]], size: int) -> None:
    print(f"{size / 1e6:.0f} MB in 4 shards; {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{'tool':<26} {'wall s':>7} {'MB/s':>6} {'CPU s':>6} {'peak MB':>8} {'times':>6}")
    ours = statistics.median(run.wall for run in next(iter(runs.values())))
    for name, measured in runs.items():
        wall = statistics.median(run.wall for run in measured)
        cpu = statistics.median(run.cpu for run in measured)
        memory = max(run.memory for run in measured)
        print(f"{name:<26} {wall:>7.2f} {size / wall / 1e6:>6.0f} {cpu:>6.2f} {memory / 1e6:>8.0f} {wall / ours:>6.2f}")


if __name__ == "__main__":
    main()
