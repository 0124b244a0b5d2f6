"""How long a warm ``vllmrt up --dry-run`` takes, beside a bare Python measured in turn with it (DESIGN.md §13).

Prints a table; it is measured, not asserted: a machine that is busy otherwise would fail it for no fault of ours.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VLLMRT = Path(sys.executable).with_name("vllmrt")
BUDGET = 8.0


def main() -> None:
    """Measure both environments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=25, help="pairs for each row")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as scratch:
        environ = _environ(Path(scratch))
        crowded = environ | {"PYTHONPATH": str(_two_hundred_distributions(Path(scratch)))}
        subprocess.run([VLLMRT, "resolve"], env=environ, check=True, capture_output=True)
        print(f"{'warm vllmrt up --dry-run':<40} {'bare':>8} {'vllmrt':>8} {'ratio':>6} {'budget':>6}")
        for name, env in (("this environment", environ), ("and 200 distributions more", crowded)):
            bare, ours, ratio = _pairs(env, runs)
            print(f"{name:<40} {bare:>5.1f} ms {ours:>5.1f} ms {ratio:>6.2f} {BUDGET:>6.1f}")


def _pairs(environ: dict[str, str], runs: int) -> tuple[float, float, float]:
    """Return the medians of both in milliseconds, and the median of the ratios pair by pair."""
    commands = ([sys.executable, "-c", "pass"], [str(VLLMRT), "up", "--dry-run"])
    times = [[_time(command, environ) for command in commands] for _ in range(runs + 2)][2:]
    bare, ours = (statistics.median(column) for column in zip(*times, strict=True))
    return bare, ours, statistics.median(both[1] / both[0] for both in times)


def _time(command: list[str], environ: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=environ, check=True, capture_output=True)
    return (time.perf_counter() - start) * 1000


def _environ(scratch: Path) -> dict[str, str]:
    engine = os.environ.get("VLLMRT_TEST_ENGINE") or _pretended_engine(scratch)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM", "HF_", "XDG_", "PYTHON"))}
    return kept | {"HOME": str(scratch), "VLLMRT_VLLM": engine}


def _pretended_engine(scratch: Path) -> str:
    engine = scratch / "vllm"
    engine.write_text("#!/bin/sh\n")
    engine.chmod(0o755)
    return str(engine)


def _two_hundred_distributions(scratch: Path) -> Path:
    directory = scratch / "crowd"
    for number in range(200):
        metadata = directory / f"crowd_{number}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: crowd-{number}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[console_scripts]\ncrowd = crowd:main\n")
    return directory


if __name__ == "__main__":
    main()
