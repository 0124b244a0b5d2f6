"""How much memory a very large model takes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from bench import servers, tools
from bench.measure import Missing, take_turns
from bench.table import Budget, Table

if TYPE_CHECKING:
    from bench.setting import Setting

NOTE = "One run, to a disk. The files are sparse where they are served, and real where they arrive."
_SHARD = 1 << 30
_SPARE = 5 << 30


def measure(setting: Setting) -> list[Table]:
    """Fetch the sparse model once."""
    free = shutil.disk_usage(setting.scratch).free
    if free < setting.huge + _SPARE:
        raise Missing(f"{setting.scratch} has {free / 1e9:.0f} GB free, {(setting.huge + _SPARE) / 1e9:.0f} are needed")
    count = max(1, setting.huge // _SHARD)
    path, size = setting.model("huge", count, setting.huge // count, sparse=True)
    out = setting.scratch / "out"
    with servers.store(setting.scratch, told=None) as store:
        environ = tools.environ(setting.scratch, **tools.bucket(store.http))
        rows = take_turns([tools.ours("huge", out, environ, "r2")], 1, out)
    shutil.rmtree(path)
    budget = Budget("under 100 MiB (104.9 MB) of resident memory", 104.9, field="memory")
    return [Table(f"Memory, a model of {size / 1e9:.0f} GB", NOTE, rows, size, [budget])]
