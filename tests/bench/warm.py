"""A model that is there already: nothing is read but its directory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench import servers, tools
from bench.measure import Contender, run, take_turns
from bench.table import Budget, Table

if TYPE_CHECKING:
    from bench.setting import Setting

NOTE = (
    "The model was fetched and published before; `vllmrt resolve` finds it in the store. Python beside it does nothing."
)
_SHARD = 4096


def measure(setting: Setting) -> list[Table]:
    """Resolve a model of many shards again."""
    setting.model("shards", setting.shards, _SHARD)
    out = setting.scratch / "warm"
    out.mkdir()
    with servers.store(setting.scratch) as store:
        environ = tools.environ(setting.scratch, **tools.bucket(store.http))
        run(tools.ours("shards", out, environ, "local,r2"), out)
    again = tools.ours("shards", out, environ, "local,r2")._replace(name="vllmrt resolve", verified="sizes, times")
    bare = Contender("python -c pass", [sys.executable, "-c", "pass"], environ)
    rows = take_turns([again, bare], 5 * setting.runs, out, keep=True)
    budget = Budget("under 250 ms", 250)
    return [Table(f"Warm, {setting.shards:,} shards", NOTE, rows, 0, [budget])]
