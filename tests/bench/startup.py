"""How long a warm ``vllmrt up --dry-run`` takes, beside a bare Python (DESIGN.md §13)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from bench import tools
from bench.measure import Contender, empty, run, take_turns
from bench.table import Budget, Table

if TYPE_CHECKING:
    from pathlib import Path

    from bench.setting import Setting

BARE = "python -c pass"
BUDGET = Budget("at most 8 times a bare Python", 8.0, BARE, at_most=True)
NOTE = "From the model that comes with vllmrt to the launch, without the launch."


def measure(setting: Setting) -> list[Table]:
    """Measure in this environment, and in one with many distributions."""
    engine = os.environ.get("VLLMRT_TEST_ENGINE") or _pretended_engine(setting.scratch)
    environ = tools.environ(setting.scratch, VLLMRT_VLLM=engine, VLLM_PORT="20799")  # where nobody listens
    crowded = environ | {"PYTHONPATH": str(_two_hundred_distributions(setting.scratch))}
    return [
        _table(setting, "Warm `vllmrt up --dry-run`", environ),
        _table(setting, "Warm `vllmrt up --dry-run`, 200 distributions more", crowded),
    ]


def _table(setting: Setting, title: str, environ: dict[str, str]) -> Table:
    vllmrt = str(tools.BESIDE / "vllmrt")
    ours = Contender("vllmrt up --dry-run", [vllmrt, "up", "--dry-run"], environ, "sizes, times")
    bare = Contender(BARE, [sys.executable, "-c", "pass"], environ)
    empty(setting.out)
    for one in (ours._replace(command=[vllmrt, "resolve"]), ours, bare):  # cold
        run(one, setting.out)
    return Table(title, NOTE, take_turns([ours, bare], 5 * setting.runs, setting.out, keep=True), 0, [BUDGET])


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
        (metadata / "entry_points.txt").write_text(f"[vllmrt.sources]\ncrowd-{number} = crowd_{number}\n")
    return directory
